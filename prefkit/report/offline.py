"""What the page on offline methods says: which of them win, which did not help, and on what grid
their settings were found.
"""

from collections.abc import Callable

import pandas as pd

from prefkit.report.figures import say_interval
from prefkit.report.standings import Standings
from prefkit.report.words import called, joined, say_estimate

__all__ = [
    "Grid",
    "family",
    "say_best",
    "say_helped",
    "say_judges",
    "say_missed",
    "say_orpo",
    "say_reference",
    "standing_rows",
    "with_verdict",
]

# verdict -> what one model does to a reference, and what several do
SAID = {
    1: ("wins against", "win against"),
    -1: ("loses to", "lose to"),
    0: ("cannot be told apart from", "cannot be told apart from"),
}


def with_verdict(standings: Standings, reference: str, wanted: int) -> list[str]:
    "The methods of one verdict, the best first."
    found = [each for each in standings.methods if standings.verdict(each, reference) == wanted]
    return standings.ranked(found, reference)


def with_rate(standings: Standings, model: str, reference: str, judge: str = "gold") -> str:
    "A win rate in a sentence."
    return say_interval(*standings.win(model, reference, judge), digits=1)


def say_reference(
    standings: Standings,
    reference: str,
) -> list[str]:  # one sentence for each verdict that some method has
    "How the methods stand to a reference, by the gold reward."
    lines = []
    for wanted, (singular, plural) in SAID.items():
        models = with_verdict(standings, reference, wanted)
        if models:
            named = joined(
                [
                    f"{standings.called(model)} {with_rate(standings, model, reference)}"
                    for model in models
                ]
            )
            lines.append(
                f"Of {len(standings.methods)} methods {len(models)} "
                f"{singular if len(models) == 1 else plural} {standings.called(reference)}, by the "
                f"gold reward: {named}."
            )
    return lines


def say_judges(standings: Standings, reference: str) -> str:
    "Where the second judge sees it otherwise."
    start = f"Against {standings.called(reference)} the second judge comes to"
    other = [
        f"{standings.called(model)} ({with_rate(standings, model, reference, 'second')})"
        for model in standings.methods
        if standings.verdict(model, reference) != standings.verdict(model, reference, "second")
    ]
    if not other:
        return f"{start} the same verdict on every method."
    return (
        f"{start} another verdict on {len(other)} of {len(standings.methods)} methods: "
        f"{', '.join(other)}."
    )


def say_missed(
    standings: Standings,
    model: str,
) -> str:  # empty where it won against all references
    "Against which references a method did not win."
    said = [
        f"it {SAID[found][0]} {standings.called(reference)}, "
        f"{with_rate(standings, model, reference)}"
        for reference in standings.compared
        if (found := standings.verdict(model, reference)) < 1
    ]
    return f"{standings.called(model)}: {'; '.join(said)}." if said else ""


def say_helped(standings: Standings, reference: str) -> str:
    "Which methods did not help against a reference."
    methods, name = standings.methods, standings.called(reference)
    missed = [
        standings.called(model) for model in methods if standings.verdict(model, reference) < 1
    ]
    if not missed:
        return f"Every one of the {len(methods)} methods helped against {name}, by the gold reward."
    return (
        f"{len(missed)} of {len(methods)} methods did not help against {name}, by the gold reward: "
        f"{joined(missed)}."
    )


def say_best(standings: Standings, reference: str) -> str:
    "Which method stands highest, and how many win."
    best = standings.ranked(standings.methods, reference)[0]
    won = with_verdict(standings, reference, 1)
    return (
        f"{len(won)} of {len(standings.methods)} methods win against "
        f"{standings.called(reference)}; {standings.called(best)} stands highest"
    )


def standing_rows(standings: Standings) -> pd.DataFrame:
    "All models, a row each."
    rows = []
    for model in standings.scores:
        row = {"model": standings.called(model)}
        for reference in standings.compared:
            for judge in ("gold", "second"):
                held = model in standings.candidates(reference)
                row[f"v. {standings.called(reference)}, {judge}"] = (
                    say_estimate(standings.win(model, reference, judge), True, 1) if held else None
                )
        row["right"] = say_estimate(standings.score(model, "right"), True, 1)
        row["tokens"] = say_estimate(standings.score(model, "tokens"), digits=1)
        row["gold reward"] = say_estimate(standings.score(model, "gold"))
        rows.append(row)
    return pd.DataFrame(rows)


def say_orpo(
    name: str,  # of a stage
    parameters: dict,  # its own
) -> str:
    "What an ORPO stage starts from and for how long it trains."
    start = "SFT" if parameters["model"].startswith("stage:") else "the base model"
    odds_alone = parameters["hyperparameters"].get("nll_weight") == 0
    term = ", the odds-ratio term alone" if odds_alone else ""
    return f"{called(name)} starts from {start} ({parameters['max_steps']} steps{term})"


def family(method: str) -> str:
    "A method without its form that divides by the answer's length, which is one of its tries."
    return method.removesuffix("_per_token")


class Grid:
    "The tries on which each method's setting was found."

    def __init__(
        self,
        runs: list[dict],  # as `prefkit study` writes them
        defaults: Callable[[str], dict],  # method -> its default hyper-parameters
    ):
        self.defaults = defaults
        self.tries = {}  # family -> its runs
        for run in runs:
            self.tries.setdefault(family(run["method"]), []).append(run)
        self.best = {name: max(tries, key=self.rate) for name, tries in self.tries.items()}
        self.varied = {name: self.varies(tries) for name, tries in self.tries.items()}

    @staticmethod
    def rate(run: dict) -> float:
        "Win rate of a try; one that failed is never the best."
        return run["evaluation"]["win_rate"]["rate"] if run["evaluation"] else -1.0

    @staticmethod
    def setting(run: dict) -> dict:
        "Learning rate and hyper-parameters that the grid varies or sets."
        rate = run["settings"]["learning_rate"]
        return {"method": run["method"], "learning_rate": rate, **run["hyperparameters"]}

    def varies(self, tries: list[dict]) -> set[str]:
        "What differs among the tries of one method."
        first = self.setting(tries[0])
        settings = [self.setting(run) for run in tries]
        return {name for each in settings for name in each if each[name] != first.get(name)}

    def say(self, values: dict) -> str:
        "A setting in a few words: what varies in the grid, and what is no default of the method."
        method = values["method"]
        usual, varied = self.defaults(method), self.varied.get(family(method), ())
        words = ["per token"] if method.endswith("_per_token") else []
        for name, value in values.items():
            if name != "method" and (value != usual.get(name) or name in varied):
                words.append(f"{name} {value:g}")
        return ", ".join(words)

    def row(self, run: dict) -> dict:
        "One line of the table of tries."
        judged, name = run["evaluation"], family(run["method"])
        start = {
            "method": called("control" if name == "sft" else name),
            "setting": self.say(self.setting(run)),
        }
        if not judged:
            return start | {"gold win rate v. SFT": f"failed: {run['error'].splitlines()[0]}"}
        gold, second = (
            say_interval(*(judged[which][end] for end in ("rate", "low", "high")), digits=1)
            for which in ("win_rate", "second_win_rate")
        )
        return start | {
            "best": "best" if run is self.best[name] else "",
            "gold win rate v. SFT": gold,
            "second judge": second,
            "right": f"{100 * judged['right']:.1f} %",
            "tokens": float(judged["tokens"]),
            "repetition": f"{100 * judged['repetition']:.1f} %",
        }

    def table(self) -> pd.DataFrame:
        "All tries, method by method."
        return pd.DataFrame([self.row(run) for tries in self.tries.values() for run in tries])

    def edges(self) -> list[str]:
        "Which best values are the smallest or the largest that were tried."
        lines = []
        for name, run in self.best.items():
            tried = [self.setting(each) for each in self.tries[name]]
            for key, value in self.setting(run).items():
                values = [each[key] for each in tried if key in each]
                if key == "method" or min(values) == max(values):
                    continue
                for end, extreme in (("smallest", min(values)), ("largest", max(values))):
                    if value == extreme:
                        who = called("control" if name == "sft" else name)
                        lines.append(f"{who}: {key} {value:g}, the {end} that was tried.")
        return lines

    def departures(
        self,
        stages: dict[str, dict],  # stage -> parameters, of the comparison that the grid was for
        stage_of: dict[str, str],  # where a stage has another name than its method
    ) -> list[str]:
        "Where the comparison did not take the best setting of the grid."
        lines = []
        for method, run in self.best.items():
            name, best = stage_of.get(method, method), self.setting(run)
            if name not in stages:
                continue
            used = {
                "method": stages[name].get("method", "sft"),
                "learning_rate": stages[name]["learning_rate"],
                **stages[name].get("hyperparameters", {}),
            }
            if any(best.get(key) != value for key, value in used.items()):
                lines.append(
                    f"{called(name)} was compared with {self.say(used)}, and the grid's best has "
                    f"{self.say(best)}."
                )
        return lines
