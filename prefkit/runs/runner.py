"""The runner: each stage of an experiment leaves a run folder that says exactly what made it, is
not run again without need, and goes on where it was killed.
"""

import functools, json, os, queue, shlex, shutil, subprocess, textwrap, threading, time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from prefkit.runs.config import (
    UPSTREAM,
    Config,
    Stage,
    code_cells,
    load_config,
    read_parameters,
    check_parameters,
)
from prefkit.core import (
    ANNOUNCED,
    nearest,
    ConfigError,
    DataError,
    PrefkitError,
    fingerprint,
    fingerprint_files,
    project_root,
    read_jsonl,
    shipped,
    sync_files,
    write_json,
    write_text,
)
from prefkit.runs.fingerprints import (
    difference,
    fingerprints,
    other_inputs,
    reach_stage,
    still_as_read,
)
from prefkit.runs.plugins import VARIABLE
from prefkit.runs.stage import (
    Display,
    StageError,
    StageLock,
    Watch,
    clock,
    execute,
    finish,
    output_folder,
    seconds_to_start,
)


def folder_state(folder: Path) -> dict:  # {} where there is nothing
    "The run.json of a folder that is whole, else the stage.json of one that is not."
    for name, is_state in (("run.json", _is_whole), ("stage.json", _is_begun)):
        try:
            state = json.loads((folder / name).read_text(encoding="utf-8"))
        # There is no such run, or it is not whole, which is what the caller asks. Or half a file is
        # left by a power cut: it vouches for nothing, and the stage says that it runs.
        except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
            continue
        except OSError as error:
            raise ConfigError(
                f"{folder / name}: {error.strerror}. Make it readable, or delete {folder}: its "
                "stage is then run again.",
                field=str(folder / name),
                reason="cannot be read",
            ) from error
        if is_state(state):
            return state
    return {}


def _is_whole(state) -> bool:
    "Whether a run.json is as `close_folder` has written it; one of an earlier version has no sum."
    if not isinstance(state, dict) or not _is_prints(state.get("fingerprints")):
        return False
    told = state.pop("sum", None)
    return told in (None, fingerprint(state))


def _is_begun(state) -> bool:
    "Whether a stage.json says what the runner asks of it."
    kinds = {"fingerprints": dict, "attempts": int, "seconds": (int, float)}
    if not isinstance(state, dict) or state.get("status") == "done":
        return False
    return all(isinstance(state.get(name), kind) for name, kind in kinds.items() if name in state)


def _is_prints(prints) -> bool:
    if not isinstance(prints, dict) or not isinstance(prints.get("stage"), str):
        return False
    read = prints.get("read", {})
    return isinstance(read, dict) and all(isinstance(was, str) for was in read.values())


def is_done(
    folder: Path,  # a run folder
    stage_print: str | None = None,  # if given, its fingerprint must be this
) -> bool:
    "Whether a folder holds a finished run; with a fingerprint, one whose files are as they were."
    state = folder_state(folder)
    if state.get("status") != "done" or stage_print is None:
        return state.get("status") == "done"
    if state["fingerprints"]["stage"] != stage_print or not still_as_read(state["fingerprints"]):
        return False
    return not changed_files(folder, state)


WEIGHTS_OF_RUN = (
    "checkpoint",
    "adapter",
)  # folders of a run; a person may delete them to save space


def files_of_run(folder: Path) -> dict[str, str]:  # name -> fingerprint
    "What a run is read for: its models, lines and tables."
    files = [
        path for name in WEIGHTS_OF_RUN for path in (folder / name).rglob("*") if path.is_file()
    ]
    files += [path for end in ("jsonl", "json", "yaml") for path in folder.glob(f"[!.]*.{end}")]
    names = sorted(path.relative_to(folder).as_posix() for path in files)
    ours = ("run.json", "stage.json", "result.json", "progress.json")
    return {name: fingerprint_files(folder / name) for name in names if name not in ours}


def changed_files(folder: Path, state: dict, models: bool = True) -> list[str]:  # names
    "Files of a finished run that are not as its run.json says; a model that is gone is none."
    told = state.get("files", {})
    return [
        name
        for name, was in told.items()
        if _counts(folder, name, models)
        and not ((folder / name).is_file() and fingerprint_files(folder / name) == was)
    ]


def _counts(folder, name, models):
    "Whether a file of a run is to be looked at."
    place = name.partition("/")[0]
    return place not in WEIGHTS_OF_RUN or (models and (folder / place).is_dir())


def promote(home: Path, name: str):
    "Make a whole `.name.partial` into `name`; what was there before is kept until then."
    new, old, away = home / f".{name}.partial", home / name, home / f".{name}.old"
    if old.exists():
        shutil.rmtree(away, ignore_errors=True)
        os.rename(old, away)
    os.rename(new, old)
    shutil.rmtree(away, ignore_errors=True)


def settle(home: Path, name: str):
    "Finish a promotion that was cut short, or take back the run that it had put away."
    away = home / f".{name}.old"
    if is_done(home / f".{name}.partial"):
        promote(home, name)
    if away.exists() and not (home / name).exists():
        os.rename(away, home / name)
    shutil.rmtree(away, ignore_errors=True)


def _set_aside(home, name, held, wanted):
    "Put a half-finished run of other settings away; only one is kept."
    for old in home.glob(f".{name}.aside-*"):
        if old != wanted:
            shutil.rmtree(old)
    partial = home / f".{name}.partial"
    if held:
        os.rename(partial, home / f".{name}.aside-{held['stage']}")
    else:
        shutil.rmtree(partial)  # of a start that did not come to anything


def prepare(
    home: Path,  # folder of the experiment
    name: str,  # of the stage
    prints: dict,  # its fingerprints
) -> str:  # what was found, in words
    "Make `.name.partial` ready: a new one, or one to go on in."
    partial, wanted, note = (
        home / f".{name}.partial",
        home / f".{name}.aside-{prints['stage']}",
        "runs",
    )
    held = folder_state(partial).get("fingerprints", {})
    if (partial / "stage.json").exists() and not held:
        note = "runs; its half-finished run is damaged (stage.json) and not gone on with"
    if partial.exists() and held.get("stage") != prints["stage"]:
        _set_aside(home, name, held, wanted)
        if held:
            note = f"runs; a half-finished run is set aside ({difference(held, prints)} changed)"
    if wanted.exists() and not partial.exists():
        os.rename(wanted, partial)
    state = folder_state(partial) or {"fingerprints": prints, "attempts": 0, "seconds": 0.0}
    if state["attempts"]:
        note = f"goes on in its half-finished run (attempt {state['attempts'] + 1})"
    elif is_done(home / name):
        before = folder_state(home / name)["fingerprints"]
        why = difference(before, prints)
        if not why and still_as_read(before):
            changed = changed_files(home / name, folder_state(home / name))
            why = ", ".join(changed[:3]) or "its checkpoint"
        note = f"runs again ({why or 'what it read'} changed)"
    write_json(
        partial / "stage.json", {**state, "status": "running", "attempts": state["attempts"] + 1}
    )
    # of an earlier attempt
    for stale in ("result.json", "progress.json", ANNOUNCED):
        (partial / stale).unlink(missing_ok=True)
    return note


def git_state() -> dict:  # {revision, dirty}, None where there is no git
    """Which revision of the project this is, and whether files differ from it; results are none
    that a run reads.
    """

    def git(*words):
        try:
            return subprocess.run(
                ["git", "-C", str(project_root()), *words],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    revision = git("rev-parse", "HEAD")
    return {
        "revision": revision,
        "dirty": bool(git("status", "--porcelain", "--", ".", ":!data/results"))
        if revision
        else None,
    }


def located(value, home: Path):
    "A value of a stage's parameters with the path of the checkpoint wherever `stage:NAME` stands."
    if isinstance(value, dict):
        return {key: located(item, home) for key, item in value.items()}
    if isinstance(value, list):
        return [located(item, home) for item in value]
    match = UPSTREAM.fullmatch(value) if isinstance(value, str) else None
    return str(home / match[1] / "checkpoint") if match else value


def close_folder(
    partial: Path,  # where the notebook has run
    stage: Stage,  # what it was
    experiment: str,  # its experiment
    prints: dict,  # its fingerprints
    seconds: float,  # wall time of all attempts
):
    "Write params.yaml and run.json, after which the folder is whole."
    result = json.loads((partial / "result.json").read_text(encoding="utf-8"))
    prints = {**prints, "read": other_inputs(prints, result.pop("inputs", {}), partial.parent)}
    parameters = {name: value for name, value in stage.parameters.items() if name != "output_dir"}
    write_text(
        partial / "params.yaml", yaml.safe_dump(parameters, sort_keys=False, allow_unicode=True)
    )
    book = (partial / "run.ipynb").read_text(encoding="utf-8")
    # where it will be
    write_text(
        partial / "run.ipynb", book.replace(str(partial), str(partial.with_name(stage.name)))
    )
    info = {
        "experiment": experiment,
        "stage": stage.name,
        "pipeline": stage.pipeline.stem,
        "needs": list(stage.needs),
        "status": "done",
        "seed": parameters.get("seed"),
        "wall_seconds": round(seconds, 1),
        "start_seconds": round(seconds_to_start(partial / "run.ipynb"), 1),
        "attempts": folder_state(partial)["attempts"],
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **result,
        "git": git_state(),
        "fingerprints": prints,
    }
    # what the notebook said is in run.ipynb; the kernel's own log is for stages that die, and after
    # that holds its farewell at most
    for name in ("result.json", "progress.json", "kernel.log", ANNOUNCED):
        (partial / name).unlink(missing_ok=True)
    info["files"] = files_of_run(partial)
    sync_files(partial)
    write_json(partial / "run.json", {**info, "sum": fingerprint(json.loads(json.dumps(info)))})
    (partial / "stage.json").unlink()


@dataclass(frozen=True)
class Experiment:
    "A checked config, where it is worked on, and what makes each of its stages what it is."

    config: Config
    home: Path  # holds the run folders
    prints: dict[str, dict]  # stage -> its fingerprints


def open_experiment(
    config: Config,
    output_root: str | Path | None = None,  # holds the experiments' folders; None: data/runs
) -> Experiment:
    "Raises what the stages' checks raise, and `open_home`."
    prints = fingerprints(config)
    return Experiment(config, open_home(output_root, config.experiment), prints)


def _work(stage, experiment, display, lock, threads):
    "Execute a stage's notebook in its partial folder and make that whole."
    config, home, prints = experiment.config, experiment.home, experiment.prints[stage.name]
    partial, where = home / f".{stage.name}.partial", f"stage {stage.name}"
    for need in stage.needs:
        if not (home / need / "checkpoint").is_dir():
            raise StageError(f"{where}: it reads stage:{need}, and that stage left no checkpoint.")
    display.say(f"{stage.name}: {prepare(home, stage.name, prints)}")
    parameters = located({**stage.parameters, "output_dir": str(partial)}, home)
    title = f"{stage.name} [{config.stages.index(stage) + 1}/{len(config.stages)}]"
    with Watch(partial, title, display) as watch:
        cores = {"OMP_NUM_THREADS": str(threads)} if threads else {}
        own = {VARIABLE: os.pathsep.join(map(str, config.plugins))}
        execute(
            stage.pipeline,
            partial / "run.ipynb",
            parameters,
            where,
            lock,
            {"PREFKIT_PROGRESS": str(partial / "progress.json"), **own, **cores},
        )
    if not (partial / "result.json").exists():
        raise StageError(
            f"{where}: the notebook ended without calling prefkit.runs.stage.finish.\n(the "
            f"executed notebook: {partial / 'run.ipynb'})"
        )
    close_folder(partial, stage, config.experiment, prints, watch.seconds())
    promote(home, stage.name)
    for aside in home.glob(f".{stage.name}.aside-*"):
        shutil.rmtree(aside)
    starting = folder_state(home / stage.name)["start_seconds"]
    display.say(f"{stage.name}: done in {clock(watch.seconds())}, {starting:.1f} s of it to start")
    for name, account in folder_state(home / stage.name).get("data", {}).items():
        if isinstance(account, dict) and "text" in account:
            display.say(textwrap.indent(f"{name} rows: {account['text']}", "  "))
    for note in folder_state(home / stage.name).get("model", {}).get("notes", []):
        display.say(textwrap.indent(note, "  "))


def run_stage(
    stage: Stage,  # checked
    experiment: Experiment,  # its own
    display: Display,  # where to speak
    needed: bool = False,  # whether a stage that has to run reads its checkpoint
    threads: int | None = None,  # of its process; None: as many as PyTorch takes by itself
) -> Path:  # the run folder
    "Run one stage, go on with it, or skip it; its upstream stages are finished."
    home, folder = experiment.home, experiment.home / stage.name
    with StageLock(home / f".{stage.name}.lock") as lock:
        settle(home, stage.name)
        gone = needed and not (folder / "checkpoint").is_dir()
        if is_done(folder, experiment.prints[stage.name]["stage"]) and not gone:
            display.say(f"{stage.name}: already done")
        else:
            _work(stage, experiment, display, lock.handle, threads)
    return folder


def open_home(output_root: str | Path | None, experiment: str) -> Path:  # None: data/runs
    """The folder of an experiment, which exists then; raises `ConfigError` where it cannot be
    written to.
    """
    if output_root is not None and not str(output_root).strip():
        raise ConfigError(
            "the output folder's name is empty. Name one, or leave it out for data/runs."
        )
    home = (
        Path(output_root).expanduser().absolute()
        if output_root is not None
        else project_root() / "data" / "runs"
    ) / experiment
    write_text(home / ".writable", "").unlink()
    return home


def to_do(config: Config, home: Path, prints: dict) -> tuple[list[Stage], set[str]]:
    "The stages that have to run, and the names of those whose checkpoints they read."
    stages, needed = [], set()
    for stage in reversed(config.stages):  # downstream first
        gone = stage.name in needed and not (home / stage.name / "checkpoint").is_dir()
        if is_done(home / stage.name, prints[stage.name]["stage"]) and not gone:
            continue
        stages.append(stage)
        needed |= set(stage.needs)
    return stages[::-1], needed


def selected(
    config: Config,  # a whole experiment
    only: tuple[str, ...] = (),  # names of stages; (): all
) -> Config:  # the same with these stages and what they need
    """The part of an experiment that leads to some of its stages; raises `ConfigError` for a stage
    that there is not.
    """
    stages, kept = {stage.name: stage for stage in config.stages}, set()
    for name in only:
        if name not in stages:
            raise ConfigError(f"there is no stage `{name}`.{nearest(name, stages)}")
    todo = list(only or stages)
    while todo:
        kept.add(name := todo.pop())
        todo += [need for need in stages[name].needs if need not in kept]
    return replace(config, stages=tuple(stage for stage in config.stages if stage.name in kept))


def with_processes(
    config: Config,
    number: int,  # that a launcher has started
) -> Config:  # the same, its training in so many processes
    "What a launcher asks for goes for every stage that trains and whose `processes` is 1."
    stages = [
        replace(stage, parameters={**stage.parameters, "processes": number})
        if stage.parameters.get("processes") == 1
        else stage
        for stage in config.stages
    ]
    return replace(config, stages=tuple(stages))


def work_through(
    stages: tuple[Stage, ...],  # what a stage needs stands before it
    work,  # stage -> its result
    jobs: int,  # at most so many at a time
) -> dict:  # name of the stage -> result, in the order given
    """Do the work of every stage when that of the stages it needs is done; the first error is
    raised once the stages at work have ended.
    """
    if jobs == 1:
        return {stage.name: work(stage) for stage in stages}
    waiting, results, ended, running, failure = list(stages), {}, queue.Queue(), 0, None

    def one(stage):
        try:
            ended.put((stage.name, work(stage), None))
        except BaseException as error:
            # raised below, where somebody waits for it
            ended.put((stage.name, None, error))

    while running or (waiting and not failure):
        for stage in [stage for stage in waiting if all(need in results for need in stage.needs)][
            : 0 if failure else jobs - running
        ]:
            waiting.remove(stage)
            running += 1
            threading.Thread(target=one, args=(stage,), daemon=True).start()
        name, result, error = ended.get()
        running -= 1
        if error:
            failure = failure or error
        else:
            results[name] = result
    if failure:
        raise failure
    return {stage.name: results[stage.name] for stage in stages}


def times_text(
    infos: dict[str, dict],  # stage -> its run.json
    wall: float,  # seconds that passed
) -> str:  # lines of a table
    "Where the time went: stages that ran side by side add up to more than passed."
    rows = [(name, info["wall_seconds"], info["start_seconds"]) for name, info in infos.items()]
    rows.append(("together", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    width = max(len(name) for name, *_ in rows)
    lines = [
        f"{name:{width}}  {clock(seconds):>7}  {starting:7.1f} s to start"
        for name, seconds, starting in rows
    ]
    return "\n".join([*lines, f"passed in {clock(wall)}"])


def carry_out(
    experiments: list[Experiment],
    progress: str = "auto",  # bar | lines | quiet
    jobs: int = 1,  # stages at a time, of whichever experiment; the cores are shared among them
    # gets a stage and its work, which it does or leaves undone; None: every work is done
    attend: Callable | None = None,
) -> list[dict[str, Path]]:  # for each experiment: stage -> its run folder
    "Skip what is done, go on with what was killed, run the rest. Raises `PrefkitError`s."
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise ConfigError(f"jobs is {jobs!r}, but must be a whole number of at least 1.")
    if jobs > 1 and progress == "auto":
        progress = "lines"  # two bars would overwrite each other
    shared = jobs > 1 and not os.environ.get("OMP_NUM_THREADS")
    threads = max(1, (os.cpu_count() or 1) // jobs) if shared else None
    tasks, again = {}, []  # name, with its experiment's where there are several -> stage, work
    for one in experiments:
        place = f"{one.config.experiment}/" if len(experiments) > 1 else ""
        stages, needed = to_do(one.config, one.home, one.prints)
        again += [f"{place}{stage.name}" for stage in stages]
        for stage in stages:
            reach_stage(stage)
        for stage in one.config.stages:
            needs = tuple(f"{place}{need}" for need in stage.needs)
            item = replace(stage, name=f"{place}{stage.name}", needs=needs)
            display, read = Display(progress, place=place), stage.name in needed
            work = functools.partial(run_stage, stage, one, display, read, threads)
            tasks[item.name] = item, functools.partial(attend, stage, work) if attend else work
    begin, items = time.monotonic(), tuple(item for item, _ in tasks.values())
    folders = work_through(items, lambda item: tasks[item.name][1](), jobs)
    if ran := {name: folder_state(folders[name]) for name in again if folders[name]}:
        Display(progress).say(times_text(ran, time.monotonic() - begin))
    each = iter(folders.values())
    return [{stage.name: next(each) for stage in one.config.stages} for one in experiments]


def run(
    config: str | Path,  # a YAML file
    settings=(),  # texts of --set
    output_root: str | Path | None = None,  # holds the experiments' folders; None: data/runs
    progress: str = "auto",  # bar | lines | quiet
    only: tuple[str, ...] = (),  # just these stages and what they need; (): all
    jobs: int = 1,  # stages at a time; the cores are shared among them
    processes: int = 1,  # of every stage that trains and says nothing else
) -> dict[str, Path]:  # stage -> its run folder
    """Run an experiment: check everything, skip what is done, go on with what was killed.

    Raises `PrefkitError`s.
    """
    chosen = with_processes(selected(load_config(config, settings), only), processes)
    if processes > 1:
        Display(progress).say(f"stages that train do so in {processes} processes")
    return carry_out([open_experiment(chosen, output_root)], progress, jobs)[0]


@dataclass
class Run:
    "A finished run, as reports read it."

    path: Path  # the folder
    info: dict  # run.json
    params: dict  # params.yaml
    # DataFrame of metrics.jsonl, one line a logging step; empty where there is none
    metrics: Any = field(repr=False)
    samples: list = field(repr=False, default_factory=list)  # samples.jsonl


def open_run(
    folder: str | Path,  # data/runs/<experiment>/<stage>
) -> Run:
    "Open a run folder; raises `ConfigError` where there is no finished run."
    import pandas

    folder = Path(folder)
    if not is_done(folder):
        raise ConfigError(
            f"{folder}: no finished run. Run its experiment first: prefkit run CONFIG."
        )
    state = folder_state(folder)
    if changed := changed_files(folder, state, models=False):
        raise DataError(
            f"{folder}: {', '.join(changed)} is not what its run has written. Run its experiment "
            "again: prefkit run CONFIG.",
            field=changed[0],
            reason="changed",
        )
    rows, samples = [
        read_jsonl(folder / name) if (folder / name).exists() else []
        for name in ("metrics.jsonl", "samples.jsonl")
    ]
    params = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    return Run(folder, state, params, pandas.DataFrame(rows), samples)


def find_report(
    config: Config, home: Path, command: str
) -> tuple[Path, dict]:  # the notebook, its parameters
    """The report of a config: of finished runs, or of results under data/results; raises
    `ConfigError` where it or a stage is missing.
    """
    if not config.report:
        raise ConfigError("the config names no report. Add a line such as `report: first_path`.")
    notebook = shipped("nbs/reports") / f"{config.report}.ipynb"
    known, given = read_parameters(notebook), {"output_dir": str(home / ".report.partial")}
    if "runs_dir" in known:  # else it draws committed results, and no run is needed
        missing = [stage.name for stage in config.stages if not is_done(home / stage.name)]
        if missing:
            raise ConfigError(
                f"not finished yet: {', '.join(missing)}. Run the experiment first: prefkit run "
                "CONFIG."
            )
        given |= {"experiment": config.experiment, "runs_dir": str(home.parent)}
    if "command" in known:
        given["command"] = command  # so that the page can say how it was made
    return notebook, check_parameters(given, known, f"report {config.report}")


def report(
    config: str | Path,  # a YAML file that names a report
    settings=(),  # texts of --set
    output_root: str | Path | None = None,  # holds the experiments' folders; None: data/runs
    progress: str = "auto",  # bar | lines | quiet
) -> Path:  # the report's folder
    "Run the report notebook of a finished experiment. Raises `PrefkitError`s."
    command = shlex.join(
        [str(config), *(word for setting in settings for word in ("--set", setting))]
    )
    loaded = load_config(config, settings)
    home = open_home(output_root, loaded.experiment)
    notebook, parameters = find_report(
        loaded, home, f"prefkit run {command}\nprefkit report {command}"
    )
    partial = home / ".report.partial"
    with StageLock(home / ".report.lock") as lock:
        shutil.rmtree(partial, ignore_errors=True)
        write_json(partial / "stage.json", {"seconds": 0.0})
        display = Display(progress)
        with Watch(partial, "report", display) as watch:
            execute(
                notebook,
                partial / "report.ipynb",
                parameters,
                "report",
                lock.handle,
                {"PREFKIT_PROGRESS": str(partial / "progress.json")},
            )
        display.say(
            f"report: done in {clock(watch.seconds())}, "
            f"{seconds_to_start(partial / 'report.ipynb'):.1f} s of it to start"
        )
        for name in ("stage.json", "progress.json", "kernel.log", ANNOUNCED):
            (partial / name).unlink(missing_ok=True)
        promote(home, "report")
    return home / "report"
