"""Keep what one stage of a run found, for a lesson to draw: python tools/keep.py
data/runs/reward_model/reward_model data/results/lessons/reward_model.json
"""

import json, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KEPT = (
    "experiment",
    "stage",
    "finished",
    "seed",
    "wall_seconds",
    "metrics",
    "data",
    "device",
    "threads",
    "versions",
    "git",
    "fingerprints",
)


def keep(stage, target):
    """Write the numbers of a finished stage with where they come from, and without the names of
    this machine's folders.
    """
    run = json.loads((Path(stage) / "run.json").read_text(encoding="utf-8"))
    if run["status"] != "done":
        sys.exit(f"{stage} is not finished ({run['status']}).")
    folder = f"data/runs/{run['experiment']}/{run['stage']}"
    command = (
        f"prefkit run data/configs/tiny/{run['experiment']}.yaml && python tools/keep.py {folder} "
        f"{target}"
    )
    model = {name: value for name, value in run["model"].items() if name != "start"}
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).write_text(
        json.dumps(
            {"command": command, **{name: run.get(name) for name in KEPT}, "model": model},
            indent=1,
            ensure_ascii=False,
        )
        + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    keep(*sys.argv[1:])
