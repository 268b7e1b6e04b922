"The command line: examples, names that were meant, what a run says last."

import re
import shlex

import click
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from prefkit.cli import app
from prefkit.core import there, project_root
from prefkit.runs.outcome import SHOWN, outcome_lines

COMMAND = typer.main.get_command(app)


def commands(group=COMMAND, before=()):
    for name, one in group.commands.items():
        if isinstance(one, click.Group) or hasattr(one, "commands"):
            yield from commands(one, (*before, name))
        else:
            yield (*before, name), one


@pytest.mark.parametrize(
    ("path", "command"), [pytest.param(*one, id=" ".join(one[0])) for one in commands()]
)
def test_every_help_has_examples_that_the_command_takes(path, command):
    examples = re.findall(r"^prefkit (.+)$", command.epilog or "", re.M)
    assert examples
    for example in examples:
        words = shlex.split(example)
        assert tuple(words[: len(path)]) == path
        given = words[len(path) :]
        context = command.make_context(path[-1], given, resilient_parsing=False)
        config = context.params.get("config")
        assert config is None or str(config) == "mine.yaml" or there(project_root() / config)
        shown = CliRunner().invoke(app, [*path, "--help"], terminal_width=200).output
        assert example in shown


def test_a_number_of_processes_has_one_name():
    for path, command in commands():
        shown = {
            name for one in command.params if not getattr(one, "hidden", False) for name in one.opts
        }
        assert "--workers" not in shown, path
    assert {"run", "seeds", "study", "search"} <= {
        path[-1] for path, one in commands() if any("--jobs" in each.opts for each in one.params)
    }


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("data/configs/tiny/dmo.yaml", "`demo.yaml`"),
        ("demo.yaml", "`data/configs/tiny/demo.yaml`"),
        ("data/configs/countdown_rlo.yaml", "`data/configs/searches/countdown_rloo.yaml`"),
    ],
)
def test_a_config_that_is_not_there_brings_the_one_that_was_meant(given, meant):
    done = CliRunner().invoke(app, ["run", given])
    assert done.exit_code == 1 and f"Did you mean {meant}?" in done.stderr
    assert "prefkit list configs" in done.stderr


def test_a_run_says_first_which_folder_it_writes_to(tmp_path, monkeypatch):
    def ran(config, settings, output_root, *others):
        return {"sft": tmp_path / "demo/sft"}

    monkeypatch.setattr("prefkit.runs.runner.run", ran)
    monkeypatch.chdir(tmp_path)
    given = ["run", str(project_root() / "data/configs/tiny/demo.yaml"), "--output-root"]
    lines = CliRunner().invoke(app, [*given, "here"]).stdout.splitlines()
    assert lines[0] == f"runs are written to {tmp_path / 'here'}"
    assert f"all done: {tmp_path / 'demo'}" in lines
    assert lines[-1].startswith("the page: prefkit report ")
    assert lines[-1].endswith("demo.yaml --output-root here")
    given[1] = str(project_root() / "data/configs/ledger/countdown.yaml")  # has no report
    assert "prefkit report" not in CliRunner().invoke(app, [*given, "here"]).stdout


@pytest.mark.parametrize("name", ["--jobs", "--workers"])
def test_no_process_at_all_is_refused(name):
    config = "data/configs/searches/dpo_tiny.yaml"
    done = CliRunner().invoke(app, ["search", config, name, "0"])
    assert done.exit_code == 2 and name in done.output


def rates(folder, rows):
    folder.mkdir()
    pd.DataFrame(rows).to_csv(folder / "win_rates.csv", index=False)


def test_a_run_ends_with_its_win_rates(tmp_path):
    row = {
        "model": "dpo",
        "reference": "sft",
        "judge": "gold",
        "rate": 0.708,
        "low": 0.684,
        "high": 0.731,
        "n": 1000,
    }
    (tmp_path / "sft").mkdir()
    rates(tmp_path / "evaluate", [row, {**row, "judge": "second", "rate": 0.9}])
    folders = {name: tmp_path / name for name in ("sft", "evaluate")}
    assert outcome_lines(folders) == ["dpo against sft by gold: 71 % (68 to 73), 1,000 prompts"]
    way = {"instruction": "verbose", "decoding": "greedy", "token_limit": 64}
    rates(tmp_path / "ways", [{**row, **way}] * (SHOWN + 3))
    lines = outcome_lines(folders | {"ways": tmp_path / "ways"})
    assert (
        lines[1].endswith("1,000 prompts, verbose, greedy, 64")
        and lines[-1] == "and 4 more in win_rates.csv"
    )
    assert outcome_lines({"sft": tmp_path / "sft"}) == []
