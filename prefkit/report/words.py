"""Words that every page uses: names of models, numbers and lists in a sentence.

Sentences on estimates with intervals (`say_win`, `say_interval`) are taught in the lesson on
figures.
"""

import math
from pathlib import Path

from prefkit.core import resolve_path
from prefkit.report.figures import nice_name, say_interval

__all__ = [
    "JUDGE_NAMES",
    "ONE_SEED",
    "called",
    "config_words",
    "counted",
    "joined",
    "judge_name",
    "number",
    "plain",
    "say_estimate",
    "signed",
    "weights_words",
]

# judge, as in win_rates.csv -> its name in a sentence
JUDGE_NAMES = {"gold": "the gold reward", "second": "the second judge"}
ONE_SEED = (
    "One seed: its intervals say what other prompts would change, not what another seed would."
)
NAMES = {
    "base": "base model",
    "minor_dpo": "MinorDPO",
    "orpo_v1_1": "ORPO V1.1",
    "orpo_v1_2": "ORPO V1.2",
    "orpo_v1_3": "ORPO V1.3",
    "rloo_lora": "RLOO (LoRA)",
    "sft_lora": "SFT (LoRA)",
}


def called(
    name: str,  # as in a config: "orpo_v1_2"
) -> str:  # as on a page: "ORPO V1.2"
    "A model's name in a sentence."
    return NAMES.get(name, nice_name(name))


def joined(
    words: list[str],  # what is listed
) -> str:  # "a, b and c"; "none" for nothing
    "Words in a row."
    if len(words) < 2:
        return words[0] if words else "none"
    return f"{', '.join(words[:-1])} and {words[-1]}"


def counted(
    count: int,  # how many
    noun: str,  # of what, in the singular
) -> str:  # "1 seed", "3 seeds"
    "A number with its noun."
    return f"{count} {noun}{'' if count == 1 else 's'}"


def number(
    value: float,
    digits: int = 1,  # decimals
) -> str:  # "−0.5"
    "A number with a true minus sign."
    return f"{value:.{digits}f}".replace("-", "−")


def signed(
    value: float,
    digits: int = 2,  # decimals
) -> str:  # "+0.50", "−0.50"
    "A number with its sign; zero is +0."
    return f"{value + 0.0:+.{digits}f}".replace("-", "−")


def say_estimate(
    estimate: tuple[float, float, float],  # value, low, high; NaN ends where there is no interval
    percent: bool = False,  # shares in [0, 1], said as percent
    digits: int = 2,  # decimals
) -> str:  # "71 % [68, 74]", or "71 %"
    "An estimate with its interval, or alone where there is none."
    if not math.isnan(estimate[1]):
        return say_interval(*estimate, percent=percent, digits=digits)
    return f"{number(100 * estimate[0], digits)} %" if percent else number(estimate[0], digits)


def config_words(
    path: str | Path,  # a config, as a user writes it
) -> str:  # one paragraph
    "What the comment at the head of a config says, without its commands, which are indented."
    head = resolve_path(path).read_text(encoding="utf-8").split("experiment:")[0]
    lines = [line for line in head.splitlines() if not line.lstrip("#").startswith("   ")]
    return " ".join(line.lstrip("# ").strip() for line in lines)


def judge_name(
    judge: str,  # as in win_rates.csv
) -> str:
    "How a judge is named in a sentence."
    return JUDGE_NAMES.get(judge, f"the {judge} judge")


def plain(
    prompt: str | list[dict],  # a text, or messages
) -> str:
    "A prompt as text: the turns of user and model where it is a list of messages."
    if isinstance(prompt, str):
        return prompt
    return "\n".join(turn["content"] for turn in prompt if turn["role"] != "system")


def weights_words(
    about: dict,  # a run's info, or results over seeds
) -> str:  # such as "weights were rounded to four bits (Q4_1)"; "" where nothing is known
    "What had been done to the weights that models began with."
    told = [(about.get("model") or {}).get("weights")]
    told += [one.get("weights") for one in about.get("seeds", {}).values()]
    return "; ".join(dict.fromkeys(_texts(told)))


def _texts(value):
    "Every text within lists and dicts."
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)
