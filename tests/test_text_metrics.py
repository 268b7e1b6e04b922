"""Measures of text: against plain loops, sacreBLEU called on its own, enumeration of pairs, real
outputs with known values, and simulation.
"""

import json, math, random, subprocess, sys
from collections import Counter
from itertools import combinations

import numpy as np, pandas as pd, pytest, sacrebleu, torch
from hypothesis import given, strategies as st
from transformers import AutoTokenizer, Qwen2ForCausalLM

from prefkit.stats import text_metrics
from prefkit.core import ConfigError, DataError, NotFinite, project_root, read_jsonl
from prefkit.data.records import encode_records, normalise
from prefkit.stats.text_metrics import (
    BOILERPLATE,
    VERBOSITY,
    bleu,
    boilerplate_in,
    distinct_n,
    diversity,
    hashed_ngrams,
    loops,
    mean_pairwise_cosine,
    perplexity,
    perplexity_of,
    repetition,
    text_report,
    verbosity,
    verbosity_prompts,
)
from prefkit.stats.intervals import ratio_interval
from prefkit.data.world import (
    STYLES,
    WORDINGS,
    World,
    dress,
    gold_reward,
    read_request,
    tiny_config,
    tiny_records,
    truth,
)

TOKENIZER = AutoTokenizer.from_pretrained(project_root() / "data/tiny/base")
ROWS = encode_records(
    [normalise(record, "sft") for record in tiny_records("sft", "test", 24)], TOKENIZER, kind="sft"
)[0]
PAIRS = encode_records(
    [normalise(record, "pairs") for record in tiny_records("pairs", "test", 6)],
    TOKENIZER,
    kind="pairs",
)[0]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = Qwen2ForCausalLM(
        tiny_config(
            TOKENIZER,
            hidden_size=32,
            num_hidden_layers=2,
            initializer_range=0.2,
            attention_dropout=0.5,
        )
    )
    # a training model with dropout: a mode that is not switched, or not put back, is seen
    return made.train()


# Perplexity


def loop(model, rows, answer):
    """Sum of negative log-probs and count of tokens of each answer, one token after the other, by
    log_softmax.
    """
    model.eval()
    found = []
    for row in rows:
        ids, total = list(row["prompt_ids"]), 0.0
        for token in row[f"{answer}_ids"]:
            with torch.no_grad():
                scores = model(torch.tensor([ids])).logits[0, -1].double()
            total -= (scores[token] - scores.logsumexp(0)).item()
            ids.append(token)
        found.append((total, len(row[f"{answer}_ids"])))
    model.train()
    return np.array(found)


@pytest.mark.parametrize("answer, rows", [("response", ROWS[:8]), ("rejected", PAIRS)])
def test_perplexity_equals_a_plain_loop_over_tokens(model, answer, rows):
    before = torch.get_rng_state()
    found = perplexity(model, rows, TOKENIZER.pad_token_id, answer=answer, batch_size=3)
    assert model.training and torch.equal(before, torch.get_rng_state())
    plain = loop(model, rows, answer)
    assert math.isclose(
        found.perplexity, math.exp(plain[:, 0].sum() / plain[:, 1].sum()), rel_tol=1e-4
    )
    assert math.isclose(
        found.by_response, math.exp((plain[:, 0] / plain[:, 1]).mean()), rel_tol=1e-4
    )
    assert (
        found.tokens == plain[:, 1].sum()
        and found.responses == len(rows)
        and found.low < found.perplexity < found.high
    )


def test_perplexity_does_not_depend_on_the_batch_and_the_end_of_turn_counts(model):
    one, many = (
        perplexity(model, ROWS, TOKENIZER.pad_token_id, batch_size=size) for size in (1, 24)
    )
    assert math.isclose(one.perplexity, many.perplexity, rel_tol=1e-5)
    end = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
    assert all(row["response_ids"][-1] == end for row in ROWS) and one.tokens == sum(
        len(row["response_ids"]) for row in ROWS
    )


def test_perplexity_is_weighted_by_tokens():
    "A uniform model has perplexity V whatever the lengths; otherwise the long answer decides."
    uniform = perplexity_of(-np.log(50) * np.array([1, 7, 30]), [1, 7, 30])
    assert math.isclose(uniform.perplexity, 50) and math.isclose(uniform.by_response, 50)
    mixed = perplexity_of([math.log(1 / 100), 99 * math.log(1 / 2)], [1, 99])
    assert math.isclose(mixed.perplexity, 2 * 50**0.01, rel_tol=1e-12) and math.isclose(
        mixed.by_response, math.sqrt(200), rel_tol=1e-12
    )


def test_perplexity_refuses_what_is_no_log_prob(model):
    for logps, lengths in (
        ([], []),
        ([math.nan], [3]),
        ([-math.inf], [3]),
        ([0.5], [3]),
        ([-1.0], [0]),
        ([-1.0, -2.0], [3]),
    ):
        with pytest.raises(DataError):
            perplexity_of(logps, lengths)
    assert perplexity_of([-1e6], [1]).perplexity == math.inf
    with pytest.raises(DataError, match="chosen_ids"):
        perplexity(model, ROWS, 0, answer="chosen")
    with pytest.raises(DataError, match="no rows"):
        perplexity(model, [], 0)
    broken = Qwen2ForCausalLM(tiny_config(TOKENIZER, hidden_size=32, num_hidden_layers=1))
    with torch.no_grad():
        broken.lm_head.weight.fill_(math.nan)
    with pytest.raises(NotFinite):
        perplexity(broken, ROWS[:2], TOKENIZER.pad_token_id)


def test_ratio_interval_covers_the_truth_and_agrees_with_the_mean():
    """Known truth: units of unlike size whose level differs; and with equal sizes it is Student's
    interval of a mean.
    """
    rng, hits = np.random.default_rng(0), 0
    for _ in range(2000):
        size = rng.integers(1, 20, 40).astype(float)
        total = size * rng.gamma(4, 0.5, 40)  # mean level 2, independent of the size
        hits += (lambda r: r[1] < 2 < r[2])(ratio_interval(total, size))
    assert 0.93 < hits / 2000 < 0.97
    from scipy.stats import t

    x = rng.normal(size=12)
    low, high = t.interval(0.95, 11, x.mean(), x.std(ddof=1) / math.sqrt(12))
    np.testing.assert_allclose(ratio_interval(x, np.ones(12)), [x.mean(), low, high], rtol=1e-10)
    assert all(map(math.isnan, ratio_interval([1.0], [2.0])[1:]))
    for bad in (([], []), ([1.0], [0.0]), ([1.0, 2.0], [1.0]), ([math.inf], [1.0])):
        with pytest.raises(DataError):
            ratio_interval(*bad)


# BLEU, distinct-n, repetition


@pytest.fixture(scope="module")
def farm(real_data):
    rows = read_jsonl(real_data / "alpaca_farm/outputs.jsonl")
    return (
        [row["sft"] for row in rows],
        [row["baseline"] for row in rows],
        json.loads((real_data / "alpaca_farm/expected.json").read_text()),
    )


def test_bleu_and_distinct_equal_the_expected_values_of_real_outputs(farm):
    answers, references, expected = farm
    assert math.isclose(
        bleu(answers, references)["bleu_4"],
        expected["sacrebleu 2.6.0 corpus (13a, exp smoothing)"],
        rel_tol=1e-12,
    )
    for n, wanted in expected["distinct (corpus level, whitespace tokens)"].items():
        assert math.isclose(distinct_n(answers, int(n)), wanted, rel_tol=1e-12)
    row = text_report(answers, references=references)
    assert math.isclose(
        row["bleu_4"], expected["sacrebleu 2.6.0 corpus (13a, exp smoothing)"]
    ) and math.isclose(
        row["distinct_2"], expected["distinct (corpus level, whitespace tokens)"]["2"]
    )


def naive_bleu(answers, references, order):
    """BLEU by the paper's formula, words split at blanks, no smoothing; several references: largest
    clip, nearest length (the shorter at a tie).
    """
    matched, total, said, wanted = Counter(), Counter(), 0, 0
    for answer, each in zip(answers, references):
        words, sets = answer.split(), [one.split() for one in each]
        said, wanted = (
            said + len(words),
            wanted + min((abs(len(one) - len(words)), len(one)) for one in sets)[1],
        )
        for n in range(1, order + 1):
            grams = lambda tokens: Counter(
                tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)
            )
            clip = Counter()
            for one in sets:
                clip |= grams(one)
            matched[n] += (grams(words) & clip).total()
            total[n] += grams(words).total()
    return (
        100
        * min(1, math.exp(1 - wanted / said))
        * math.prod(matched[n] / total[n] for n in range(1, order + 1)) ** (1 / order)
    )


def test_bleu_1_2_and_4_equal_the_papers_formula():
    rng, words = random.Random(0), "the fox red is and a blue toad ate".split()
    answers = [" ".join(rng.choices(words, k=rng.randint(6, 12))) for _ in range(60)]
    references = [
        [" ".join(rng.choices(words, k=rng.randint(6, 12))) for _ in range(rng.randint(1, 3))]
        for _ in answers
    ]
    found = bleu(answers, references)
    for order in (1, 2, 4):
        assert math.isclose(
            found[f"bleu_{order}"], naive_bleu(answers, references, order), rel_tol=1e-9
        )
    assert list(found) == ["bleu_1", "bleu_2", "bleu_4"]


@pytest.mark.parametrize("tokenize", ["13a", "none", "char"])
def test_bleu_equals_sacrebleu_called_on_its_own(tokenize):
    answers, references = (
        ["The fox is red, isn't it?", "42 - 3 = 39.", "Red."],
        ["The fox, is red.", "42-3=39", "It is red."],
    )
    wanted = sacrebleu.corpus_bleu(answers, [references], tokenize=tokenize).score
    assert math.isclose(bleu(answers, references, orders=(4,), tokenize=tokenize)["bleu_4"], wanted)
    second = ["A red fox.", "39", "Red."]
    wanted = sacrebleu.corpus_bleu(answers, [references, second]).score
    assert math.isclose(
        bleu(answers, [list(pair) for pair in zip(references, second)], orders=(4,))["bleu_4"],
        wanted,
    )


def test_bleu_refuses_what_does_not_fit():
    for answers, references in (([], []), (["a"], []), (["a", "b"], ["a", []])):
        with pytest.raises(DataError):
            bleu(answers, references)
    assert math.isclose(bleu(["the fox is red today"], ["the fox is red today"])["bleu_4"], 100)


def test_distinct_n_counts_over_all_answers_and_falls_with_length():
    # not over the joined text: "a a" is no bigram
    assert distinct_n(["a b a", "a b"], 1) == 2 / 5 and distinct_n(["a b a", "a b"], 2) == 2 / 3
    assert math.isnan(distinct_n(["Red.", ""], 2)) and distinct_n(["a b a b"], 1, at_most=2) == 1
    rng = random.Random(1)
    texts = [" ".join(rng.choices("abcdefgh", k=20)) for _ in range(200)]
    assert (
        distinct_n(texts, 1) < distinct_n(texts[:20], 1)
        and abs(distinct_n(texts, 1, at_most=300) - distinct_n(texts[50:], 1, at_most=300)) < 0.02
    )
    for bad in (dict(n=0), dict(n=1, at_most=0)):
        with pytest.raises(ConfigError):
            distinct_n(["a"], **bad)


def test_repetition_is_that_of_the_gold_reward():
    """On answers of every style: what the gold reward takes off is twice this share, but for a
    repetition that was asked for.
    """
    world, rng, seen = World(), random.Random(0), 0
    for record in tiny_records("prompts", "test", 120):
        request = read_request(record["prompt"])
        if request.kind == "repeat":
            continue
        value = truth(world, request)[:2] if request.kind == "list" else truth(world, request)
        for style in STYLES:
            text = dress(world, request, value, style, rng)
            assert math.isclose(
                gold_reward(record["prompt"], text).repetition_cost,
                2 * repetition(text),
                abs_tol=2e-6,
            )
            seen += repetition(text) > 0
    assert seen > 20


def test_loops_is_the_share_that_the_learning_rate_study_uses():
    from prefkit.runs.studies import share_of_loops

    texts = [
        "a b c a b c a b c",
        "a b c a b c",
        "x",
        "",
        "Confidence: 95%. Confidence: 95%. Confidence: 95%. Confidence: 95%. Confidence: 95%.",
    ]
    assert sum(map(loops, texts)) / len(texts) == share_of_loops(texts) == 2 / 5


@given(st.text(), st.integers(1, 4))
def test_repetition_is_a_share_and_doubling_a_text_raises_it(text, n):
    assert 0 <= repetition(text, n) < 1
    if len(text_metrics.words_of(text)) >= n:
        assert repetition(f"{text} {text}", n) > repetition(text, n) - 1e-12


# Diversity


def by_pairs(vectors):
    return np.mean(
        [
            one @ other / math.sqrt((one @ one) * (other @ other))
            for one, other in combinations(vectors, 2)
        ]
    )


@given(st.integers(2, 9), st.integers(1, 5), st.integers(0, 10**6))
def test_mean_pairwise_cosine_equals_the_mean_over_all_pairs(n, width, seed):
    vectors = np.random.default_rng(seed).normal(size=(n, width))
    assert math.isclose(
        mean_pairwise_cosine(vectors), by_pairs(vectors), rel_tol=1e-8, abs_tol=1e-10
    )


def test_eq_13_as_printed_is_a_quarter_and_cannot_reach_table_4():
    "(1/2) * sum over i < j, over N (N - 1): at most 1/4; the smallest value of Table 4 is 0.5091."
    printed = lambda v: (
        0.5
        * sum(
            v[i] @ v[j] / np.linalg.norm(v[i]) / np.linalg.norm(v[j])
            for i in range(len(v) - 1)
            for j in range(i + 1, len(v))
        )
        / (len(v) * (len(v) - 1))
    )
    rng = np.random.default_rng(0)
    for n in (2, 5, 160):
        vectors = rng.normal(size=(n, 6)) + 0.7
        assert math.isclose(printed(vectors), mean_pairwise_cosine(vectors) / 4, rel_tol=1e-9)
        assert math.isclose(printed(np.ones((n, 6))), 0.25) and 2 * 0.25 < 0.5091


def test_diversity_equals_its_definition_with_any_embedding():
    answers = [
        ["red", "blue toad", "a fox ran"],
        ["x y", "x y", "x y"],
        ["one", "two", "three four"],
    ]
    embed = lambda texts: np.array(
        [[len(text), text.count("e") + 1, ord(text[0]) % 7 + 1] for text in texts]
    )
    found = diversity(answers, embed)
    assert math.isclose(
        found.per_input, np.mean([by_pairs(embed(each).astype(float)) for each in answers])
    )
    assert math.isclose(
        found.across_input, by_pairs(embed([each[0] for each in answers]).astype(float))
    )
    assert (found.prompts, found.samples) == (3, 9) and found.low < found.per_input < found.high
    uneven = diversity([["red", "blue"], ["x", "x", "x", "y"]], embed)
    assert math.isclose(
        uneven.per_input,
        np.mean(
            [
                by_pairs(embed(each).astype(float))
                for each in (["red", "blue"], ["x", "x", "x", "y"])
            ]
        ),
    )
    assert math.isnan(diversity(answers[:1]).across_input)


def test_diversity_refuses_what_it_cannot_compare():
    for answers, embed in (
        ([], hashed_ngrams),
        ([["a"]], hashed_ngrams),
        ([["a", "b"], ["a"]], hashed_ngrams),
        ([["a", "b"]], lambda texts: np.zeros((2, 3))),
        ([["a", "b"]], lambda texts: np.ones((1, 3))),
        ([["a", "b"]], lambda texts: np.ones(2)),
        ([["a", "b"]], lambda texts: np.array([[1.0], [math.nan]])),
    ):
        with pytest.raises(DataError):
            diversity(answers, embed)


def test_hashed_ngrams_see_wording_and_are_the_same_in_another_process():
    texts = [
        "The fox is red.",
        "the FOX is red",
        "The foxes are red.",
        "Once there was a toad.",
        "",
        "?!",
        "Der Fuchs ist röt",
        "狐は赤い",
    ]
    vectors = hashed_ngrams(texts)
    cosine = vectors @ vectors.T
    np.testing.assert_allclose(np.diag(cosine), 1, rtol=1e-5)
    assert (
        cosine[0, 1] > 0.9999 > cosine[0, 2] > cosine[0, 3] + 0.2
        and cosine[4, 5] > 0.9999
        and np.isfinite(vectors).all()
    )
    code = (
        "from prefkit.stats.text_metrics import hashed_ngrams; import numpy as np; "
        f"print((hashed_ngrams({texts!r}) * np.arange(2048)).sum())"
    )
    other = float(
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**__import__("os").environ, "PYTHONHASHSEED": "7"},
        ).stdout
    )
    assert math.isclose(other, float((vectors * np.arange(2048)).sum()), rel_tol=1e-6)


def test_hashing_keeps_cosines_on_average():
    """Signed hashing scatters to both sides: the mean over many widths, each another hashing, is
    the cosine of the counts; unsigned hashing would be too large.
    """
    texts = [record["prompt"] for record in tiny_records("prompts", "test", 16)]
    exact, off = hashed_ngrams(texts, 2**20 + 7), ~np.eye(16, dtype=bool)
    several = np.mean(
        [(v := hashed_ngrams(texts, width)) @ v.T for width in range(400, 440)], axis=0
    )
    gap = (several - exact @ exact.T)[off]
    assert abs(gap.mean()) < 0.006 and np.abs(gap).max() < 0.05


@given(st.lists(st.text(), min_size=2, max_size=4))
def test_any_texts_can_be_embedded_and_compared(texts):
    assert -1.0001 <= mean_pairwise_cosine(hashed_ngrams(texts, 64)) <= 1.0001


# Verbosity, boilerplate, the report


def test_verbosity_instructions_are_those_of_table_7():
    assert [len(VERBOSITY[style]) for style in ("succinct", "verbose")] == [5, 5]
    prompts = [f"Question {i}?" for i in range(400)]
    for style, instructions in VERBOSITY.items():
        made = verbosity_prompts(prompts, style)
        used = Counter(text.removesuffix(f" {prompt}") for text, prompt in zip(made, prompts))
        assert (
            set(used) == set(instructions)
            and min(used.values()) > 50
            and made
            == verbosity_prompts(prompts, style)
            != verbosity_prompts(prompts, style, seed=1)
        )
    batched = verbosity_prompts(prompts, "verbose", batch_size=8)
    assert all(
        len({text.split("Question")[0] for text in batched[i : i + 8]}) == 1
        for i in range(0, 400, 8)
    )
    chat = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Why?"},
    ]
    asked = verbosity_prompts([chat], "succinct", separator="\n")[0]
    assert (
        asked[:2] == chat[:2]
        and asked[2]["content"].endswith("\nWhy?")
        and chat[2]["content"] == "Why?"
    )
    with pytest.raises(ConfigError):
        verbosity_prompts(prompts, "long")
    with pytest.raises(DataError):
        verbosity_prompts([chat[:2]], "verbose")


def test_verbosity_is_a_ratio_of_means_paired_by_query():
    found = verbosity([2, 4, 6], [4, 8, 12])
    assert found["ratio"] == 2 == found["low"] == found["high"] and (
        found["succinct"],
        found["verbose"],
    ) == (4, 8)
    rng = np.random.default_rng(0)
    base = rng.gamma(3, 10, 200)
    paired, shuffled = (
        verbosity(base, base * rng.normal(1.5, 0.1, 200)),
        verbosity(base, rng.permutation(base) * 1.5),
    )
    assert (
        paired["high"] - paired["low"] < 0.3 * (shuffled["high"] - shuffled["low"])
        and paired["low"] < 1.5 < paired["high"]
    )


def test_boilerplate_is_found_as_whole_words_in_any_typography():
    assert boilerplate_in("AS AN AI  language\nmodel, I cannot") == [
        "As an AI language model",
        "As an AI",
    ]
    assert (
        boilerplate_in("I’m just an AI.") == ["I'm just an AI"]
        and boilerplate_in("as an aide I help, maintain as an air") == []
    )
    # no regular expressions
    assert boilerplate_in("x+y", ("x+",)) == [] and boilerplate_in("so x+ y", ("x+",)) == ["x+"]
    for phrase in WORDINGS["boilerplate"]:
        assert boilerplate_in(phrase.format("The fox is red."))
    found = {
        style: np.mean(
            [
                bool(
                    boilerplate_in(
                        dress(
                            World(),
                            read_request(r["prompt"]),
                            truth(World(), read_request(r["prompt"])),
                            style,
                            random.Random(0),
                        )
                    )
                )
                for r in tiny_records("prompts", "test", 60)
                if r["kind"] != "list"
            ]
        )
        for style in STYLES
    }
    assert found["boilerplate"] == found["confidence"] == 1 and sum(found.values()) == 2
    assert "As an AI language model" in BOILERPLATE


def test_report_holds_what_the_records_allow():
    records = [
        {"text": "The fox is red.", "tokens": 6, "ended": True},
        {
            "text": "As an AI, I run and run and run and run and run and run",
            "tokens": 20,
            "ended": False,
        },
    ] * 4
    row = text_report(
        records,
        references=["The fox is red."] * 8,
        prompts=[i // 2 for i in range(8)],
        perplexity=perplexity_of([-3.0, -9.0], [3, 4]),
    )
    assert (
        row["n"] == 8
        and row["tokens"] == 13
        and row["ended"] == row["boilerplate"] == row["loops"] == 0.5
        and row["words"] == (4 + 15) / 2
    )
    assert (
        math.isclose(row["repetition"], np.mean([repetition(record["text"]) for record in records]))
        and row["words_low"] < row["words"] < row["words_high"]
    )
    assert (
        row["bleu_4"]
        == bleu([record["text"] for record in records], ["The fox is red."] * 8)["bleu_4"]
    )
    texts = [record["text"] for record in records]
    pairs = diversity([texts[i : i + 2] for i in range(0, 8, 2)])
    assert (
        row["per_input"] == pairs.per_input
        and math.isclose(row["across_input"], 1, abs_tol=1e-6)
        and row["perplexity"] == math.exp(12 / 7)
    )
    bare = text_report([record["text"] for record in records])
    assert not {"tokens", "ended", "bleu_4", "per_input", "perplexity"} & set(bare) and {
        "distinct_1",
        "words",
    } <= set(bare)
    assert (
        "per_input" not in text_report(texts, prompts=range(8))
        and "boilerplate" in text_report(texts, phrases=())
        and text_report(texts, phrases=())["boilerplate"] == 0
    )
    assert len(pd.DataFrame([row, bare])) == 2


def test_report_names_what_is_wrong():
    for records, options in (
        ([], {}),
        ([{"answer": "x"}], {}),
        ([None and "x" or {"text": None}], {}),
        (["a"], {"prompts": ["p", "q"]}),
        (["a"], {"references": []}),
    ):
        with pytest.raises(DataError):
            text_report(records, **options)


def test_importing_the_module_brings_neither_torch_nor_matplotlib():
    code = (
        "import sys, prefkit.stats.text_metrics; print([name for name in ('torch', 'transformers', "
        "'matplotlib', 'scipy.stats', 'sacrebleu') if name in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
