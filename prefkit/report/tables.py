"""The tables of the comparison with somebody else's report: speeds, win rates and times, limits of
tokens, settings.

A run is what `prefkit.runs.runner.open_run` gives.
"""

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from prefkit.report.claims import verdict
from prefkit.report.figures import draw_intervals, mean_interval, say_interval, say_seconds
from prefkit.report.panels import ends_of, interval_table
from prefkit.report.reported import COLUMNS, CONTROL, Reported, hours
from prefkit.report.standings import SCORES, clipped
from prefkit.report.views import View
from prefkit.report.words import JUDGE_NAMES, say_estimate

__all__ = [
    "Limits",
    "answers_each",
    "board_table",
    "mean_scores",
    "say_pace",
    "say_share",
    "say_told",
    "setting_table",
    "speed_of",
    "speed_table",
    "times_of",
    "win_numbers",
    "rate_table",
]

# Table 1: iterations per second.


def speed_of(view: View, stage: str, runs: dict) -> tuple[float, float, float] | None:
    "Iterations a second, a forward and a backward pass each; None where there is no log."
    return view.speed(stage, runs[stage].params["gradient_accumulation"])


def answers_each(run) -> int:
    "Answers in one iteration: a pair has two, a prompt of RLOO its samples."
    params = run.params
    if "samples" in params:
        return params["batch_size"] * params["samples"]
    pairs = run.info["pipeline"] == "preference" and not params.get("from_pairs")
    return params["batch_size"] * (2 if pairs else 1)


def speed_rows(reported: Reported) -> list[dict]:
    "The rows of table 1, and RLOO's, which it has not."
    rloo = {"stage": "rloo_v1_2", "method": "RLOO", "speed": None, "batch": 4, "max_length": 512}
    return [*reported.paper["table_1"]["rows"], rloo]


def speed_table(reported: Reported, views: list[View], runs: dict) -> pd.DataFrame:
    "Table 1 with the report's beside ours."

    def said(view, stage):
        found = stage and speed_of(view, stage, runs)
        if not found:
            return None if stage else "not run"
        return say_estimate(found, digits=1 if found[0] >= 10 else 2)

    rows = []
    for row in speed_rows(reported):
        stage = row["stage"]
        rows.append(
            {
                "method": row["method"],
                "reported": f"{row['speed']:.2f}" if row["speed"] else None,
                "reported batch": "–" if row["batch"] is None else str(row["batch"]),
                **{view.name: said(view, stage) for view in views},
                "answers in one": str(answers_each(runs[stage])) if stage else None,
            }
        )
    return pd.DataFrame(rows)


def say_pace(
    reported: Reported, view: View, runs: dict
) -> str:  # empty where there is no log of any
    "Fastest and slowest, and the two ways of SFT."
    found, there = {}, {}
    for row in speed_rows(reported):
        speed = row["stage"] and speed_of(view, row["stage"], runs)
        if speed:
            found[row["method"]] = speed[0]
        if row["speed"]:
            there[row["method"]] = row["speed"]
    if not found:
        return ""
    ours, theirs = (
        (max(each, key=each.__getitem__), min(each, key=each.__getitem__))
        for each in (found, there)
    )
    ratio, said = (each["SFT v1.2"] / each["SFT v2.6"] for each in (found, there))
    return (
        f"{'Over ' if view.several else ''}{view.start}: {ours[0]} makes most iterations a second, "
        f"{found[ours[0]]:.2f}, and {ours[1]} fewest, {found[ours[1]]:.2f}; in the report "
        f"{theirs[0]} most, {there[theirs[0]]}, and {theirs[1]} fewest, {there[theirs[1]]}. SFT "
        f"v1.2 is {ratio:.2f} times as fast as SFT v2.6, in the report {said:.2f} times, on "
        "another GPU."
    )


# Table 2: who wins, and in which time.


def times_of(one: dict, stage: str, runs: dict) -> tuple[float, float | None]:
    """Seconds of SFT, and of the stage itself with whatever else it needed, such as a reward model;
    None where the stage is SFT.
    """
    wall, needs = one["wall_seconds"], runs[stage].info["needs"]
    if runs[stage].info["pipeline"] == "sft":
        return wall[stage], None
    before = [need for need in needs if runs[need].info["pipeline"] == "sft"]
    own = [stage, *(need for need in needs if need not in before)]
    return sum(wall[need] for need in before), sum(wall[need] for need in own)


def mean_times(view: View, stage: str, runs: dict) -> tuple[float, float | None]:
    "The same, mean over the seeds of a view."
    sft, rest = zip(*(times_of(one, stage, runs) for one in view.found))
    return float(np.mean(sft)), None if rest[0] is None else float(np.mean(rest))


def say_share(reported: Reported, view: View, runs: dict) -> str:
    "How much of the time ORPO takes without SFT."
    ours = []
    for one in view.found:
        _, own = times_of(one, "orpo_v1_2", runs)
        sft, rest = times_of(one, "orpo_v1_1", runs)
        assert own is not None and rest is not None  # neither is SFT
        ours.append(own / (sft + rest))
    alone, with_sft = (
        hours(reported.rows[name]["sft_time"]) + hours(reported.rows[name]["rl_time"])
        for name in ("orpo_v1_2", "orpo_v1_1")
    )
    return (
        f"ORPO V1.2, without SFT, takes {view.say_share(ours)} of the time of ORPO V1.1 with its "
        f"SFT {view.scope}; by the report's table {100 * alone / with_sft:.0f} %, in its words "
        '"only 20%".'
    )


def percent(
    estimate: tuple[float, float, float] | None,
) -> str | None:
    "A share in whole percent, where there is one."
    return say_interval(*estimate) if estimate else None


def rate_table(reported: Reported, view: View, way: str) -> pd.DataFrame:
    "Table 2's win rates in one decoding, with the report's beside ours."
    rows = []
    for stage, row in reported.rows.items():
        made = {"model": row["model"]}
        # a space: two columns of one heading
        for reference, name, space in (("base", "base", ""), ("sft_v2_6", "SFT", " ")):
            rates = {
                judge: percent(
                    view.win(stage, reference, judge, way) if stage != reference else None
                )
                for judge in JUDGE_NAMES
            }
            said = row[COLUMNS[reference]]
            made[f"v. {name}, gold"] = rates["gold"]
            made[f"second{space}"] = rates["second"]
            made[f"reported{space}"] = None if said is None else f"{said:g} %"
        if view.has(stage, CONTROL):
            made["v. control, gold"] = percent(view.win(stage, CONTROL, "gold", way))
        rows.append(made)
    if view.has(CONTROL, "sft_v2_6"):
        rows.append(_control_row(reported, view, way))
    return pd.DataFrame(rows)


def _control_row(reported, view, way):
    "The control's win rates; the report has none."
    made = {"model": reported.called(CONTROL)}
    for reference, name, space in (("base", "base", ""), ("sft_v2_6", "SFT", " ")):
        made[f"v. {name}, gold"] = percent(view.win(CONTROL, reference, "gold", way))
        made[f"second{space}"] = percent(view.win(CONTROL, reference, "second", way))
    return made


def win_numbers(reported: Reported, view: View, way: str, runs: dict) -> pd.DataFrame:
    "Table 2 as numbers."
    rows = []
    for stage, row in reported.rows.items():
        sft, rest = mean_times(view, stage, runs)
        for reference in (*COLUMNS, "instruct", CONTROL):
            for judge in JUDGE_NAMES:
                if stage == reference or not view.has(stage, reference):
                    continue
                made = {"model": row["model"], "reference": reference}
                made |= {"judge": judge, "decoding": way}
                rate = view.win(stage, reference, judge, way)
                made |= ends_of(rate, ("rate", "low", "high"))
                made |= {"seconds_sft": sft, "seconds_after": rest}
                made["reported_percent"] = row.get(COLUMNS.get(reference, ""))
                rows.append(made)
    return pd.DataFrame(rows)


def board_table(
    reported: Reported,
    view: View,
    ways: dict[str, str],  # way of decoding -> in words
    runs: dict,
) -> pd.DataFrame:
    "Board score in every decoding, and times."

    def said_times(sft, rest):
        start = say_seconds(sft) if sft or rest is None else "0 s"
        return start if rest is None else f"{start} + {say_seconds(rest)}"

    rows = []
    for stage, row in reported.rows.items():
        made = {"model": row["model"]}
        for way in ways:
            name = "temperature" if way == view.main else way
            made[f"board, {name}"] = percent(reported.board(view, stage, way))
        boards = [row["old_board"], row["new_board"]]
        boards = ["–" if score is None else f"{score:g}" for score in boards]
        made["reported old / new"] = " / ".join(boards)
        made["time"] = said_times(*mean_times(view, stage, runs))
        after = f" + {row['rl_time']}" if row["rl_time"] else ""
        made["reported (h:min)"] = row["sft_time"] + after
        rows.append(made)
    return pd.DataFrame(rows)


def mean_scores(
    reported: Reported,
    view: View,
    rows: list[dict],  # scores of an evaluation: of one run, or over seeds
) -> pd.DataFrame:
    "Means over the answers, and how far each model has moved from the start."
    made, moved = [], view.distances()
    for row in rows:
        score = {name: view.scores_of(row, name) for name in SCORES}
        made.append(
            {
                "model": reported.called(row["model"]),
                "decoding": row["decoding"],
                "gold reward": say_interval(*score["gold"], False, 2),
                "right": say_interval(*score["right"], digits=1),
                "second judge": f"{score['second'][0]:.2f}",
                "tokens": f"{score['tokens'][0]:.1f}",
                "ended": f"{100 * score['ended'][0]:.1f} %",
            }
        )
        if moved:
            far = moved.get(row["model"])
            made[-1]["KL to SFT (nats)"] = say_interval(*far, False, 2) if far else "–"
    return pd.DataFrame(made)


def say_told(view: View) -> str:  # a paragraph
    "What the smallest differences are that several seeds would have told."
    return (
        f'"Told from": the smallest difference that {view.name} would have told in four cases of '
        "five (80 % power at 95 %, paired by seed; the spread between seeds is pooled over all "
        "comparisons of one kind, and their prompts are the same in every seed). What cannot be "
        "told may be as large as that."
    )


# Table 3: limits of tokens.


class Limits:
    "Board scores of models at two limits of tokens, over seeds."

    def __init__(
        self,
        reported: Reported,
        results: dict | None,  # as `prefkit seeds` writes them; None: there are none yet
    ):
        self.reported, self.rows = reported, reported.paper["table_3"]["rows"]
        self.scores = []  # of each seed: (model, limit) -> board score
        for one in results["seeds"].values() if results else ():
            self.scores.append(
                {
                    (row["model"], row["token_limit"]): row["rate"]
                    for row in one["win_rates"]
                    if row["reference"] == "instruct" and row["judge"] == "second"
                }
            )
        limits = sorted({limit for scores in self.scores for _, limit in scores})
        self.limit_of = {"short": limits[0], "long": limits[-1]} if limits else {}
        self.ended = [  # of each seed: (model, limit) -> share of answers
            {(row["model"], row["token_limit"]): row["ended"] for row in one.get("scores", [])}
            for one in (results["seeds"].values() if results else ())
        ]

    def own(self, tiny: dict) -> list[float]:
        "Board score of a model at a limit, in each seed."
        return [scores[tiny["model"], self.limit_of[tiny["limit"]]] for scores in self.scores]

    def score(self, tiny: dict) -> tuple[float, float, float]:
        "The same over seeds."
        return clipped(*mean_interval(self.own(tiny)))

    def cut_off(self, limit: str) -> float:
        "The share of answers that a limit cuts off, mean over models and seeds."
        shares = [
            1 - ended[row["tiny"]["model"], self.limit_of[limit]]
            for ended in self.ended
            for row in self.rows
        ]
        return sum(shares) / len(shares)

    def say_binding(self) -> str:  # a sentence; "" where it was not measured
        "Whether the limits are felt: how many answers each of them cuts off."
        if not all(self.ended) or not self.ended:
            return ""
        short, long = (100 * self.cut_off(limit) for limit in ("short", "long"))
        return (
            f"Asked for at most {self.limit_of['short']} tokens {short:.0f} % of the answers are "
            f"cut off, for at most {self.limit_of['long']} {long:.0f} %."
        )

    @staticmethod
    def trained_at(tiny: dict) -> int:
        "The limit with which a model was trained."
        return int(tiny["model"].split("_")[1])

    def table(self) -> pd.DataFrame:
        "Table 3 with ours beside the report's, where there is one."
        made = []
        for row in self.rows:
            tiny = row["tiny"]
            made.append(
                {
                    "model": row["model"],
                    "tuned at (reported)": row["tuning_tokens"],
                    "asked for (reported)": row["inference_tokens"],
                    "new board, reported": f"{row['new_board']:.4f}",
                }
            )
            if self.scores:
                made[-1] |= {
                    "tuned at (here)": self.trained_at(tiny),
                    "asked for (here)": self.limit_of[tiny["limit"]],
                    "board score (here)": percent(self.score(tiny)),
                }
        return pd.DataFrame(made)

    def claims(self) -> pd.DataFrame:
        "The report's claims on limits, paired by seed; empty where there are no seeds."
        rows = []
        for claim in self.reported.paper["limit_claims"] if self.scores else ():
            first, second = claim["first"], claim["second"]
            pairs = zip(self.own(first), self.own(second))
            change = mean_interval([one - two for one, two in pairs])
            points = [100 * value for value in change]
            side = 1 if claim["side"] == "above" else -1
            rows.append(
                {
                    "claim": claim["claim"],
                    "reported": f"{first['new_board']:g} against {second['new_board']:g}",
                    "difference here, points": say_interval(*points, percent=False, digits=1),
                    f"{len(self.scores)} seeds": verdict([change], side),
                }
            )
        return pd.DataFrame(rows)

    def draw(self) -> tuple[Figure, str]:  # the figure and its caption
        "Board scores at each limit, and the reported ones."
        rows = {}
        for row in self.rows:
            limits = f"{self.trained_at(row['tiny'])} → {self.limit_of[row['tiny']['limit']]}"
            rows[f"{row['model']}: {limits}"] = {
                "second judge": self.score(row["tiny"]),
                "reported, new board": [row["new_board"]] * 3,
            }
        top = max(self.rows, key=lambda row: self.score(row["tiny"])[0])
        limit = self.limit_of[top["tiny"]["limit"]]
        fig = draw_intervals(
            interval_table(rows),
            title=f"{top['model']} tuned at {self.trained_at(top['tiny'])} and asked for {limit} "
            "tokens scores highest",
            xlabel="win rate against tiny-instruct (%)",
            percent=True,
        )
        return fig, (
            f"Tokens in training → most tokens of an answer. Mean over {len(self.scores)} seeds "
            "with 95 % intervals (Student's t)."
        )


# Settings.

RATES = {"dpo": "dpo_rloo_topr", "rloo": "dpo_rloo_topr", "topr": "dpo_rloo_topr"}
OWN = {"dpo": "beta_dpo", "topr": "gamma_topr", "orpo": "lambda_orpo", "kto": "beta_kto"}


def setting_table(reported: Reported, runs: dict) -> pd.DataFrame:
    "What each stage was trained with, beside what the report names."
    rows, told = [], reported.paper["settings"]
    for stage in reported.rows:
        params = runs[stage].params
        method = (params.get("method") or "sft").removesuffix("_per_token")
        rate, own = told[f"learning_rate_{RATES.get(method, method)}"], OWN.get(method)
        start = params["model"].removeprefix("stage:")
        hyperparameters = (params.get("hyperparameters") or {}).items()
        rows.append(
            {
                "model": reported.called(stage),
                "from": reported.called("base" if start.startswith("data/") else start),
                "rows read": params["limit"],
                "rows a step": params["batch_size"] * params["gradient_accumulation"],
                "longest row": params["max_length"],
                "learning rate": f"{params['learning_rate']:g}",
                "reported rate": f"{rate['value']:g}",
                "own parameters": ", ".join(f"{name} {value:g}" for name, value in hyperparameters)
                or "–",
                "reported parameter": f"{own.replace('_', ' of ')} {told[own]['value']:g}"
                if own
                else "–",
            }
        )
    return pd.DataFrame(rows)
