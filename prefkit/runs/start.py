"""The first minutes with the kit: `prefkit demo` shows what it does, `prefkit new` writes a config
for data of one's own.
"""

import json
import re
from pathlib import Path

from prefkit.core import ConfigError, DataError, read_jsonl, resolve_path, shipped, write_text
from prefkit.data.records import load_records
from prefkit.runs.runner import open_run, report, run

DEMO = "data/configs/tiny/demo.yaml"
EXAMPLE = "data/tiny/pairs_train.jsonl"  # what a new config reads until it is told otherwise


def demo(
    output_root: str | Path | None = None,  # holds the experiment's folder; None: data/runs
    progress: str = "auto",  # bar | lines | quiet
) -> tuple[Path, list[str]]:  # the report's folder, a small picture as text
    "SFT, DPO and their judging on the tiny world, then the page; raises `PrefkitError`s."
    config = shipped(DEMO)
    folders = run(config, (), output_root, progress)
    return report(config, (), output_root, progress), _picture(folders["evaluate"])


def _picture(evaluation: Path, width: int = 40) -> list[str]:
    "Bars of what every model's answers are worth, and two prompts with the answers of all."
    scores = open_run(evaluation).info["metrics"]["scores"]
    longest = max(row["gold"] for row in scores)
    lines = ["gold reward of held-out answers (0 to 6), and the share that is right", ""]
    for row in scores:
        bar = "█" * max(1, round(width * row["gold"] / longest))
        lines.append(f"  {row['model']:<5} {bar} {row['gold']:.2f}, {row['right']:.0%} right")
    rows = read_jsonl(evaluation / "generations.jsonl")
    for prompt in list(dict.fromkeys(row["prompt"] for row in rows))[:2]:
        lines += ["", f"  {prompt}"]
        lines += [f"  {row['model']:<5} {row['answer']}" for row in rows if row["prompt"] == prompt]
    return lines


MODEL = "data/tiny/base"  # in the configs that `new` starts from


def new(
    name: str,  # of the experiment; NAME.yaml is written into the current folder
    data: str | Path | None = None,  # a file of one's own; None: a shipped example
    model: str = MODEL,  # that training begins with: a folder or a name on the Hub
) -> tuple[Path, str]:  # the config, and what is said of the data
    """Write a commented config for a file of pairs, labelled answers or demonstrations. The file is
    read first, so that what is wrong with it is said before anything else: raises `DataError`, or
    `ConfigError` for a name that is taken.
    """
    path = Path(f"{name}.yaml")
    if not re.fullmatch(r"[\w-]+", name):
        raise ConfigError(
            f"{name!r} cannot name an experiment: take letters, digits, _ and -.", field="name"
        )
    if path.exists():
        raise ConfigError(f"{path} is there already. Take another name, or delete it.")
    kind, n, account = _look(data or EXAMPLE)
    text = shipped(f"data/configs/new/{kind}.yaml").read_text(encoding="utf-8")
    example, cut = EXAMPLE.replace("pairs", kind), n - max(1, n // 10)
    changes = {  # what is the user's comes last, so that nothing in it is changed
        "CONFIG": path.name,
        "[:58]": f"[:{cut}]",
        "[58:]": f"[{cut}:]",
        f"experiment: {kind}": f"experiment: {name}",
        f"model: {MODEL}": f"model: {json.dumps(model)}",
        f"dataset: {example}": f"dataset: {json.dumps(str(data or EXAMPLE))}",
    }
    for old, put in changes.items():
        text = text.replace(old, put)
    about = f"# {name}: {n} {TRIED[kind]} from {data or 'a shipped example'}.\n"
    return write_text(path, about + text), account


TRIED = {  # in the order in which a file is tried
    "pairs": "pairs of a chosen and a rejected answer",
    "binary": "single answers with a label",
    "sft": "demonstrations",
}


def _look(source: str | Path) -> tuple[str, int, str]:  # kind of rows, how many, the account
    "What a file holds."
    if not resolve_path(source).exists():
        raise DataError(
            f"{source}: no such file. Name a .jsonl, .json, .parquet, .csv or .tsv file.",
            field="data",
            reason="not found",
        )
    said = []
    for kind, words in TRIED.items():
        try:
            found = load_records(source, kind=kind, from_pairs=False if kind == "binary" else None)
        except (DataError, ConfigError) as error:
            said.append(f"as {words}: {error}")
            continue
        if len(found) > 1:
            return kind, len(found), str(found.report)
        said.append(f"as {words}: too few rows to hold one out")
    raise DataError("\n".join((f"{source} holds nothing to train on.", *said)), field="data")
