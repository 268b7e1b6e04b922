"""What somebody else's report says, beside what was found here: its claims, its win rates and the
order that they give.
"""

import pandas as pd
from matplotlib.figure import Figure

from prefkit.core import DataError
from prefkit.report.claims import VERDICTS, Claim
from prefkit.report.figures import draw_intervals, nice_name, say_interval, share_interval
from prefkit.report.panels import interval_table
from prefkit.report.views import View
from prefkit.report.words import JUDGE_NAMES

__all__ = ["COLUMNS", "CONTROL", "Reported", "hours", "way_words", "ways_of"]

COLUMNS = {"base": "win_base", "sft_v2_6": "win_sft"}  # reference -> its column of table 2
OTHERS = {
    "base": "the base model",
    "instruct": "tiny-instruct",
    "reward_model": "reward model",
    "sft_chosen": "control",
}
CONTROL = "sft_chosen"  # what the better answers alone do: which the report has not


def way_words(
    name: str,  # of a way of decoding
    values: dict,  # its settings
) -> str:
    "A way of decoding in words."
    if not values.get("temperature"):
        return f"{name} decoding"
    return f"temperature {values['temperature']:g} and top-p {values.get('top_p', 1):g}"


def ways_of(
    runs: dict,  # stage -> its run
) -> dict[str, str]:  # name -> in words
    "The ways of decoding in which runs were evaluated."
    return {
        name: way_words(name, values)
        for run in runs.values()
        for name, values in (run.params.get("decodings") or {}).items()
    }


def hours(
    text: str,  # "7:40"
) -> float:
    "A time of the report as hours."
    whole, minutes = text.split(":")
    return float(whole) + float(minutes) / 60


class Reported:
    "The report as data (`data/reported/comparison.yaml`); models go by the stage that is theirs."

    def __init__(
        self,
        paper: dict,  # the file
    ):
        self.paper = paper
        self.rows = {row["stage"]: row for row in paper["table_2"]["rows"]}
        self.names = {stage: row["model"] for stage, row in self.rows.items()} | OTHERS
        # what began with SFT has a win rate against it
        self.tuned = [stage for stage, row in self.rows.items() if row["win_sft"] is not None]
        self.claims = [
            Claim(
                each["claim"],
                each["source"],
                1 if each["side"] == "above" else -1,
                tuple(map(tuple, each["comparisons"])),
            )
            for each in paper["claims"]
        ]
        self.shown = {each["claim"]: each.get("shown") for each in paper["claims"]}

    def called(self, name: str) -> str:
        "A model as the report names it."
        return self.names.get(name, nice_name(name))

    def rates(self, reference: str) -> dict[str, float]:  # stage -> percent
        "The reported win rates against a reference; none against what the report has not."
        if reference not in COLUMNS:
            return {}
        rates = {stage: row[COLUMNS[reference]] for stage, row in self.rows.items()}
        return {
            stage: rate for stage, rate in rates.items() if rate is not None and stage != reference
        }

    def say_compared(self, view: View, names: tuple[str, ...]) -> str:
        "The numbers of one comparison."
        if len(names) == 2:
            rate = say_interval(*view.win(*names), digits=1)
            return f"{self.called(names[0])} wins {rate} against {self.called(names[1])}"
        gap = [100 * value for value in view.gap(*names)]
        return (
            f"{self.called(names[0])} less {self.called(names[1])}: "
            f"{say_interval(*gap, percent=False, digits=1)} points of the win rate against "
            f"{self.called(names[2])}"
        )

    def say_rates(self, claim: Claim) -> str:
        "What the report's table 2 has for the models of a claim."
        shown = self.shown[claim.text] or {}
        if not shown:
            for *models, reference in claim.comparisons:
                known = [model for model in models if self.rows[model][COLUMNS[reference]]]
                if known:
                    shown.setdefault(reference, {}).update(dict.fromkeys(known))
        said = []
        for reference, models in shown.items():
            rates = [
                f"{self.called(each)} {self.rows[each][COLUMNS[reference]]:g}" for each in models
            ]
            said.append(f"v. {'base' if reference == 'base' else 'SFT'}: {', '.join(rates)}")
        return "; ".join(said)

    def claim_table(self, views: list[View]) -> pd.DataFrame:
        """All claims with their verdicts, and what decides them; over seeds with the smallest
        difference that they would have told, the spread pooled over comparisons of the same kind.
        """
        rows, told = [], {view: self.detectable(view) for view in views if view.several}
        for claim in self.claims:
            found = {view: claim.judge(view.difference) for view in views}
            count = f"of {len(claim.comparisons)}: " if len(claim.comparisons) > 1 else ""
            rows.append(
                {
                    "claim": f"{claim.text} ({claim.source})",
                    **{view.name: verdict for view, (verdict, _) in found.items()},
                    "reported (%)": self.say_rates(claim),
                    **{
                        f"what decides, {view.name}": count + self.say_compared(view, names)
                        for view, (_, names) in found.items()
                    },
                    **{
                        f"told from, {view.name} (points)": round(100 * told[view][len(names)], 1)
                        for view, (_, names) in found.items()
                        if view in told
                    },
                }
            )
        return pd.DataFrame(rows)

    def detectable(self, view: View) -> dict[int, float]:
        """The smallest difference that a view tells from none in four cases of five: of a win rate
        from one half (2 models), of two win rates (3).
        """
        kinds = {2: [], 3: []}
        for claim in self.claims:
            for names in claim.comparisons:
                kinds[len(names)].append(names)
        return {kind: view.detectable(named) for kind, named in kinds.items()}

    def verdicts(
        self, view: View, judge: str = "gold", decoding: str | None = None
    ) -> dict[str, str]:  # claim -> verdict
        "The verdict on each claim."

        def compared(names):
            return view.difference(names, judge, decoding)

        return {claim.text: claim.judge(compared)[0] for claim in self.claims}

    def say_verdicts(self, view: View) -> list[str]:
        "How many claims hold, and which do not."
        groups = {verdict: [] for verdict in VERDICTS.values()}
        for claim, verdict in self.verdicts(view).items():
            groups[verdict].append(claim)
        holds = groups.pop(VERDICTS[1])
        start = (
            f"Of {len(self.claims)} claims of the report {len(holds)} "
            f"hold{'s' if len(holds) == 1 else ''} {view.scope}, by the gold reward"
        )
        words = {VERDICTS[-1]: "Do not hold", VERDICTS[0]: "Cannot be told"}
        rest = [f"{words[each]}: {'; '.join(named)}." for each, named in groups.items() if named]
        return [f"{start}: {'; '.join(holds)}." if holds else f"{start}.", *rest]

    def say_otherwise(
        self,
        view: View,
        ways: dict[str, str],  # way of decoding -> in words
    ) -> list[str]:
        "Which verdicts another judge or another decoding changes."
        base, lines = self.verdicts(view), []
        others = {f"By {JUDGE_NAMES['second']}": self.verdicts(view, "second")}
        for way, words in ways.items():
            if way != view.main:
                others[f"With {words}"] = self.verdicts(view, "gold", way)
        for start, found in others.items():
            changed = [f"{claim} ({found[claim]})" for claim in base if found[claim] != base[claim]]
            said = (
                f"{start} {len(changed)} of {len(base)} claims "
                f"get{'s' if len(changed) == 1 else ''} another verdict"
            )
            lines.append(f"{said}: {'; '.join(changed)}." if changed else f"{said}.")
        return lines

    def say_winners(self, view: View) -> str:
        "How many of the methods win against SFT, and which stands highest here and there."
        wins = {stage: view.win(stage, "sft_v2_6") for stage in self.tuned}
        theirs = self.rates("sft_v2_6")
        ours, first = (
            max(wins, key=lambda stage: wins[stage][0]),
            max(theirs, key=theirs.__getitem__),
        )
        won = sum(low > 0.5 for _, low, _ in wins.values())
        which = "" if view.several else f" ({view.name})"
        return (
            f"{won} of {len(wins)} methods win against {self.called('sft_v2_6')} by the gold "
            f"reward {view.scope}{which}; {self.called(ours)} stands highest with "
            f"{say_interval(*wins[ours])}. The report puts {self.called(first)} first with "
            f"{theirs[first]:g} %."
        )

    def check_runs(self, runs: dict, home, command: str):
        "Raise `DataError` where a model of table 2 was not run."
        lacking = [stage for stage in self.rows if stage not in runs]
        if lacking:
            raise DataError(
                f"{home}: rows of table 2 without a run: {', '.join(lacking)}. Run the whole "
                f"experiment: {command}.",
                field="experiment",
                reason="missing",
            )

    @staticmethod
    def references(views: list[View]) -> list[str]:
        "What models are compared with: what the report has, and the control where it was run."
        controlled = all(view.has(CONTROL, "sft_v2_6") for view in views)
        return [*COLUMNS, *([CONTROL] if controlled else [])]

    def say_control(self, view: View) -> str:
        "What SFT on the chosen answers wins, which is their worth, and which methods beat it."
        if not view.has(CONTROL, "sft_v2_6"):
            return f"SFT on the chosen answers, the control, was not run {view.scope}."
        wins = {self.called(stage): view.win(stage, CONTROL) for stage in self.tuned}
        better = [name for name, (_, low, _) in wins.items() if low > 0.5]
        worse = [name for name, (_, _, high) in wins.items() if high < 0.5]
        start, rate = self.called("sft_v2_6"), say_interval(*view.win(CONTROL, "sft_v2_6"))
        listed = lambda names: f" ({', '.join(names)})" if names else ""
        return (
            f"The control, {start} trained on with the chosen answers alone, wins {rate} against "
            f"{start} {view.scope}: so much needs no preference method. Against the control "
            f"{len(better)} of {len(wins)} methods win{listed(better)}, {len(worse)} "
            f"lose{listed(worse)}."
        )

    def say_agreement(self, view: View, reference: str, judge: str = "gold") -> str:
        "Whether the win rates come in the report's order."
        value, low, high, n, p = view.agreement(self.rates(reference), reference, judge)
        plain = "whether the order is that of the report cannot be told from so few models"
        if p < 0.05:
            order = "that of the report" if value > 0 else "the reverse of the report's"
            plain = f"the order is {order} more than chance explains"
        correlation = say_interval(value, low, high, percent=False, digits=2)
        return (
            f"Win rates against {self.called(reference)} by {JUDGE_NAMES[judge]}: rank correlation "
            f"with the reported ones {correlation} {view.spread}, n = {n} models, exact p = "
            f"{p:.2f}: {plain}."
        )

    def draw_wins(
        self,
        view: View,
        reference: str,
        way: str,  # of decoding, in words
    ) -> tuple[Figure, str]:  # the figure and its caption
        "Win rates against one reference: both judges', and the reported ones."
        n, theirs = self.paper["table_2"]["prompts"], self.rates(reference)
        models = [stage for stage in (*self.rows, CONTROL) if stage != reference]
        models = [
            stage for stage in models if (stage, reference, "gold", view.main) in view.rates[0]
        ]
        models.sort(key=lambda stage: -view.win(stage, reference)[0])
        rows = {}
        for stage in models:
            found = {judge: view.win(stage, reference, judge) for judge in JUDGE_NAMES}
            if stage in theirs:
                found["reported"] = share_interval(theirs[stage] / 100 * n, n)
            rows[self.called(stage)] = found
        better = sum(view.win(stage, reference)[1] > 0.5 for stage in models)
        name = self.called(reference)
        fig = draw_intervals(
            interval_table(rows),
            title=f"{view.start}: {better} of {len(models)} models win against {name} by the gold "
            f"reward; {self.called(models[0])} stands highest",
            xlabel=f"win rate against {name} (%), ties counted half",
            percent=True,
            reference=(0.5, "no difference"),
        )
        said = (
            f" Reported: another model, other data and another judge "
            f"({self.paper['table_2']['judge']}); their intervals are those of {n} prompts, as the "
            "report gives none."
        )
        return fig, f"Win rates against {name}, {way}. {view.over}{said if theirs else ''}"

    def board(self, view: View, stage: str, way: str | None = None) -> tuple[float, float, float]:
        "The score that stands for the leaderboard's."
        return view.win(stage, "instruct", "second", way)

    def draw_board(
        self,
        view: View,
        ways: dict[str, str],  # way of decoding -> in words
    ) -> tuple[Figure, str]:  # the figure and its caption
        "The leaderboard's score in every decoding, and the reported one."
        models = sorted(self.rows, key=lambda stage: -self.board(view, stage)[0])
        groups = {"temperature": {stage: self.board(view, stage) for stage in models}}
        # the second group looks as "reported" does everywhere
        theirs = {stage: self.rows[stage]["new_board"] for stage in models}
        groups["reported, new board"] = {
            stage: (score,) * 3 for stage, score in theirs.items() if score is not None
        }
        for way in ways:
            if way != view.main:
                groups[way] = {stage: self.board(view, stage, way) for stage in models}
        tables = [
            interval_table({self.called(stage): {group: each} for stage, each in found.items()})
            for group, found in groups.items()
        ]
        best = self.called(models[0])
        fig = draw_intervals(
            pd.concat(tables, ignore_index=True),
            title=f'{view.start}: {best} has the highest "board" score, '
            f"{say_interval(*self.board(view, models[0]))}",
            xlabel="win rate against tiny-instruct by the second judge (%)",
            percent=True,
            reference=(0.5, "no difference"),
        )
        return fig, (
            "The second judge's win rate against tiny-instruct, for the report's leaderboard "
            f"score; temperature stands for {ways[view.main]}. {view.over} The report's new "
            "leaderboard has no interval."
        )

    def rows_an_iteration(self) -> pd.DataFrame:
        "From the report's own speed and time and the size of its data."
        rows = []
        for row in self.paper["table_1"]["rows"]:
            if not row["stage"]:
                continue
            is_sft = row["method"].startswith("SFT")
            data = "smol-smoltalk" if is_sft else "ultrafeedback_binarized"
            time = self.rows[row["stage"]]["sft_time" if is_sft else "rl_time"]
            iterations = row["speed"] * 3600 * hours(time)
            size = self.paper["rows"][data]["value"]
            rows.append(
                {
                    "method": row["method"],
                    "speed": f"{row['speed']:.2f}",
                    "time": time,
                    "iterations": round(iterations),
                    "rows": size,
                    "rows in an iteration": size / iterations,
                    "batch it names": "–" if row["batch"] is None else str(row["batch"]),
                }
            )
        return pd.DataFrame(rows)

    def say_odd(
        self,
        iterations: pd.DataFrame,  # as `rows_an_iteration` gives it
        tolerance: float = 0.25,
    ) -> str:
        "For which methods tables 1 and 2 do not agree."
        odd = []
        for _, row in iterations.iterrows():
            found, batch = row["rows in an iteration"], row["batch it names"]
            if batch != "–" and abs(found / float(batch) - 1) > tolerance:
                odd.append(
                    f"{row['method']} ({found:.1f} rows an iteration where it names {batch})"
                )
        return f" They do not for {' and '.join(odd)}." if odd else " They do, within a quarter."
