"""What there is to name in a config, a line each: what `prefkit list` shows."""

import json
import re
from itertools import takewhile
from pathlib import Path

import yaml

from prefkit.core import ConfigError, nearest, shipped
from prefkit.data.records import DATASETS
from prefkit.judging import combined  # noqa: F401 adds the rewards that ask others
from prefkit.judging.judges import JUDGES, RewardJudge
from prefkit.judging.rewards import REWARDS


SENTENCE = re.compile(r"(?<=[.!?])(?<!al\.)(?<!Eq\.)\s+(?=[^a-z(])|; (?=raises)")  # where one ends


def _first_sentence(text: str) -> str:
    return SENTENCE.split(" ".join(text.split()))[0]


def _first_line(documented) -> str:
    "The first sentence of a docstring."
    return _first_sentence(documented.__doc__ or "")


def _methods() -> dict[str, str]:
    from prefkit.train.methods import METHODS  # loads PyTorch

    return {name: f"{row.kind}: {_first_line(row.loss)}" for name, row in sorted(METHODS.items())}


def _rewards() -> dict[str, str]:
    return {name: _first_line(kind) for name, kind in sorted(REWARDS.items())}


def _judges() -> dict[str, str]:
    rewards = _rewards()
    return {
        name: rewards[name] if kind is RewardJudge else _first_line(kind)
        for name, kind in sorted(JUDGES.items())
    }


def _datasets() -> dict[str, str]:
    return {name: f"{', '.join(one.gives)}: {one.note}" for name, one in DATASETS.items()}


def _notebooks(folder: str, line: int) -> dict[str, str]:
    "The title of each notebook, line 0, or what the first paragraph says."
    return {path.stem: _opening(path)[line] for path in sorted(shipped(folder).glob("*.ipynb"))}


def _opening(notebook: Path) -> tuple[str, str]:  # title, first sentence
    first = json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]
    title, _, text = "".join(first["source"]).partition("\n")
    return title.lstrip("# "), _first_sentence(text)


def _configs() -> dict[str, str]:
    "The first sentence of the comment that each config begins with."
    home = shipped("data/configs")
    return {
        f"data/configs/{path.relative_to(home).as_posix()}": _comment(path)
        for path in sorted(home.rglob("*.yaml"))
    }


def _comment(config: Path) -> str:
    text = config.read_text(encoding="utf-8")
    lines = takewhile(lambda line: line.startswith("#"), text.splitlines())
    said = _first_sentence(" ".join(line.lstrip("# ") for line in lines))
    return f"{'study: ' if 'study' in yaml.safe_load(text) else ''}{said}"


WHAT = {
    "methods": _methods,
    "rewards": _rewards,
    "judges": _judges,
    "datasets": _datasets,
    "pipelines": lambda: _notebooks("nbs/pipelines", 1),
    "reports": lambda: _notebooks("nbs/reports", 0),
    "configs": _configs,
}


def catalogue(
    what: str = "",  # one of `WHAT`; "": all
) -> dict[str, dict[str, str]]:  # what -> name -> a line about it
    "What can be named in a config; raises `ConfigError` for a kind of thing that there is not."
    if what and what not in WHAT:
        raise ConfigError(f"there is no list of `{what}`.{nearest(what, WHAT)}")
    return {name: find() for name, find in WHAT.items() if what in ("", name)}


def catalogue_lines(
    what: str = "",  # one of `WHAT`; "": all
    width: int = 100,  # columns; what is longer is cut
) -> list[str]:
    "The lists as text, one thing a line."
    lines = []
    for kind, found in catalogue(what).items():
        column = max(map(len, found), default=0)
        lines += ["", kind] if not what else []
        for name, said in found.items():
            line = f"  {name:<{column}}  {said}"
            lines.append(line if len(line) <= width else f"{line[: width - 1].rstrip()}…")
    return lines
