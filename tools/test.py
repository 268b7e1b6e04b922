"""Run the checks of one tier: `python tools/test.py quick`, `test`, `slow` or `full`.

Every step runs even where an earlier one failed. pytest comes last, so that its summary ends the
output, and a test of it counts the steps that failed before.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
WORKERS = os.environ.get("WORKERS", "2")
# nbdev_test runs the notebooks of solutions, each of which runs its lesson or tutorial first and
# compares its stored outputs; pytest runs pipelines and reports through papermill.
LESSON_FOLDERS = r"^[_.]|^(lib|tutorials|pipelines|reports|colab)$"
ENVIRONMENT = {  # one thread a worker; nothing is fetched
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
}

LINT = {
    "ruff check": [BIN / "ruff", "check", "--quiet", "."],
    "ruff format": [BIN / "ruff", "format", "--quiet", "--check", "."],
    "types": [BIN / "ty", "check", "--quiet", "--python", sys.prefix],
}
EXPORT = {"export and clean": [sys.executable, "tools/check_generated.py"]}
LESSONS = {
    "lessons": [
        BIN / "nbdev_test",
        *("--n_workers", WORKERS),
        *("--skip_folder_re", LESSON_FOLDERS),
        "--timing",
    ]
}


def pytest(*arguments: str) -> dict[str, list]:  # the step of that name
    return {"pytest": [sys.executable, "-m", "pytest", "-n", WORKERS, *arguments]}


def quick_tests() -> list[str]:
    "The losses, what they stand on, data, configs and one pipeline from end to end."
    losses = [path.stem for path in sorted((ROOT / "prefkit/losses").glob("[a-z]*.py"))]
    names = ["house", "loss_edges", *losses, "logps", "engine", "core", "config", "chat", "data"]
    files = [f"tests/test_{name}.py" for name in names]
    pipeline = "tests/test_pipelines.py::test_sft_and_dpo_leave_whole_run_folders"
    return [*(file for file in files if (ROOT / file).exists()), pipeline]


TIERS = {  # name -> step -> command
    "lint": LINT,
    "quick": {**LINT, **pytest("-m", "not slow", *quick_tests())},
    "test": {**LINT, **EXPORT, **pytest("-m", "not slow")},
    "slow": {**LESSONS, **pytest("-m", "slow")},
    "full": {**LINT, **EXPORT, **LESSONS, **pytest()},
}
SECONDS = {"lessons": 900, "pytest": 2400}  # a step may take; every other two minutes


def run(command: Sequence, seconds: float, environment: Mapping[str, str]) -> int:
    """Exit status of a command; one that takes too long is ended with all its children (nbdev_test
    has no time limit of its own).
    """
    process = subprocess.Popen(
        [str(word) for word in command], cwd=ROOT, env=environment, start_new_session=True
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        print(f"took longer than {seconds} s", flush=True)
        return 124
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run_tier(name: str) -> list[str]:  # the steps that failed
    failed: list[str] = []
    for step, command in TIERS[name].items():
        print(f"== {step}", flush=True)
        start = time.monotonic()
        told = {**os.environ, **ENVIRONMENT, "PREFKIT_FAILED_STEPS": ", ".join(failed)}
        status = run(command, SECONDS.get(step, 120), told)
        if status:
            failed.append(step)
        if step != "pytest":
            word = "failed" if status else "passed"
            print(f"   {word} in {time.monotonic() - start:.0f} s", flush=True)
    return failed


if __name__ == "__main__":
    tier = sys.argv[1] if len(sys.argv) > 1 else "test"
    if tier not in TIERS:
        sys.exit(f"there is no tier {tier}; there are {', '.join(TIERS)}")
    sys.exit(bool(run_tier(tier)))
