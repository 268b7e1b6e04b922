"""What `prefkit seeds` writes, made up: pages must follow whatever was found."""

import numpy as np

from prefkit.runs.seeds import over_seeds

ABOUT = {
    "command": "prefkit ledger --run",
    "date": "2026-11-29",
    "device": "cpu",
    "git": {"revision": "0" * 40, "dirty": False},
    "threads": 1,
    "versions": {"python": "3", "torch": "2", "transformers": "5"},
    "config": "0",
}


def line_of(ends: dict, rng, steps: int = 100) -> list[dict]:
    "The course of a stage: every column goes in a straight line from start to end."
    told = []
    for step in range(0, steps + 1, steps // 4):
        share = step / steps
        row = {
            name: start + (end - start) * share + (rng.normal(0, 0.01) if step else 0.0)
            for name, (start, end) in ends.items()
        }
        told += [{"step": step, "split": split, **row} for split in ("train", "validation")]
    return told


def invented(
    shares: dict,  # model -> share of right answers; its win rate against each reference, too
    references: tuple = ("sft",),
    judges: tuple = ("gold", "second"),
    courses: dict | None = None,  # stage -> {column: (start, end)}
    likeness: dict | None = None,  # model -> (per input, across input)
    measures: dict | None = None,  # model -> {measure of its texts: value}
    seeds: tuple = (5, 6, 7, 8, 9),
) -> dict:
    found = {}
    for seed in seeds:
        rng = np.random.default_rng(seed)
        now = {name: share + rng.normal(0, 0.005) for name, share in shares.items()}
        scores = [
            {"model": name, "right": share, "gold": 6 * share, "second": 3.0, "tokens": 12.0}
            | {"sampled": share - 0.05, "ended": 1.0, "n": 500, "decoding": "sampled"}
            for name, share in now.items()
        ]
        wins = [
            {"model": name, "reference": reference, "judge": judge, "low": 0.0, "high": 1.0}
            | {"rate": 0.5 + share - now.get(reference, 0.5), "n": 500, "decoding": "sampled"}
            for name, share in now.items()
            for reference in references
            for judge in judges
            if name != reference
        ]
        spreads = [
            {"model": name, "judge": judge, "decoding": "sampled"}
            | {f"q{5 * place:02d}": 6 * share * place / 20 for place in range(21)}
            for name, share in now.items()
            for judge in judges
        ]
        said = {name: {"text": f"{name} says it.", "gold": 5.0, "ended": False} for name in shares}
        texts = [
            {"model": name, "per_input": one + rng.normal(0, 0.001), "across_input": other}
            for name, (one, other) in (likeness or {}).items()
        ]
        texts += [
            {"model": name} | {what: value + rng.normal(0, 0.01) for what, value in told.items()}
            for name, told in (measures or {}).items()
        ]
        found[str(seed)] = {
            "scores": scores,
            "win_rates": wins,
            "spreads": spreads,
            "texts": texts,
            "training": {stage: line_of(ends, rng) for stage, ends in (courses or {}).items()},
            "answers": {
                "evaluate": [{"prompt": f"Question {n}?", "answers": said} for n in range(6)]
            },
        }
    return {**ABOUT, "over_seeds": over_seeds(found), "seeds": found}
