"""Encoded rows and prompts that need no data set.

No name of the library but `project_root`: what is recorded of an older tree reads the same rows.
"""

import random

from prefkit.core import project_root

BASE = project_root() / "data/tiny/base"
QUESTIONS = ["What colour is the fox?", "How much is 7 plus 5?", "What does the owl eat?"]
ANSWERS = {"sft": ["response"], "pairs": ["chosen", "rejected"], "binary": ["response"]}


def encoded_rows(number: int, kind: str, seed: int = 0) -> list[dict]:
    "Rows of random tokens, as long as they come."
    draw = random.Random(seed)

    def ids():
        return [draw.randrange(10, 200) for _ in range(draw.randint(3, 14))]

    names = ("prompt_ids", *(f"{answer}_ids" for answer in ANSWERS[kind]))
    rows = [{name: ids() for name in names} for _ in range(number)]
    if kind == "binary":
        rows = [{**row, "label": i % 3 > 0} for i, row in enumerate(rows)]
    return rows


def prompts(tokenizer, texts: list[str]) -> list[dict]:
    "Prompts of the tiny world as they are sampled from, with an answer to imitate."
    rows = []
    for text in texts:
        asked = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)
        answer = tokenizer("It is red.", add_special_tokens=False)["input_ids"]
        answer = [*answer, tokenizer.eos_token_id]
        row = {"prompt_ids": ids["input_ids"], "prompt": asked, "record": {"prompt": text}}
        rows.append({**row, "response_ids": answer})
    return rows
