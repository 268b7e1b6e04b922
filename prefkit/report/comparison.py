"""What the page on the comparison report says besides its tables and curves: its claims with a
sign, two readings of one SFT, searches, four epochs, LoRA's memory, checkpoints.
"""

from pathlib import Path

import pandas as pd
import yaml

from prefkit.core import resolve_path
from prefkit.report.claims import VERDICTS
from prefkit.report.figures import say_interval
from prefkit.report.output import Output
from prefkit.report.page import Page
from prefkit.report.replication import seed_curve
from prefkit.report.reported import CONTROL, Reported
from prefkit.report.standings import Standings, made_by, of_first_decoding, of_world
from prefkit.report.tables import say_told
from prefkit.report.views import View
from prefkit.report.words import joined, number, say_estimate

__all__ = [
    "SEARCHED",
    "TERMS",
    "checkpoint_table",
    "epoch_curves",
    "put_made_with",
    "put_readings",
    "put_report_claims",
    "put_settings",
    "put_token_limits",
    "reading_table",
    "say_memory",
    "say_passes",
    "search_spaces",
    "signed_claims",
    "winner_table",
]

MARKS = {VERDICTS[1]: "✓", VERDICTS[-1]: "✗", VERDICTS[0]: "?"}
SEARCHED = {"DPO": "dpo_report", "ORPO": "orpo_report"}  # method -> config of its search
PASSES = {"DPO": "dpo_4", "ORPO": "orpo_4"}  # panel -> stage of data/configs/ledger/epochs.yaml
READINGS = {
    "response": "with the end-of-turn token",
    "no_end": "without it: what stands as V1.2 on this page",
}
TERMS = (
    "Gold: the tiny world's true reward, which no method but the upper bounds sees. Second judge: "
    "another one, which looks at manner first. tiny-instruct: the tiny world's stand-in for "
    "Qwen2.5-0.5B-Instruct. Models are called as the report calls them: V1.1, V2.6 and the like "
    "are its versions. Control: SFT V2.6 trained on with the chosen answers of the pairs alone, "
    "which the report has not. Win rate: how often a judge likes an answer better, ties counted "
    "half."
)


def winner_table(reported: Reported, view: View) -> pd.DataFrame:  # a row for each model
    "Win rates against SFT by gold, ours and the report's, the best first."
    rows, theirs = [], reported.rates("sft_v2_6")
    models = [*reported.tuned, *([CONTROL] if view.has(CONTROL, "sft_v2_6") else [])]
    for stage in sorted(models, key=lambda stage: -view.win(stage, "sft_v2_6")[0]):
        rows.append(
            {
                "model": reported.called(stage),
                "wins against SFT": say_interval(*view.win(stage, "sft_v2_6")),
                "reported": f"{theirs[stage]:g} %" if stage in theirs else None,
            }
        )
    return pd.DataFrame(rows)


def signed_claims(
    claims: pd.DataFrame,  # as `Reported.claim_table` makes it
    views: list[View],
) -> pd.DataFrame:  # a row for each claim
    "Claims with a sign for each verdict; what decides them is left out."
    signs = {
        view.name: [f"{MARKS[said]} {said}" for said in claims[view.name]] for view in views[::-1]
    }
    return claims[["claim"]].assign(**signs, reported=claims["reported (%)"])


def reading_table(
    found: dict,  # what `prefkit seeds` wrote of data/configs/ledger/chat.yaml, one decoding
) -> pd.DataFrame:  # a row for each reading
    "SFT whose prompt is masked, by whether the end-of-turn token is learned."
    standings = Standings(found)
    rows = []
    for model, name in READINGS.items():
        shares = {"right": "right", "ended": "ended by itself"}
        told = {label: standings.score(model, column) for column, label in shares.items()}
        tokens = say_estimate(standings.score(model, "tokens"), digits=1)
        shown = {label: say_interval(*ends) for label, ends in told.items()}
        rows.append({"SFT V1.2 read": name} | shown | {"tokens": tokens})
    return pd.DataFrame(rows)


def search_spaces(
    folder: str | Path = "data/configs/searches",
) -> pd.DataFrame:  # a row for each searched setting
    "The report's searches as configs of this project have them."
    rows = []
    for method, name in SEARCHED.items():
        path = resolve_path(Path(folder) / f"{name}.yaml")
        search = yaml.safe_load(path.read_text(encoding="utf-8"))
        for setting, space in search["space"].items():
            rows.append(
                {
                    "method": method,
                    "setting": setting.split(".")[-1],
                    "from": space["low"],
                    "to": space["high"],
                    "trials": search["trials"],
                    "run it": f"prefkit search {folder}/{name}.yaml",
                }
            )
    return pd.DataFrame(rows)


def epoch_curves(
    seeds: dict[str, dict],  # what `prefkit seeds` found in each, with lines
    split: str,  # train or validation
) -> dict[str, pd.DataFrame]:  # as `draw_panels` takes them
    "The losses of DPO and ORPO over four passes, a panel each."
    return {
        f"{method}'s loss": seed_curve(seeds, stage, "loss", method, split)
        for method, stage in PASSES.items()
    }


def say_passes(
    seeds: dict[str, dict],
    passes: int = 4,
) -> str:  # a sentence
    "After which pass validation loss is lowest, and how far it is from there at the end."
    said = []
    for method, stage in PASSES.items():
        curve = seed_curve(seeds, stage, "loss", method, "validation").set_index("x")["value"]
        lowest = round(curve.idxmin() * passes / curve.index.max(), 1)
        rise = curve.iloc[-1] - curve.min()
        where = f"after {lowest:g} of {passes} passes ({number(rise, 3)} less than at the end)"
        said.append(f"{method}'s " + (where if rise else "at the end"))
    return f"Validation loss is lowest: {' and '.join(said)}"


def say_memory(
    bench: dict,  # data/results/bench/cpu.json
) -> str:  # a sentence
    "What LoRA does to memory here, beside what the report says of it."
    options = bench["options"]
    cases = options["cases"]
    whole, lora = (cases[name]["peak_bytes"] / 2**30 for name in ("prefkit", "prefkit_lora"))
    more = "more" if lora > whole else "less"
    return (
        "By the report LoRA allowed twice the batch on a laptop. Here a step of "
        f"{options['batch']} pairs of {options['longest']} tokens with {options['shape']} weights "
        f"on a CPU takes {number(lora, 2)} GiB with LoRA, {number(whole, 2)} without, {more} and "
        "not half: of so small a model the optimiser's state, which LoRA saves, is a small part."
    )


def checkpoint_table(reported: Reported, runs: dict) -> pd.DataFrame:  # a row for each checkpoint
    "The report's checkpoints on the Hub, and the stage of this project that is made in their way."
    stages = {name: stage for stage, name in reported.names.items()}
    rows = [
        {**row, "stage here": stage if (stage := stages.get(row["model"])) in runs else None}
        for row in reported.paper["table_4"]["rows"]
    ]
    return pd.DataFrame(rows).rename(columns=lambda name: name.replace("_", " "))


# ---- sections of the page


def put_report_claims(
    page: Page,
    claims: pd.DataFrame,  # as `Reported.claim_table` makes it
    views: list[View],
    numbers: Path,  # the same table as CSV
):
    "The twelve claims on table 2, each with its sign, and folded what decides it."
    page.section(
        "The report's claims",
        "Holds: every interval lies on the claim's side of no difference. Does not hold: one lies "
        "on the other side. Cannot be told: neither. By the gold reward.",
    )
    page.table(signed_claims(claims, views), numbers=numbers)
    page.folded("What decides each: the comparison that stands worst for the claim", claims)
    for view in views:
        if view.several:
            page.text(say_told(view))


def put_readings(
    page: Page,
    found: dict | None,  # what `prefkit seeds` wrote; None: nothing yet
    path: str,  # of it
):
    "What SFT V1.2 may have been, and what becomes of either."
    page.section(
        "Section 4.3: SFT V1.2 in two readings",
        '"The prompt is input, the completion the label" leaves open whether the model learns to '
        "end its turn. Read without the end-of-turn token V1.2 cannot stop, which is why it stands "
        "so low on this page and why every comparison with it rests on that reading.",
    )
    if not found:
        page.text(f"Not on this page: {path} is not there. Make it: its config names the command.")
        return
    readings = reading_table(of_first_decoding(found))
    page.table(readings, "SFT of the base model with the prompt masked, over the ledger's seeds.")


def put_token_limits(
    page: Page,
    out: Output,  # with `table_3` and `limit_claims`, where there are seeds
    table: pd.DataFrame,  # of `Limits`
    claims: pd.DataFrame,  # likewise
    missing: str,  # why there are no seeds; "": there are
    binding: str = "",  # how many answers the limits cut off
):
    "Table 3, the report's and ours."
    tokens = (
        "Tokens of a row in training and most tokens of an answer, on requests whose answers are "
        f"long. The tiny world's rows are shorter than UltraFeedback's: {{}}. {binding}"
    )
    if not missing:
        stand = dict(sorted(zip(table["tuned at (here)"], table["tuned at (reported)"])))
        given = [f"{here} tokens in training stand for {there:,}" for here, there in stand.items()]
        tokens = tokens.format(joined(given))
    page.section("Appendix A.2: limits of tokens (table 3)", "" if missing else tokens)
    board = "The report's new leaderboard"
    if missing:
        page.text(f"Ours is not on this page: {missing}")
        page.table(table, f"{board}.", numbers=out.saved["table_3"])
        return
    out.put(page, "table_3")
    beside = f"{board}, and the second judge's win rate against tiny-instruct here."
    page.table(table, beside, numbers=out.saved["table_3"])
    caption = "The report's claims on limits (section 5.1.2, section 5.2), over seeds."
    page.table(claims, caption, numbers=out.saved["limit_claims"])


def put_settings(
    page: Page,
    reported: Reported,
    settings: pd.DataFrame,  # as `setting_table` makes it
    numbers: Path,  # the same as CSV
):
    "Settings of both, and where the report contradicts itself."
    page.section(
        "What is otherwise here",
        "Same methods, same order of training, other sizes. Learning rates and each method's own "
        "parameter were searched on the tiny world (data/configs/tiny/offline_grid.yaml); the "
        "report's belong to a model 500 times larger.",
    )
    page.table(settings, "Settings beside the report's.", numbers=numbers)
    page.section("Slips in the report", "Kept in its figures as they stand.")
    names = {"source": "where", "says": "it says", "found": "what stands against it"}
    page.table(pd.DataFrame(reported.paper["slips"]).rename(columns=names))
    iterations = reported.rows_an_iteration()
    agree = (
        "Do tables 1 and 2 agree? Speed times time is a number of iterations; the data over them "
        "are the rows of each."
    )
    page.table(iterations, agree + reported.say_odd(iterations), digits=1)


def put_made_with(
    page: Page,
    reported: Reported,
    command: str,  # that made this run, and draws the page
    seed: int,  # of this run
    runs: dict,  # stage -> its run
    files: dict[str, dict | None],  # what -> results over seeds; None: not there
):
    "Commands, dates, revisions and machines."
    page.section("Made with")
    known = {what: one for what, one in files.items() if one}
    page.code("\n".join([command, *(one["command"] for one in known.values())]))
    last = max((run.info for run in runs.values()), key=lambda info: info["finished"])
    about = {f"this run, seed {seed}": last | {"date": last["finished"][:10]}} | known
    rows = [
        {"what": what, **made_by(one, ("torch",), pairs=of_world(one))}
        for what, one in about.items()
    ]
    paper = reported.paper
    source = f"The report's figures: {paper['report']} ({paper['authors']})."
    page.table(pd.DataFrame(rows).rename(columns={"date": "when"}), source)
