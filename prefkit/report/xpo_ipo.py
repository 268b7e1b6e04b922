"""What the page on XPO, IPO and synthetic pairs draws that no other page has: the ladder from a
loss that stays at log 2 to one that falls, win rates by number of pairs, and the report's scores
beside ours.
"""

import math
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from prefkit.report.figures import draw_intervals, looks, say_interval, set_legend, set_title
from prefkit.report.panels import ends_of, interval_table
from prefkit.report.replication import last_value
from prefkit.report.standings import TRIPLE, Standings, flat
from prefkit.report.words import joined, number, say_estimate

__all__ = [
    "CHAT",
    "LOG_2",
    "LOSSES",
    "OF_PAIRS",
    "RUNGS",
    "SEARCHES",
    "SOLVERS",
    "SYNTHETIC",
    "OF_XPO",
    "chat_table",
    "draw_ladder",
    "draw_scaling",
    "draw_shares",
    "ladder_table",
    "our_scores",
    "our_settings",
    "reported_scores",
    "most_of",
    "say_ladder",
    "say_scaling",
    "scaling_table",
    "solved_table",
    "synthetic_table",
    "trial_table",
]

LOG_2 = math.log(2)  # the loss of a model without a preference

# label of a panel -> column, split
LOSSES = {"training loss": ("loss", "train"), "validation loss": ("loss", "validation")}
OF_PAIRS = {
    "training loss": ("loss", "train"),
    "log-ratio, chosen (nats)": ("logratio_chosen", "validation"),
    "log-ratio, rejected (nats)": ("logratio_rejected", "validation"),
}
OF_XPO = {
    "training loss": ("loss", "train"),
    "gradient norm": ("grad_norm", "train"),
    "bonus": ("bonus", "train"),
}
# stage or model -> its name on the page
RUNGS = {  # each different from the one above
    "dpo_own": "the numbers of figure 2",
    "dpo_flat": "a rate as small for this model",
    "dpo_rate": "fifty times that rate",
    "dpo": "beta .2 and a schedule",
    "dpo_aligned": "labels that hardly err",
}
SYNTHETIC = {
    "dpo_own": "DPO, the world's pairs",
    "dpo_synthetic": "DPO, the server's pairs",
    "sft_synthetic": "SFT, the server's chosen answers",
}
SOLVERS = {
    "sft": "SFT, all weights",
    "sft_lora": "SFT with LoRA",
    "rloo_shaped": "RLOO, shaped reward",
    "rloo_exact": "RLOO, exact reward",
    "dpo": "DPO on own answers",
}
CHAT = {
    "response": "the answer alone is learned",
    "conversation": "prompt and answer are learned",
    "no_end": "no end-of-turn token is learned",
    "no_system": "no system prompt",
    "zephyr": "marks of turns without tokens of their own",
}
SEARCHES = {
    "sft": "Learning rates of SFT with all weights",
    "lora": "Learning rates of SFT with LoRA",
    "rloo": "Ten of the report's 54 settings of RLOO, by its shaped reward on validation puzzles",
}


def ladder_table(
    seeds: dict[str, dict],  # what `prefkit seeds` found in each
    rungs: dict[str, str] = RUNGS,  # stage -> what is different from the one above
) -> pd.DataFrame:  # a row for each rung
    "Validation loss, accuracy and log-ratio of chosen answers of every rung at the end."
    columns = {
        "loss": "loss",
        "accuracy": "reward_accuracy",
        "log_ratio": "logratio_chosen",
    }
    rows = []
    for stage, change in rungs.items():
        ends = {name: last_value(seeds, stage, column) for name, column in columns.items()}
        rows.append({"stage": stage, "change": change, **flat(ends)})
    return pd.DataFrame(rows)


def draw_ladder(
    table: pd.DataFrame,  # as `ladder_table` makes it
    title: str,  # a sentence that says what to see
) -> Figure:  # the figure, its numbers in fig.data
    "The validation loss of each rung beside that of a model without a preference."
    rows = {
        row["change"]: tuple(row[f"loss_{end}"] for end in ("mean", "low", "high"))
        for row in table.to_dict("records")
    }
    return draw_intervals(
        interval_table(rows),
        title=title,
        xlabel="DPO's validation loss at the end (nats)",
        reference=(LOG_2, "log 2: no preference"),
    )


def say_ladder(
    table: pd.DataFrame,  # as `ladder_table` makes it
    far: float = 0.02,  # nats below log 2 that count as having left it
) -> str:  # a sentence
    "Which rungs leave log 2, and which do not."
    left = [row["change"] for row in table.to_dict("records") if row["loss_high"] < LOG_2 - far]
    stays = [row["change"] for row in table.to_dict("records") if row["change"] not in left]
    if not left:
        return "DPO's loss leaves log 2 on no rung"
    if not stays:
        return "DPO's loss leaves log 2 on every rung"
    return (
        f"DPO's loss stays within {number(far, 2)} nats of log 2 with {joined(stays)}; it falls "
        f"with {joined(left)}"
    )


def scaling_table(
    found: dict,  # what `prefkit seeds` wrote
    stages: dict[str, int],  # model -> pairs that it was trained on
    once: tuple[dict, str, int] | None = None,  # another such file, its model, its pairs
    reference: str = "sft",
) -> pd.DataFrame:  # a row for each number of pairs
    "Win rates against SFT and the share of right answers, by the number of pairs."

    def row(standings, model, pairs):
        judged = {judge: standings.win(model, reference, judge) for judge in ("gold", "second")}
        right = standings.score(model, "right")
        told = {"pairs": pairs, "seeds": len(standings.seeds)}
        return told | flat(judged | {"right": right})

    standings = Standings(found)
    rows = [row(standings, model, pairs) for model, pairs in stages.items()]
    if once:
        file, model, pairs = once
        rows.append(row(Standings(file), model, pairs))
    return pd.DataFrame(rows).sort_values("pairs", ignore_index=True)


def draw_scaling(
    table: pd.DataFrame,  # as `scaling_table` makes it
    title: str,  # a sentence that says what to see
) -> Figure:  # the figure, its numbers in fig.data
    "Win rates by both judges, and below them right answers; one seed alone is hollow."
    panels = {"win rate (%)": ("gold", "second"), "right (%)": ("right",)}
    names = {"gold": "by gold", "second": "by the second judge", "right": "right"}
    fig, axes = plt.subplots(2, 1, sharex=True, figsize=(5.4, 4.6))
    for ax, (label, columns) in zip(axes, panels.items()):
        for column, look in zip(columns, looks(names.values()).values()):
            value, low, high = (100 * table[f"{column}_{end}"] for end in ("mean", "low", "high"))
            shape: dict[str, Any] = dict(color=look.colour, linestyle=look.line, capsize=2.5)
            error = [(value - low).clip(lower=0), (high - value).clip(lower=0)]
            shape |= dict(marker=look.marker or "o", label=names[column])
            ax.errorbar(table["pairs"], value, yerr=error, **shape)
            alone = table["seeds"] == 1
            hollow: dict[str, Any] = dict(color=look.colour, markerfacecolor="white", label="_")
            ax.plot(table["pairs"][alone], value[alone], look.marker or "o", **hollow)
        ax.set_ylabel(label)
    axes[0].axhline(50, color="#555555", linewidth=1.2, linestyle=(0, (1, 1.5)))
    axes[1].set(xlabel="pairs", xscale="log")
    axes[1].set_xticks(table["pairs"])
    axes[1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes[1].xaxis.set_minor_formatter(NullFormatter())
    set_title(fig, title)
    set_legend(fig, *axes[0].get_legend_handles_labels())
    fig.data = table  # ty: ignore[missing-attribute]
    return fig


def say_scaling(
    table: pd.DataFrame,  # as `scaling_table` makes it
) -> str:  # a sentence
    "Win rate by gold and right answers at the fewest and at the most pairs."
    ends = [table.iloc[place] for place in (0, -1)]

    def said(row, column):
        return say_estimate(tuple(row[f"{column}_{end}"] for end in TRIPLE), True, 0)

    wins, right = ([said(row, column) for row in ends] for column in ("gold", "right"))
    fewest, most = (f"{row['pairs']:,.0f}" for row in ends)
    return (
        f"From {fewest} to {most} pairs DPO's win rate against SFT goes from {wins[0]} to "
        f"{wins[1]}, its right answers from {right[0]} to {right[1]}"
    )


def reported_scores(
    paper: dict,  # the report
    ours: dict[str, tuple[str, tuple[float, float, float]]],  # its stage -> what, and our number
) -> pd.DataFrame:  # a row for each score of the report
    "The report's scores, and what is measured here in the same place."
    rows = []
    for told in paper["scores"]:
        what, ends = ours.get(told["stage"], ("", None))
        here = say_interval(*ends) if ends else None
        rows.append(
            {
                "model": told["model"],
                "pairs": f"{told['pairs']:,}" if told["pairs"] else None,
                "reported": f"{told['score']:g}",  # as the report writes it
                "stands in": told["source"],
                "here": here,
                "what": what or None,
            }
        )
    return pd.DataFrame(rows)


def solved_table(
    found: dict,  # what `prefkit seeds` wrote on Countdown
    names: dict[str, str] = SOLVERS,  # model -> its name on the page
) -> pd.DataFrame:  # a row for each model
    "The share of puzzles that models solve, greedily and sampled."
    told = {row["model"]: row for row in found["over_seeds"]["scores"]}
    rows = []
    for model, name in names.items():
        ends = {
            column: tuple(told[model][column][end] for end in TRIPLE)
            for column in ("right", "sampled")
        }
        rows.append({"model": name, **flat(ends)})
    return pd.DataFrame(rows)


def synthetic_table(
    found: dict,  # what `prefkit seeds` wrote on synthetic pairs; one decoding
) -> pd.DataFrame:  # a row for each model
    "Win rates against the SFT model that all of them began with."
    standings = Standings(found)
    rows = []
    for model, name in SYNTHETIC.items():
        wins = {judge: standings.win(model, "sft", judge) for judge in ("gold", "second")}
        rows.append({"model": name} | flat(wins))
    return pd.DataFrame(rows)


def chat_table(
    found: dict,  # what `prefkit seeds` wrote on templates and masks; one decoding
) -> pd.DataFrame:  # a row for each way
    "What becomes of SFT by what of a conversation it sees, and how."
    standings = Standings(found)
    columns = ("gold", "right", "ended", "tokens")
    return pd.DataFrame(
        [{"SFT": name} | flat(standings.columns(way, *columns)) for way, name in CHAT.items()]
    )


def most_of(
    table: pd.DataFrame,
    label: str,  # its column of names
    column: str,  # an estimate
) -> tuple[str, str]:  # a name, and its share in words
    "The row with the largest share."
    best = table.sort_values(f"{column}_mean").iloc[-1]
    share = say_estimate(tuple(best[f"{column}_{end}"] for end in TRIPLE), True, 0)
    return best[label], share


def our_scores(
    standings: Standings,
    synthetic: pd.DataFrame,  # as `synthetic_table` makes it; empty: not made
    solved: pd.DataFrame,  # as `solved_table` makes it; empty: not made
) -> dict[str, tuple]:  # as `reported_scores` takes them
    "What is measured here in the place of each score of the report."
    pairs = {"dpo": ("dpo_many", "19,200"), "dpo_5k": ("dpo", "4,800")}
    pairs |= {method: (method, "4,800") for method in ("xpo", "ipo")}
    ours = {
        told: (f"win rate against SFT, {count} pairs", standings.win(model, "sft"))
        for told, (model, count) in pairs.items()
    }

    def ends(table, name, column):
        (row,) = table[table["model"] == name].to_dict("records")
        return tuple(row[f"{column}_{end}"] for end in TRIPLE)

    if len(synthetic):
        found = ends(synthetic, SYNTHETIC["dpo_synthetic"], "gold")
        ours["synthetic"] = ("win rate against SFT", found)
    if len(solved):
        for told, model in {"sft": "sft", "sft_lora": "sft_lora", "rloo": "rloo_shaped"}.items():
            found = ends(solved, SOLVERS[model], "right")
            ours[f"countdown_{told}"] = ("puzzles solved, greedily", found)
    return ours


def our_settings(
    stages: dict[str, dict],  # stage -> its parameters
) -> dict[str, Any]:  # as `stated_settings` takes them
    "What was taken here for the settings that the report states."
    own, flat_run = stages["dpo_own"], stages["dpo_flat"]
    tau = stages["ipo_flat"]["hyperparameters"]["tau"]
    return {
        "model": "a million parameters, trained here",
        "sft_rows": stages["sft"]["limit"],
        "sft_schedule": stages["sft"]["schedule"],
        "dpo_learning_rate": [own["learning_rate"], flat_run["learning_rate"]],
        "dpo_beta": [own["hyperparameters"]["beta"], flat_run["hyperparameters"]["beta"]],
        "dpo_weight_decay": own["weight_decay"],
        "dpo_epsilon": own["adam_epsilon"],
        "dpo_pairs": own["limit"],
        "dpo_batch_size": own["batch_size"],
        "dpo_gradient_accumulation": own["gradient_accumulation"],
        "dpo_clipping": own["max_grad_norm"],
        "sweep_section_5": {"alpha": [0.1, 0.01], "tau": tau},
        "precision": "float32",
    }


def draw_shares(
    table: pd.DataFrame,  # a column that names rows, and estimates as `flat` writes them
    label: str,  # that column
    groups: dict[str, str],  # estimate -> its name in the legend
    title: str,  # a sentence that says what to see
    xlabel: str,  # with unit
) -> Figure:  # the figure, its numbers in fig.data
    "Shares with their intervals, a row each."
    rows = [
        {
            "row": row[label],
            "group": name,
            **ends_of(tuple(row[f"{column}_{end}"] for end in TRIPLE)),
        }
        for row in table.to_dict("records")
        for column, name in groups.items()
    ]
    return draw_intervals(pd.DataFrame(rows), title=title, xlabel=xlabel, percent=True)


def trial_table(
    found: dict,  # what `prefkit search` wrote
) -> pd.DataFrame:  # a row for each finished trial, the best first
    "The settings of a search and what came of each."
    objective = found["objective"]
    done = [one for one in found["trials"] if one["state"] == "complete"]
    done.sort(key=lambda one: one["objective"], reverse=objective["direction"] == "maximize")
    return pd.DataFrame(
        [
            {name.split(".")[-1].replace("_", " "): value for name, value in one["values"].items()}
            | {objective["column"]: one["objective"]}
            for one in done
        ]
    )
