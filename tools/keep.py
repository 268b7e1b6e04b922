"""Keep what one stage of a run found, for a lesson to draw:

python tools/keep.py data/runs/reward_model/reward_model data/results/lessons/reward_model.json
"""

import json
import sys
from pathlib import Path

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


def keep(stage: str, target: str):
    """Write the numbers of a finished stage with where they come from, and without the names of
    this machine's folders.
    """
    run = json.loads((Path(stage) / "run.json").read_text(encoding="utf-8"))
    if run["status"] != "done":
        sys.exit(f"{stage} is not finished ({run['status']}).")
    experiment, folder = run["experiment"], f"data/runs/{run['experiment']}/{run['stage']}"
    kept = {
        "command": f"prefkit run data/configs/tiny/{experiment}.yaml && "
        f"python tools/keep.py {folder} {target}",
        **{name: run.get(name) for name in KEPT},
        "model": {name: value for name, value in run["model"].items() if name != "start"},
    }
    text = json.dumps(kept, indent=1, ensure_ascii=False)
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    keep(*sys.argv[1:])
