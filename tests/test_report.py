"""The report notebook on run folders of the documented format.

Their numbers are invented by a seed, only to test the drawing.
"""

import ast, json, re, shutil, subprocess, sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from prefkit.core import DataError, PrefkitError, project_root, write_json, write_jsonl, write_text
from prefkit.data.records import RowReport
from prefkit.report import answers, stages
from prefkit.report.curves import course, curve, ends_of_curve, mean_curve
from prefkit.report.page import Page
from prefkit.runs.config import read_notebook
from helpers.pages import Reader, draw_report, page_of, words_of

ROOT = project_root()
REPORT = ROOT / "nbs" / "reports" / "first_path.ipynb"
KINDS = ("arithmetic", "counting", "decline", "fact", "list", "repeat", "sort", "two_step")
TOTALS = {"base": -0.4, "sft": 1.6, "control": 1.62, "dpo": 2.2}


def course_to(rng, start, end, steps, noise):
    return (
        start
        + (end - start) * (1 - np.exp(-np.arange(steps) / (steps / 4)))
        + rng.normal(0, noise, steps)
    )


def write_training(folder, name, rng, *, preference, method="", steps=40, probe=True):
    "metrics.jsonl as the trainer writes it."
    loss = (
        course_to(rng, 0.69, 0.55, steps, 0.02)
        if preference
        else course_to(rng, 2.4, 0.6, steps, 0.08)
    )
    chosen, rejected = (
        course_to(rng, -16, -20 if preference else -9, steps, 0.3),
        course_to(rng, -17, -31 if preference else -14, steps, 0.3),
    )
    lines = []
    for place in range(steps):
        line = {
            "step": (place + 1) * 10,
            "epoch": place / steps,
            "split": "train",
            "loss": float(loss[place]),
            "learning_rate": 1e-4,
            "grad_norm": float(rng.gamma(2)),
            "tokens_per_second": 9000.0,
            "seconds": place * 1.5,
        }
        pairs = {"logps_chosen": float(chosen[place]), "logps_rejected": float(rejected[place])}
        if preference:
            line |= pairs | {
                "logratio_chosen": float(chosen[place] + 16),
                "logratio_rejected": float(rejected[place] + 17),
                "reward_margin": 0.3,
                "reward_accuracy": 0.7,
            }
        lines.append(line)
        if place % 8 == 7:
            lines.append(
                {
                    **line,
                    **(pairs if probe else {}),
                    "split": "validation",
                    "loss": float(loss[place]) + 0.01,
                }
            )
    write_jsonl(folder / "metrics.jsonl", lines)
    write_jsonl(
        folder / "samples.jsonl",
        [
            {
                "step": step,
                "prompt": [{"role": "user", "content": f"question {number} ?"}],
                "answer": f"answer at {step}",
            }
            for step in (0, 200)
            for number in range(4)
        ],
    )


def write_run(home, name, order, params, **info):
    folder = home / name
    write_text(folder / "params.yaml", json.dumps(params))  # JSON is YAML
    write_json(
        folder / "run.json",
        {
            "experiment": home.name,
            "stage": name,
            "pipeline": "x",
            "needs": [],
            "status": "done",
            "seed": 0,
            "wall_seconds": 30.0 + 40 * order,
            "attempts": 1,
            "finished": f"2026-01-01T00:0{order}:00+0000",
            "device": "cpu",
            "threads": 2,
            "peak_memory_mb": 900,
            "metrics": {},
            "data": {},
            "model": {},
            "versions": {"python": "3.11.9", "torch": "2.13.0"},
            "git": {"revision": "0" * 40, "dirty": False},
            "fingerprints": {"stage": name},
        }
        | info,
    )
    return folder


def write_answers(folder, rng, models, n=160, gap=None):
    "generations.jsonl, win_rates.csv and scores.csv as the evaluate stage writes them."
    from prefkit.stats.win_rate import win_rate

    records, scores = [], {}
    for model in models:
        for number in range(n):
            total = float(rng.normal((gap or TOTALS).get(model, 1.0), 0.8))
            right = bool(total > 1.2)
            records.append(
                {
                    "model": model,
                    "prompt_id": f"p{number}",
                    "kind": KINDS[number % len(KINDS)],
                    "held_out": number % 3 == 0,
                    "prompt": f"what is number {number} <b>&</b> why ?",
                    "answer": f"it is {number} , I think . " * (1 + number % 3),
                    "tokens": 8 + number % 5,
                    "ended": number % 11 != 0,
                    "gold": {
                        "total": total,
                        "instruction_following": 1.0,
                        "truthfulness": 2.0,
                        "honesty": 1.0,
                        "helpfulness": 0.5,
                        "length_cost": 0.0,
                        "repetition_cost": 0.1,
                        "right": right,
                    },
                    "second": float(total * 0.5 + rng.normal(0, 0.5)),
                }
            )
            (
                scores.setdefault((model, "gold"), []).append(total),
                scores.setdefault((model, "second"), []).append(records[-1]["second"]),
            )
    write_jsonl(folder / "generations.jsonl", records)
    pairs = [
        (model, reference)
        for place, reference in enumerate(models)
        for model in models[place + 1 :]
    ]
    rows = [
        {
            "model": model,
            "reference": reference,
            "judge": judge,
            **win_rate(scores[model, judge], scores[reference, judge]).to_dict(),
        }
        for model, reference in pairs
        for judge in ("gold", "second")
    ]
    pd.DataFrame(rows).to_csv(folder / "win_rates.csv", index=False)


def make_experiment(home: Path, seed=0, n=160, gap=None) -> Path:
    "Base, SFT, a control and DPO, evaluated."
    rng = np.random.default_rng(seed)
    report = RowReport("toy.jsonl", read=4000, kept=3950, shortened=12)
    for number in range(50):
        reason = "the answer is empty" if number < 30 else "chosen equals rejected"
        report.drop(f"row {number} of toy.jsonl", DataError(reason, reason=reason))
    report = report.to_dict()
    write_training(
        write_run(
            home,
            "sft",
            1,
            {"model": "data/tiny/base", "dataset": "tiny-world", "learning_rate": 1e-3},
            data={"train": report, "validation": report},
        ),
        "sft",
        rng,
        preference=False,
    )
    write_training(
        write_run(
            home,
            "control",
            2,
            {"model": "stage:sft", "dataset": "tiny-world"},
            data={"train": report},
        ),
        "control",
        rng,
        preference=False,
    )
    write_training(
        write_run(
            home,
            "dpo",
            3,
            {"model": "stage:sft", "method": "dpo", "beta": 0.1},
            data={"train": report},
        ),
        "dpo",
        rng,
        preference=True,
    )
    folder = write_run(
        home,
        "evaluate",
        4,
        {
            "models": {
                "base": "data/tiny/base",
                "sft": "stage:sft",
                "control": "stage:control",
                "dpo": "stage:dpo",
            }
        },
    )
    write_answers(folder, rng, ["base", "sft", "control", "dpo"], n, gap)
    return home


def draw(home: Path, **options) -> Path:
    "Draw the report in this process; gives its output folder."
    given = {"experiment": home.name, "runs_dir": str(home.parent)}
    draw_report("first_path", output_dir=str(home / "report"), **given, **options)
    return home / "report"


def draw_as_the_runner_does(home: Path) -> Path:
    "Draw the report by papermill; gives its output folder."
    import papermill

    output = home / "report"
    papermill.execute_notebook(
        str(REPORT),
        str(home / "executed.ipynb"),
        {"experiment": home.name, "runs_dir": str(home.parent), "output_dir": str(output)},
        kernel_name="python3",
        progress_bar=False,
    )
    return output


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    home = make_experiment(tmp_path_factory.mktemp("runs") / "toy")
    return home, draw_as_the_runner_does(home)


def test_page_is_one_file_that_loads_nothing(drawn):
    page = Reader((drawn[1] / "report.html").read_text(encoding="utf-8"))
    assert page.open == [] and "script" not in page.tags and "link" not in page.tags
    assert page.loaded and all(
        source.startswith("data:image/png;base64,") for source in page.loaded
    )


def test_page_has_every_part(drawn):
    text = (drawn[1] / "report.html").read_text(encoding="utf-8")
    for part in (
        "Who wins",
        "Gold reward",
        "Where the answers are right",
        "Example answers",
        "Wall time",
        "Rows kept and dropped",
        "Settings",
        "Made with",
        "prefkit run",
        "learning_rate",
        "torch",
    ):
        assert part in text, part


def test_every_figure_lies_beside_the_page_as_png_and_csv(drawn):
    figures = drawn[1] / "figures"
    expected = {
        f"{what}_{stage}" for what in ("loss", "logps") for stage in ("sft", "control", "dpo")
    } | {
        "logratios_dpo",
        "win_rates",
        "gold_reward",
        "share_right_by_kind",
        "share_right_by_memory",
        "wall_time",
    }
    assert (
        {path.stem for path in figures.glob("*.png")}
        == expected
        == {path.stem for path in figures.glob("*.csv")}
    )
    assert all(len(pd.read_csv(path)) for path in figures.glob("*.csv"))
    text = (drawn[1] / "report.html").read_text(encoding="utf-8")
    assert text.count("data:image/png") == 2 * len(expected)  # each wide and narrow


def test_captions_say_what_the_tables_say(drawn):
    home, output = drawn
    page = " ".join(Reader((output / "report.html").read_text(encoding="utf-8")).words)
    wins = pd.read_csv(home / "evaluate" / "win_rates.csv")
    row = wins[(wins.model == "dpo") & (wins.reference == "sft") & (wins.judge == "gold")].iloc[0]
    assert (
        row.low > 0.5
        and (
            f"DPO wins {100 * row.rate:.0f} % [{100 * row.low:.0f}, {100 * row.high:.0f}] against "
            "SFT"
        )
        in page
    )
    rows = pd.read_csv(output / "tables" / "rows.csv")
    assert (rows.kept + rows.dropped == rows["read"]).all() and "30 × the answer is empty" in page


def test_numbers_from_the_world_are_escaped(drawn):
    text = (drawn[1] / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;&amp;&lt;/b&gt;" in text and "<b>&</b>" not in text


def test_no_effect_is_called_no_effect(tmp_path):
    "The tuned model's answers are drawn from the same distribution as those of SFT."
    home = make_experiment(
        tmp_path / "null", gap={"base": 1.0, "sft": 1.0, "control": 1.0, "dpo": 1.0}, n=96
    )
    page = " ".join(Reader((draw(home) / "report.html").read_text(encoding="utf-8")).words)
    wins = pd.read_csv(home / "evaluate" / "win_rates.csv")
    row = wins[(wins.model == "dpo") & (wins.reference == "sft") & (wins.judge == "gold")].iloc[0]
    # the seed was not one of the twenty in which chance looks like an effect
    assert row.low <= 0.5 <= row.high
    assert "DPO and SFT cannot be told apart" in page and not re.search(
        r"DPO wins \d+ % \[[^]]*\] against SFT", page
    )


def test_report_knows_no_stage_by_name(tmp_path):
    "Other stages, two preference methods, no validation pairs, and no evaluation."
    home, rng = tmp_path / "other", np.random.default_rng(1)
    write_training(
        write_run(home, "warm_start", 1, {"dataset": "x.jsonl"}),
        "warm_start",
        rng,
        preference=False,
        probe=False,
    )
    write_training(
        write_run(home, "orpo_small", 2, {"method": "orpo"}),
        "orpo_small",
        rng,
        preference=True,
        steps=6,
    )
    write_training(
        write_run(home, "kto_run", 3, {"method": "kto"}), "kto_run", rng, preference=True
    )
    output = draw(home)
    names = {path.stem for path in (output / "figures").glob("*.png")}
    assert {
        "loss_warm_start",
        "logratios_orpo_small",
        "logratios_kto_run",
        "wall_time",
    } <= names and "logps_warm_start" not in names
    assert "Who wins" not in (output / "report.html").read_text(encoding="utf-8")


def test_report_of_nothing_says_what_to_do(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no finished run. Run the experiment first"):
        draw(tmp_path / "none")


def test_same_run_folders_give_the_same_page(drawn):
    "Here and in a kernel the same text and numbers; here twice the same bytes."
    home, output = drawn
    text, tables = words_of(output), numbers_of(output)
    pages = []
    for _ in range(2):
        shutil.rmtree(output)
        pages.append(page_of(draw(home)))
    assert pages[0] == pages[1] and words_of(output) == text and numbers_of(output) == tables


def numbers_of(output):
    "Everything beside a page that is no picture."
    return {path.name: path.read_bytes() for path in sorted(output.rglob("*.csv"))}


def test_page_refuses_a_missing_picture(tmp_path):
    with pytest.raises(PrefkitError, match="no such picture"):
        Page("x").figure(tmp_path / "none.png", "caption")


def test_page_escapes_what_is_given_and_shows_missing_values(tmp_path):
    page = Page("a < b", "lead & more")
    page.section("<i>", "text <script>alert(1)</script>")
    page.table(
        pd.DataFrame({"name": ["<x>", None], "value": [1.5, float("nan")], "n": [1234, 5]}),
        "caption <",
        digits=1,
    )
    page.example("prompt <", [("model", "", "marks <")])
    text = page.write(tmp_path / "page.html").read_text(encoding="utf-8")
    assert (
        "<script" not in text
        and "<x>" not in text
        and "1.5" in text
        and "–" in text
        and "1\u202f234" in text
        and "(empty)" in text
    )
    assert Reader(text).open == [] and [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_page_is_dark_on_light_and_fits_a_phone():
    text = Page("x").html()
    assert (
        'name="viewport"' in text
        and "color-scheme: light" in text
        and re.search(r"img \{ width: 100%", text)
        and "overflow-x: auto" in text
    )


def code_of(notebook):
    "The lines of code of a notebook, without blank lines and comments."
    cells = [cell for cell in read_notebook(notebook)["cells"] if cell["cell_type"] == "code"]
    lines = [line.strip() for cell in cells for line in "".join(cell["source"]).splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def functions_of(notebook):
    "Name and body of each function of a notebook."
    found = []
    for cell in read_notebook(notebook)["cells"]:
        if cell["cell_type"] != "code":
            continue
        for node in ast.walk(ast.parse("".join(cell["source"]))):
            if isinstance(node, ast.FunctionDef):
                body = [each for each in node.body if not isinstance(each, ast.Expr)]
                found.append((node.name, "\n".join(map(ast.unparse, body))))
            elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
                found.append((ast.unparse(node.targets), ast.unparse(node.value.body)))
    return found


NAMES = ["comparison", "countdown", "first_path", "ledger", "length_penalty", "minor_dpo"]
NAMES += ["offline", "online", "orpo", "real_model", "xpo_ipo"]


@pytest.mark.parametrize("name", NAMES)
def test_a_report_reads_and_has_no_function_that_another_has(name):
    notebooks = {path.stem: path for path in REPORT.parent.glob("*.ipynb")}
    assert sorted(notebooks) == NAMES and len(code_of(notebooks[name])) < 250
    own = functions_of(notebooks.pop(name))
    others = [each for path in notebooks.values() for each in functions_of(path)]
    for place in (0, 1):  # names, bodies
        found = [each[place] for each in own]
        assert len(set(found)) == len(found), "twice in one report"
        assert not set(found) & {each[place] for each in others}


def test_the_room_asks_for_no_runs_and_no_judges():
    "It is handed what it draws; a page of results must not need torch."
    files = sorted((ROOT / "prefkit" / "report").glob("*.py"))
    code = "import sys, " + ", ".join(f"prefkit.report.{file.stem}" for file in files[1:])
    code += "; print([m for m in sys.modules if m == 'torch' or m.startswith('prefkit.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    reached = {name.split(".")[1] for name in ast.literal_eval(done.stdout) if "." in name}
    assert reached == {"core", "report", "stats"} and "'torch'" not in done.stdout


def test_a_course_is_by_step_without_gaps_and_the_last_line_wins():
    lines = [
        {"step": 20, "split": "train", "loss": 2.0},
        {"step": 10, "split": "train", "loss": 3.0},
        {"step": 20, "split": "train", "loss": 1.0},
        {"step": 30, "split": "train", "loss": float("nan")},
        {"step": 10, "split": "validation", "loss": 9.0},
    ]
    found = course(lines, "train", "loss")
    assert found.to_dict() == {10: 3.0, 20: 1.0} and course(lines, "train", "reward").empty
    assert list(curve(found, "train", "x").columns) == ["x", "value", "low", "high", "series"]
    assert list(curve(found, "validation", "x")["value"]) == [3.0, 1.0]
    assert ends_of_curve(curve(found, "validation", "x"), "x") == (3.0, 1.0)
    shifted = pd.Series({10: 5.0, 30: 7.0})
    both = mean_curve([found, shifted], "validation", "x")
    assert both["x"].tolist() == [10] and both["value"].tolist() == [4.0]
    assert mean_curve([found, found.iloc[:0]], "train", "x").empty


def judged(kinds=("a", "b"), n=30, **right):
    "Answers of models that are right with these shares, the same in each kind."
    return answers.answer_table(
        {
            "evaluate": [
                {
                    "model": model,
                    "prompt_id": f"{kind}{number}",
                    "kind": kind,
                    "prompt": f"{kind} {number} ?",
                    "answer": f"{model} {number}",
                    "gold": {"total": number + share, "right": number < share * n},
                    "tokens": 3,
                    "ended": True,
                }
                for model, share in right.items()
                for kind in kinds
                for number in range(n)
            ]
        }
    )


def test_kinds_are_told_apart_by_their_own_intervals():
    found = judged(sft=0.1, dpo=0.9)
    told = "DPO against SFT, of 2 kinds: right more often in 2"
    assert answers.say_kinds(found, "dpo", "sft") == told
    assert answers.say_kinds(found, "sft", "dpo").endswith("of 2 kinds: less often in 2")
    assert answers.say_kinds(judged(sft=0.5, dpo=0.5), "dpo", "sft").endswith(
        "no clear difference in 2"
    )
    assert answers.say_kinds(found, "dpo", "none") == ""
    assert answers.paired_difference(found, "gold", "dpo", "sft")[0] == pytest.approx(0.8)
    shares = answers.shares_right({"all": found}).set_index("group")
    assert shares.loc["dpo", "value"] == pytest.approx(0.9) and shares.loc["dpo", "n"] == 60
    assert answers.say_right(answers.shares_right({"all": found}), ["dpo", "dpo"]).startswith(
        "all: DPO 90 % ["
    )


def test_examples_are_the_largest_gain_and_loss_and_one_of_each_kind_by_a_seed():
    found = judged(sft=0.1, dpo=0.9)
    best = found["model"].eq("dpo") & found["prompt_id"].eq("a7")
    worst = found["model"].eq("dpo") & found["prompt_id"].eq("b3")
    found.loc[best, "gold"], found.loc[worst, "gold"] = 99.0, -99.0
    picked = answers.pick_examples(found, ("dpo", "sft"), "toy")
    assert picked[0] == ("largest gain of DPO over SFT", "a7")
    assert picked[1] == ("its largest loss", "b3") and len({prompt for _, prompt in picked}) == 4
    assert picked == answers.pick_examples(found, ("dpo", "sft"), "toy")
    shown = answers.examples_of(found, picked)
    assert len(shown) == 8 and "second" not in shown


def test_a_sentence_on_a_win_says_where_another_judge_sees_it_otherwise():
    row = {"model": "dpo", "reference": "sft", "n": 9}
    rows = [
        {**row, "judge": "gold", "rate": 0.7, "low": 0.6, "high": 0.8},
        {**row, "judge": "second", "rate": 0.6, "low": 0.5, "high": 0.7},
    ]
    assert answers.say_wins(pd.DataFrame(rows)) == [
        "DPO wins 70 % [60, 80] against SFT, by the gold reward; the second judge gives 60 % [50, "
        "70], another verdict."
    ]
    assert answers.win_table({}, several=False).empty
    named = answers.win_table({"late": pd.DataFrame(rows)}, several=True)
    assert set(named["model"]) == {"dpo (late)"} and set(named["evaluation"]) == {"late"}


def test_where_most_rows_were_lost_is_said():
    row = {"stage": "SFT", "data": "train", "read": 10, "dropped": 0}
    assert stages.say_lost(pd.DataFrame()) == ""
    assert stages.say_lost(pd.DataFrame([row])) == "No row was dropped."
    more = {**row, "data": "x", "dropped": 1}
    said = stages.say_lost(pd.DataFrame([{**row, "read": 0}, more]))
    assert said == "Most rows were lost in SFT, x: 1 of 10; all are listed below."
