"""`python tools/coverage.py`: which tables and figures of the five reports stand on their pages,
counted from data/coverage.yaml, the report notebooks and the committed results; and which of the
reports' features are here, counted from data/features.yaml and the tests.
"""

import json
import re
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
SEEDS = 5  # that a result with chance in it needs, where nothing else is said
VERDICTS = ("full", "partial", "missing", "no analogue")
STATES = ("whole", "lacks something", "no analogue")  # of a feature


@dataclass(frozen=True)
class Item:
    "A table, figure or result of a report."

    report: str
    id: str
    verdict: str  # one of `VERDICTS`
    why: str  # what is missing, or why there is none


@dataclass(frozen=True)
class Feature:
    "Something that a report does or uses."

    name: str
    reports: tuple[str, ...]  # whose it is; empty: no report names it
    how: str  # the setting, pipeline or config that does it
    tests: tuple[str, ...]  # `file::test`
    state: str  # one of `STATES`
    why: str  # what is missing, or why there is none


def sources_of(report: str, lesson: str) -> str:
    "What a page or a lesson says, as text."
    if lesson:
        found = [
            path
            for path in sorted((ROOT / "nbs/lib").glob("*/*.ipynb"))
            if re.sub(r"^\d+_", "", path.stem) == lesson
        ]
    else:
        found = [ROOT / f"nbs/reports/{report}.ipynb", ROOT / f"prefkit/report/{report}.py"]
    return "\n".join(path.read_text(encoding="utf-8") for path in found if path.is_file())


def seeds_in(name: str) -> int | None:  # None: there is no such file
    "How many seeds a committed result holds; 1 where it has none of its own."
    path = ROOT / f"data/results/{name}.json"
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    of_runs = {run["settings"]["seed"] for run in found.get("runs", []) if "settings" in run}
    return len(found.get("seeds") or of_runs or [0])  # a study names the seed of each run


def judged(report: str, given: dict) -> Item:
    "What became of one item."
    if why := given.get("none"):
        return Item(report, given["id"], "no analogue", why)
    text = sources_of(report, given.get("lesson", ""))
    lacking = [f"{name} is not drawn" for name in given["shows"] if not _stands(name, text)]
    wanted = 1 if given.get("exact") else given.get("seeds", SEEDS)
    for name in given.get("results", []):
        there = seeds_in(name)
        if there is None:
            lacking.append(f"data/results/{name}.json has not been made")
        elif there < wanted:
            lacking.append(f"data/results/{name}.json has {there} of {wanted} seeds")
    if lacking:
        return Item(report, given["id"], "missing", "; ".join(lacking))
    if why := given.get("partly"):
        return Item(report, given["id"], "partial", why)
    return Item(report, given["id"], "full", "")


def _stands(name: str, text: str) -> bool:
    "Whether a figure, table or function is named; `log_ratios_dpo` by `log_ratios_{method}`, too."
    return name in text or re.sub(r"_(?:minor_)?dpo$", "_{method}", name) in text


def items(path: Path = ROOT / "data/coverage.yaml") -> list[Item]:
    "All items of all reports, in their order."
    given = yaml.safe_load(path.read_text(encoding="utf-8"))["reports"]
    return [judged(report, one) for report, found in given.items() for one in found]


def counts(found: list[Item]) -> dict[str, Counter]:  # report -> verdict -> how many
    "What the reports have, and all together."
    made = {report: Counter() for report in dict.fromkeys(one.report for one in found)}
    for one in found:
        made[one.report][one.verdict] += 1
    return made | {"all": sum(made.values(), Counter())}


@cache
def tests_in(file: Path) -> frozenset[str]:  # none where there is no such file
    "The names of the tests in a file."
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return frozenset(re.findall(r"^def (test_\w+)\(", text, re.M))


def absent(tests: tuple[str, ...]) -> list[str]:
    "Those of some tests, each `file::test`, that there are not."
    places = [(name, *name.partition("::")[::2]) for name in tests]
    return [name for name, file, test in places if test not in tests_in(ROOT / "tests" / file)]


def weighed(given: dict) -> Feature:
    "What became of one feature: one that no test shows, or none that exists, is not whole."
    tests, none = tuple(given.get("tests", [])), given.get("none", "")
    lacking = [f"there is no test {name}" for name in absent(tests)]
    if not tests and not none:
        lacking.append("no test shows it")
    if given.get("lacks"):
        lacking.append(given["lacks"])
    state = "lacks something" if lacking else "no analogue" if none else "whole"
    why = "; ".join(lacking) or none
    return Feature(given["feature"], tuple(given["report"]), given["how"], tests, state, why)


def features(path: Path = ROOT / "data/features.yaml") -> list[Feature]:
    "All features, in their order."
    given = yaml.safe_load(path.read_text(encoding="utf-8"))["features"]
    return [weighed(one) for one in given]


def say_features(found: list[Feature]):
    "Print how many features are whole, and of the others what is missing."
    told = Counter(one.state for one in found)
    print(f"{len(found)} features: " + ", ".join(f"{told[state]} {state}" for state in STATES))
    for state in STATES[1:]:
        for one in found:
            if one.state == state:
                print(f"{one.name:<58} {state}: {one.why}")


def main() -> int:  # exit status: 1 where something is missing
    "Say what stands where."
    found = items()
    for one in found:
        if one.verdict != "full":
            print(f"{one.report:<15} {one.id:<42} {one.verdict}: {one.why}")
    print()
    for report, told in counts(found).items():
        print(f"{report:<15} " + ", ".join(f"{told[verdict]} {verdict}" for verdict in VERDICTS))
    print()
    say_features(features())
    return int(any(one.verdict == "missing" for one in found))


if __name__ == "__main__":
    sys.exit(main())
