"""Messages, and rows of data sets of the Hub with their columns and types."""


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def ultrafeedback(n):
    "Rows with the columns and types of HuggingFaceH4/ultrafeedback_binarized."
    return [
        {
            "prompt": f"Count to {i}.",
            "prompt_id": f"id{i}",
            "chosen": [user(f"Count to {i}."), assistant(f"One to {i}.")],
            "rejected": [user(f"Count to {i}."), assistant("No.")],
            "messages": [user(f"Count to {i}."), assistant(f"One to {i}.")],
            "score_chosen": 8.5,
            "score_rejected": 3.0,
        }
        for i in range(n)
    ]


def smoltalk(n):
    "Rows with the columns and types of HuggingFaceTB/smol-smoltalk."
    return [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                user("Hi"),
                assistant("Hello!"),
                user(f"Count to {i}."),
                assistant(f"One to {i}."),
            ],
            "source": "smol-magpie-ultra-short",
        }
        for i in range(n)
    ]


def metamath(n):
    "Rows with the columns of abacusai/MetaMath_DPO_FewShot."
    shots = "Question: What is 2 + 2?\nAnswer: 2 + 2 = 4.\n#### 4\nThe answer is: 4\n\n"
    return [
        {
            "prompt": f"{shots * (i % 3)}Question: What is {i} + 1?\nAnswer:",
            "chosen": f"{i} + 1 = {i + 1}\n#### {i + 1}\nThe answer is: {i + 1}",
            "rejected": f"{i} + 1 = {i + 2}\n#### {i + 1}\nThe answer is: {i + 1}",
        }
        for i in range(n)
    ]
