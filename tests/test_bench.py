"""`make bench` runs, all parts of it, on a machine without a GPU; how fast anything is, no test
says.
"""

import json
import subprocess
import sys

import pytest

from prefkit.core import project_root

# of the GPU's those that the CPU has not
PARTS = {"cpu": ("steps", "options", "head", "scaling"), "gpu": ("methods", "limits")}


def bench(*words):
    return subprocess.run(
        [sys.executable, "tools/bench.py", *words],
        cwd=project_root(),
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
@pytest.mark.parametrize("what", PARTS)
def test_every_part_runs_and_is_kept(what, tmp_path):
    output = tmp_path / "found.json"
    done = bench(what, "--quick", "--only", *PARTS[what], "--output", str(output))
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert {"contestants", "machines", *PARTS[what]} == set(found)
    assert set(found["machines"]) == set(PARTS[what])
    if what == "cpu":
        cases = found["steps"]["tiny"]["cases"]
        assert set(cases) == {"naive", "trl", "trl_precomputed", "prefkit"}
        for case in cases.values():
            assert case["step_seconds"]["min"] > 0 and isinstance(case["peak_bytes"], int)
        axes = {"batch", "length", "vocabulary", "prompt_share", "k", "shared_share"}
        assert set(found["scaling"]) == axes
        assert found["head"]["time_ratio"] > 0
    else:
        assert [row["method"] for row in found["methods"]] == ["sft", "rloo"]
        for row in found["methods"]:
            assert 0 < row["utilisation"] < 1 and row["tokens_per_second"] > 0
        assert all(row["fits"] and row["planned_bytes"] > 0 for row in found["limits"])


def test_the_gpu_bench_says_so_where_there_is_none_and_a_part_by_a_wrong_name_is_named():
    import torch

    if not torch.cuda.is_available():
        assert "there is no GPU here" in bench("gpu").stderr
    assert "there is no part heads" in bench("cpu", "--quick", "--only", "heads").stderr
