"""Where Python has no fcntl and no resource, as on Windows: everything imports, locks hold, a run
runs.
"""

import os
import subprocess
import sys

import pytest

from prefkit.core import write_text
from prefkit.runs.config import write_pipeline

LACKING = """
import builtins
real = builtins.__import__

def without(name, globals=None, *rest, **more):
    asking = (globals or {}).get("__name__", "")
    if name in ("fcntl", "resource", "pwd", "grp", "termios") and asking.startswith("prefkit"):
        raise ImportError(f"{name} is not there")
    return real(name, globals, *rest, **more)

builtins.__import__ = without
"""


@pytest.fixture
def called(tmp_path, root):
    "Python in a process in which prefkit finds no POSIX module, and so in those that it starts."
    write_text(tmp_path / "site" / "sitecustomize.py", LACKING)
    paths = os.pathsep.join((str(tmp_path / "site"), str(root)))

    def run(*words):
        environment = {**os.environ, "PYTHONPATH": paths}
        return subprocess.run(
            [sys.executable, *map(str, words)],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
        )

    return run


def test_every_module_imports(called, root):
    names = [
        ".".join(path.relative_to(root).with_suffix("").parts)
        for path in sorted((root / "prefkit").rglob("*.py"))
        if path.name not in ("__init__.py", "__main__.py", "_modidx.py")
    ]
    made = called("-c", f"import importlib\nfor name in {names}: importlib.import_module(name)")
    assert made.returncode == 0, made.stderr


def test_a_lock_is_held_and_let_go(called, tmp_path):
    text = """
from prefkit.core import ConfigError
from prefkit.runs.stage import NO_HANDLE, StageLock, machine

for _ in range(2):
    with StageLock(".sft.lock") as lock:
        assert lock.handle == NO_HANDLE
        try:
            with StageLock(".sft.lock", wait=0.3):
                raise SystemExit("two hold it")
        except ConfigError as error:
            assert "another run is at work here" in str(error)
assert machine()["peak_memory_mb"] is None
"""
    made = called("-c", text)
    assert made.returncode == 0, made.stderr


def test_a_run_runs(called, tmp_path):
    write_pipeline(
        tmp_path / "one.ipynb",
        'output_dir: str = ""',
        "from prefkit.runs.stage import finish\nfinish(output_dir, metrics={'found': 1})",
    )
    config = write_text(
        tmp_path / "one.yaml", "experiment: one\nstages: {a: {pipeline: one.ipynb}}"
    )
    made = called("-m", "prefkit", "run", config, "--output-root", tmp_path / "runs")
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "runs/one/a/run.json").is_file()
