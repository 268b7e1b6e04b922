"""`make test`: every step runs even where an earlier one failed; pytest comes last, so that its
summary ends the output.
"""

import os, signal, subprocess, sys, time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
WORKERS = os.environ.get("WORKERS", "2")
# nbdev_test runs lessons, tutorials and the home page; pytest runs the pipelines and reports
# through papermill.
LESSON_FOLDERS = r"^[_.]|^pipelines$|^reports$"
STEPS = {  # name -> (seconds allowed, command)
    "ruff": (60, [BIN / "ruff", "check", "--quiet", "."]),
    "export and clean": (120, [sys.executable, "tools/check_generated.py"]),
    "lessons": (
        600,
        [
            BIN / "nbdev_test",
            "--n_workers",
            WORKERS,
            "--timing",
            "--skip_folder_re",
            LESSON_FOLDERS,
        ],
    ),
    "pytest": (1200, [sys.executable, "-m", "pytest", "-n", WORKERS]),
}
ENVIRONMENT = {  # one thread a worker; nothing is fetched
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
}


def run(command, seconds, environment):
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


def main():
    failed = []
    for name, (seconds, command) in STEPS.items():
        print(f"== {name}", flush=True)
        start = time.monotonic()
        # a test reads PREFKIT_FAILED_STEPS, so that the summary counts what failed before pytest
        status = run(
            command,
            seconds,
            {**os.environ, **ENVIRONMENT, "PREFKIT_FAILED_STEPS": ", ".join(failed)},
        )
        if status:
            failed.append(name)
        if name != "pytest":
            print(
                f"   {'failed' if status else 'passed'} in {time.monotonic() - start:.0f} s",
                flush=True,
            )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
