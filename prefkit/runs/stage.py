"""How a pipeline is executed so that it ends when its runner ends, is never run twice at once, says
how far it is, and fails in one clear sentence.
"""

import ast, gc, json, os, platform, queue, re, shutil, signal, socket, sys, threading, time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from prefkit.core import (
    ANNOUNCED,
    ConfigError,
    DataError,
    PrefkitError,
    cache_folder,
    inputs_so_far,
    project_root,
    write_json,
)
from prefkit.data.world import WORLD_VERSION


NO_HANDLE = -1  # of a lock that processes cannot inherit


class StageLock:
    "A lock on a stage, held until every process that inherited it has ended."

    def __init__(
        self,
        path: Path,  # the lock file; it is made, and stays
        wait: float = 15.0,  # seconds to wait for another holder
    ):
        self.path, self.wait = Path(path), wait

    def __enter__(self):
        try:
            import fcntl
        except ImportError:  # Windows: held by this process alone, for a handle is not inherited
            self.handle, self.held = NO_HANDLE, FileLock(str(self.path), timeout=self.wait)
            try:
                self.held.acquire()
            except Timeout:
                raise self._taken("") from None
            return self
        # a link is not followed: what it leads to would be overwritten
        way = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        try:
            self.handle = os.open(self.path, way, 0o666)
        except OSError as error:
            raise ConfigError(
                f"the lock {self.path} cannot be opened: {error.strerror}. It has to be a file of "
                "its own: delete what stands there.",
                field=str(self.path),
                reason="no lock",
            ) from error
        until = time.monotonic() + self.wait
        while True:
            try:
                fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() < until:
                    time.sleep(0.2)
                    continue
                os.close(self.handle)
                raise self._taken(f" (process {self.path.read_text()})") from None
        os.ftruncate(self.handle, 0)
        os.write(self.handle, str(os.getpid()).encode())
        return self

    def _taken(self, by):
        return ConfigError(
            f"another run{by} is at work here: {self.path}. Wait for it, or end it.",
            field=str(self.path),
            reason="in use",
        )

    def __exit__(self, *exception):
        if self.handle == NO_HANDLE:
            self.held.release()
        else:
            os.close(self.handle)


def import_first(
    names: list[str],  # of modules
):
    """Import what the cells will ask for, without Python looking for garbage among the million
    objects of PyTorch and transformers, now and later.
    """
    gc.disable()
    for name in names:
        # the cell that needs it fails in the same way, where it can be seen
        with suppress(Exception):
            import_module(name)
    gc.freeze()
    gc.enable()


def imported_modules(
    notebook: Path,  # a pipeline or a report
) -> list[str]:  # in the order in which its cells name them
    "The modules that the cells of a notebook import, those inside of functions and blocks aside."
    cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    parts = [
        part
        for cell in cells
        if cell["cell_type"] == "code"
        for part in statements("".join(cell["source"])) or ()
    ]
    names = [
        [alias.name for alias in part.names] if isinstance(part, ast.Import) else [part.module]
        for part in parts
        if isinstance(part, (ast.Import, ast.ImportFrom))
    ]
    return list(dict.fromkeys(name for group in names for name in group))


def statements(source: str) -> list | None:  # None where it is more than Python, such as a magic
    "The statements of a cell."
    try:
        return ast.parse(source).body
    except SyntaxError:
        return None


def kernel_main():
    "What a stage's process runs: bind its life to the runner's, then be a Jupyter kernel."
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG
    # on Windows that variable is a handle, which ipykernel watches
    if sys.platform != "win32" and os.getppid() != int(os.environ["JPY_PARENT_PID"]):
        os._exit(1)
    if (lock := int(os.environ["PREFKIT_LOCK"])) != NO_HANDLE:
        os.set_inheritable(lock, False)  # for this process, not for what it starts
    import_first(os.environ.get("PREFKIT_IMPORTS", "").split())
    from ipykernel.kernelapp import IPKernelApp

    IPKernelApp.launch_instance()


def _environment(lock, extra):
    "Variables of a stage's kernel: not those of a launcher, which has started the runner."
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    # sets have one order; no threads before a fork
    own = {
        "PREFKIT_LOCK": str(lock),
        "PREFKIT_ROOT": str(project_root()),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONHASHSEED": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }
    kept = {name: text for name, text in os.environ.items() if not _of_launcher(name)}
    return {**kept, **own, **extra}


LAUNCHER = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # and LOCAL_RANK, GROUP_RANK, ...


def _of_launcher(name):
    return name.endswith(LAUNCHER) or name.startswith("TORCHELASTIC_")


def meeting_point(
    number: int,  # of processes
) -> dict:  # variables that all of them have; each has its rank besides
    "Where processes on this machine find one another: a port that is free now."
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    variables |= {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number)}
    if not os.environ.get("OMP_NUM_THREADS"):
        variables["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // number))
    return variables


def stage_kernel(
    lock: int,  # the open lock file, which the kernel inherits
    environment: dict,  # more variables for the kernel
    log: Path,  # takes what the process prints outside of cells, such as the last words of a crash
    started: Callable = int,  # is called with the process's id
) -> type:  # for papermill
    "A kernel manager that starts `kernel_main`."
    from jupyter_client import AsyncKernelManager

    class StageKernel(AsyncKernelManager):
        def format_kernel_cmd(self, extra_arguments=None):
            start = "from prefkit.runs.stage import kernel_main; kernel_main()"
            return [
                sys.executable,
                "-c",
                start,
                "-f",
                os.path.realpath(self.connection_file),
                "--log-level=ERROR",
                *(extra_arguments or []),
            ]

        # jupyter_client declares an attribute that holds any awaitable function
        async def start_kernel(self, **options):  # ty: ignore[incompatible-mutable-override]
            with open(log, "ab") as output:
                await super().start_kernel(
                    **({} if lock == NO_HANDLE else {"pass_fds": (lock,)}),
                    env=_environment(lock, environment),
                    stdout=output,
                    stderr=output,
                    **options,
                )
            started(self.provisioner.pid)  # ty: ignore[missing-attribute] a local kernel has one

    return StageKernel


class StageError(PrefkitError):
    "A stage that failed for a reason other than the user's input."


def _in_one_sentence(error, where, output):
    "A papermill error as one of ours."
    kind = {"DataError": DataError, "ConfigError": ConfigError}.get(error.ename, StageError)
    what = (
        error.evalue
        if kind is not StageError or error.ename in ("PrefkitError", "StageError")
        else f"{error.ename}: {error.evalue}"
    )
    if kind is StageError:
        what = f"{what.removesuffix(': ')}{way_out(what)}"
    return kind(f"{where}: {what}\n(the executed notebook: {output})")


# what a machine runs out of: how errors say so -> the way out
WAYS_OUT = {
    "MemoryError|out of memory|alloc.*memory|Cannot allocate": " The machine is out of memory: "
    "lower batch_size (raise gradient_accumulation instead) or max_length; `prefkit plan CONFIG` "
    "says what a stage needs.",
    "No space left|Disk quota|File too large": " There is no room left on the disk: make some, and "
    "the same command goes on.",
    "Too many open files": " The limit of open files is too low: raise it (ulimit -n 4096), and "
    "the same command goes on.",
    "Read-only file system|Permission denied": " Choose a folder that you may write to "
    "(--output-root; PREFKIT_CACHE for the cache).",
}


def way_out(said: str) -> str:  # "" where it is another error
    "What to do about an error of the system, by its words."
    found = [way for words, way in WAYS_OUT.items() if re.search(words, said, re.IGNORECASE)]
    return f".{found[0]}" if found else ""


def execute(
    notebook: Path,  # the pipeline
    output: Path,  # the executed notebook
    parameters: dict,  # all of them; `processes`: in so many kernels
    where: str,  # stands at the start of a message
    lock: int,  # an open lock file
    environment: dict,  # more variables for the kernel
):
    """Run a notebook in a kernel of its own, or in several that share its training; raises what the
    notebook raised, in one sentence.
    """
    number = parameters.get("processes", 1)
    if number == 1:
        in_kernel(notebook, output, parameters, where, lock, environment)
        return
    scratch = output.with_name(".processes")  # what all but the first write
    shutil.rmtree(scratch, ignore_errors=True)
    shared = meeting_point(number) | environment
    team = Team()
    for rank in range(number):
        own, place = parameters, output
        variables = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        if rank > 0:
            folder = scratch / str(rank)
            folder.mkdir(parents=True)
            own, place = {**parameters, "output_dir": str(folder)}, folder / output.name
            variables["PREFKIT_PROGRESS"] = str(folder / "progress.json")
        team.add(partial(in_kernel, notebook, place, own, where, lock, variables))
    team.finish()
    shutil.rmtree(scratch)


class Team:
    """Kernels that work on one stage, each watched by a thread. They end with the first of them, or
    when one fails.
    """

    def __init__(self):
        self.threads, self.ended, self.working = [], queue.Queue(), {}
        self.over = False

    def add(
        self,
        work: Callable,  # runs a kernel; its `started` gets the kernel's process id
    ):
        "Start another kernel."
        rank = len(self.threads)
        self.working[rank] = None
        thread = threading.Thread(target=self._watch, args=(rank, work), daemon=True)
        self.threads.append(thread)
        thread.start()

    def _watch(self, rank, work):
        try:
            work(started=partial(self._started, rank))
            self.ended.put((rank, None))
        except BaseException as error:  # raised below, where somebody waits for it
            self.ended.put((rank, error))

    def _started(self, rank, process):
        self.working[rank] = process
        if self.over:
            self._end(rank)

    def _end(self, rank):
        "Kill a kernel, unless it has not begun: then `_started` does."
        if self.working[rank] is not None:
            with suppress(ProcessLookupError):
                os.kill(self.working[rank], getattr(signal, "SIGKILL", signal.SIGTERM))

    def finish(self):
        "Wait for the first kernel, and end the others; raises the error that came first."
        rank, error = None, None
        try:
            while rank != 0 and error is None:
                rank, error = self.ended.get()
                del self.working[rank]
        finally:
            self.over = True
            for rank in list(self.working):
                self._end(rank)
            for thread in self.threads:
                thread.join()
        if error:
            raise error


def in_kernel(
    notebook: Path,  # the pipeline
    output: Path,  # the executed notebook
    parameters: dict,  # all of them
    where: str,  # stands at the start of a message
    lock: int,  # an open lock file
    environment: dict,  # more variables for the kernel
    started: Callable = int,  # is called with the kernel's process id
):
    "Run a notebook in a kernel; raises what the notebook raised, in one sentence."
    import papermill
    from nbclient.exceptions import CellExecutionError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from papermill.log import logger as papermill_log

    patient = {"start_timeout": 300, "iopub_timeout": 120}  # a busy machine is no error
    # it calls a parameter unknown whose type is `int | None`; we have checked them
    papermill_log.setLevel("ERROR")
    log = output.with_name("kernel.log")
    manager = stage_kernel(
        lock,
        {**environment, "PREFKIT_IMPORTS": " ".join(imported_modules(notebook))},
        log,
        started,
    )
    for tries_left in (3, 2, 1, 0):
        try:
            papermill.execute_notebook(
                as_written(notebook),
                as_written(output),
                parameters,
                kernel_name="python3",
                progress_bar=False,
                kernel_manager_class=manager,
                **patient,
            )
            return
        except PapermillExecutionError as error:
            raise _in_one_sentence(error, where, output) from None
        except DeadKernelError:
            raise StageError(
                f"{where}: its process was ended from outside, perhaps for want of memory. Started "
                f"again it goes on.\n(its last words, if any: {log})"
            ) from None
        except CellExecutionError as error:  # a cell failed, and papermill found no words for it
            raise _in_one_sentence(error, where, output) from None
        except RuntimeError:  # before the first cell
            if not (tries_left and _port_was_taken(log)):
                raise


def as_written(path: Path) -> str:
    "A path for papermill, which would put parameters in the place of what stands in braces."
    return str(path).replace("{", "{{").replace("}", "}}")


def _port_was_taken(log: Path) -> bool:
    "Whether a kernel did not start since another had been given its port in the same moment."
    return log.exists() and "Address already in use" in log.read_text(errors="replace")


def in_notebook() -> bool:
    "Whether a person sees us in a notebook."
    shell = sys.modules.get("IPython") and sys.modules["IPython"].get_ipython()
    return type(shell).__name__ == "ZMQInteractiveShell"


def clock(seconds: float) -> str:  # such as 1:02 or 2:03:04
    "A duration as a clock shows it."
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def progress_line(
    title: str,  # such as `sft [2/4]`
    state: dict,  # label, done, total, note: what core.Progress writes
    first: int,  # how much was done when we began to look
    seconds: float,  # that have passed since
) -> str:
    "How far a stage is, as a line of text."
    pace = (state["done"] - first) / max(seconds, 1e-9)
    left = f", {clock((state['total'] - state['done']) / pace)} left" if pace > 0 else ""
    count = f" {state['done']}/{state['total']}" if state["total"] else ""
    return f"{title} {state['label']}{count}{left}{', ' + state['note'] if state['note'] else ''}"


class Display:
    "The one place where the runner speaks."

    def __init__(
        self,
        # bar | lines | quiet; auto: a bar in a terminal or a notebook, else lines
        kind: str = "auto",
        every: float = 30.0,  # seconds between two lines
        place: str = "",  # stands before every stage's name: an experiment's, where several run
    ):
        if kind == "auto":
            kind = "bar" if in_notebook() or sys.stderr.isatty() else "lines"
        self.kind, self.every, self.job, self.spoken = kind, every, None, time.monotonic()
        self.place = place
        self.bar: Any = None  # tqdm's

    def say(self, text):
        "A line that stays."
        if self.kind != "quiet":
            print(f"{self.place}{text}", flush=True)

    def show(self, title, state):
        "Draw how far a stage is."
        title = f"{self.place}{title}"
        if self.job != (title, state["label"], state["total"]):
            self.job, self.first, self.since = (
                (title, state["label"], state["total"]),
                state["done"],
                time.monotonic(),
            )
            if self.kind == "bar":
                self._new_bar(title, state)
        if self.bar is not None:
            self._move_bar(state)
        elif self.kind == "lines" and time.monotonic() - self.spoken >= self.every:
            self.spoken = time.monotonic()
            print(progress_line(title, state, self.first, self.spoken - self.since), flush=True)

    def close(self):
        "Take the bar away."
        if self.bar is not None:
            self.bar.close()
        self.bar = self.job = None

    def _new_bar(self, title, state):
        "A bar for another job of the stage, in place of the last."
        from tqdm.auto import tqdm

        if self.bar is not None:
            self.bar.close()
        form = (
            "{desc} {bar} {n_fmt}/{total_fmt} {remaining} left{postfix}"
            if state["total"]
            else "{desc} ({elapsed})"
        )
        self.bar = tqdm(
            total=state["total"] or None,
            desc=f"{title} {state['label']}",
            initial=state["done"],
            leave=False,
            bar_format=form,
            dynamic_ncols=True,
        )

    def _move_bar(self, state):
        "Put the bar where the stage is; no new count still moves the clock."
        if state["note"]:
            self.bar.set_postfix_str(state["note"], refresh=False)
        self.bar.update(state["done"] - self.bar.n)
        self.bar.refresh()


class Watch:
    """A thread that looks at a stage's folder while its kernel works: draws how far it is, and
    keeps the time.
    """

    def __init__(
        self,
        folder: Path,  # holds stage.json with the seconds of earlier attempts, and progress.json
        title: str,  # such as `sft [2/4]`
        display: Display,  # where to draw
    ):
        self.folder, self.title, self.display, self.over = folder, title, display, threading.Event()
        self.state, self.begin = json.loads((folder / "stage.json").read_text()), time.monotonic()
        self.heard = 0  # lines of what the kernel has announced
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def seconds(self):
        return self.state["seconds"] + time.monotonic() - self.begin

    def save(self):
        write_json(self.folder / "stage.json", {**self.state, "seconds": round(self.seconds(), 1)})

    def _pass_on(self):
        "What the kernel has announced since."
        try:
            lines = (self.folder / ANNOUNCED).read_text(encoding="utf-8").splitlines()
        except OSError:
            return  # nothing yet
        for line in lines[self.heard :]:
            self.display.say(f"  {line}")
        self.heard = len(lines)

    def _watch(self):
        saved = self.begin
        while not self.over.wait(0.25):
            self._pass_on()
            try:
                state = json.loads((self.folder / "progress.json").read_text())
            except (OSError, ValueError):
                state = {"label": "starting", "done": 0, "total": 0, "note": ""}
            self.display.show(self.title, state)
            # a killed attempt's time counts too
            if time.monotonic() - saved > 5:
                self._try_to_save()
                saved = time.monotonic()

    def _try_to_save(self):
        "On a full disk the time is lost, and the error is that of the stage."
        with suppress(ConfigError):
            self.save()

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exception):
        self.over.set()
        self.thread.join()
        self._pass_on()
        self.display.close()
        self._try_to_save()


def seconds_to_start(
    notebook: Path,  # executed by papermill, whole
) -> float:  # until the first cell that does more than import, check and name parameters
    "What a stage's own process cost before its work began: the kernel's start, and the imports."
    book = json.loads(Path(notebook).read_text(encoding="utf-8"))
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    start = datetime.fromisoformat(book["metadata"]["papermill"]["start_time"])
    for cell in cells:
        tags = {*cell["metadata"].get("tags", ())}
        if not tags & {"parameters", "injected-parameters", "check", "reach"} and not only_imports(
            "".join(cell["source"])
        ):
            break
    begin = datetime.fromisoformat(cell["metadata"]["papermill"]["start_time"])
    return max(0.0, (begin - start).total_seconds())  # the clock may have been set back


def only_imports(
    source: str,  # of a cell
) -> bool:
    "Does a cell import and do nothing else?"
    parts = statements(source)
    return parts is not None and all(
        isinstance(part, (ast.Import, ast.ImportFrom)) for part in parts
    )


PACKAGES = ("torch", "transformers", "datasets", "peft", "accelerate", "numpy", "papermill")


def versions() -> dict[str, str | None]:  # None: not installed
    "Versions of Python, of the tiny world, and of the packages that can change a number."
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "tiny world": WORLD_VERSION,
    }
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None  # not installed: no number comes from it
    return found


def machine() -> dict:  # device, threads, peak_memory_mb and, on a GPU, peak_gpu_memory_mb
    "Where this process runs, and the most memory that it ever held."
    info, torch = {"device": "cpu", "threads": os.cpu_count()}, sys.modules.get("torch")
    try:
        import resource
    except ImportError:  # Windows
        info["peak_memory_mb"] = None
    else:
        unit = 2**20 if sys.platform == "darwin" else 2**10
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        info["peak_memory_mb"] = round(most / unit)
    if torch is None:
        return info
    info["threads"] = torch.get_num_threads()
    if not torch.cuda.is_available():
        return info
    return info | {
        "device": torch.cuda.get_device_name(),
        "peak_gpu_memory_mb": round(torch.cuda.max_memory_allocated() / 2**20),
    }


def output_folder(
    output_dir: str,  # the parameter of that name; "" where a person runs the notebook by hand
    stage: str,  # names the folder in that case
) -> Path:  # it exists
    "Where a pipeline writes: what the runner gave it, else a new folder under data/cache/by-hand."
    folder = (
        Path(output_dir)
        if output_dir
        else cache_folder() / "by-hand" / f"{stage}-{time.strftime('%Y%m%d-%H%M%S')}"
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"output_dir {folder}: {error.strerror}. Choose a folder that you may write to."
        ) from None
    return folder


def finish(
    output_dir: str | Path,  # the stage's folder
    *,
    metrics: dict,  # the numbers that a table would show
    data: dict | None = None,  # which rows were used, kept, shortened, dropped
    model: dict | None = None,  # what the model is
) -> dict:  # what was written
    "Write `result.json`, the last thing that a pipeline does."
    result = {
        "metrics": metrics,
        "data": data or {},
        "model": model or {},
        **machine(),
        "versions": versions(),
        "inputs": {name: str(path) for name, path in inputs_so_far().items() if path.exists()},
    }
    write_json(Path(output_dir) / "result.json", result)
    return result
