"""The kit away from its checkout: sdist and wheel, and what the wheel can do in an empty folder."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from prefkit.core import (
    SHARE,
    ConfigError,
    DataError,
    project_root,
    read_jsonl,
    resolve_path,
    shipped,
)
from prefkit.runs.catalogue import WHAT, catalogue
from prefkit.runs.config import load_config
from prefkit.runs.start import TRIED, new


def called(*words, cwd, **more):
    "A command's output; what it said stands in the error where it fails."
    made = subprocess.run(
        list(map(str, words)), cwd=cwd, capture_output=True, text=True, env={**os.environ, **more}
    )
    assert made.returncode == 0, f"{words}\n{made.stdout}\n{made.stderr}"
    return made.stdout


@pytest.fixture(scope="module")
def built(root, tmp_path_factory):
    "An sdist of the checkout, and the wheel that is built from the sdist alone."
    home = tmp_path_factory.mktemp("package")
    tree = home / "tree"
    made = {"runs", "cache", "models"}  # below data/

    def ignored(folder, names):
        hidden = {name for name in names if name.startswith((".", "_docs", "_proc", "__pycache__"))}
        return hidden | {name for name in made if folder == str(root / "data")}

    shutil.copytree(root, tree, ignore=ignored)
    called(sys.executable, "setup.py", "-q", "sdist", "-d", home, cwd=tree)
    (sdist,) = home.glob("prefkit-*.tar.gz")
    with tarfile.open(sdist) as file:
        file.extractall(home / "source", filter="data")
    (source,) = (home / "source").iterdir()
    pip = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation")
    called(*pip, "-w", home, ".", cwd=source)
    (wheel,) = home.glob("prefkit-*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    "The wheel's files alone, as pip lays them down, before the checkout on the path."
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(built[1]) as file:
        file.extractall(site)
    return site


@pytest.fixture
def prefkit(installed, tmp_path):
    "The command of the installed package, in an empty folder."
    words = (sys.executable, "-m", "prefkit")
    where = {"PYTHONPATH": str(installed), "PREFKIT_CACHE": str(tmp_path / ".cache")}

    def command(*arguments):
        return called(*words, *arguments, cwd=tmp_path, **where)

    return command


@pytest.fixture
def alone(request, root, built, tmp_path):
    """The same where nothing else is installed, offline; without PREFKIT_EMPTY_ENVIRONMENT, which
    says that PyTorch and all else may be installed anew, with what is installed here.
    """
    if not os.environ.get("PREFKIT_EMPTY_ENVIRONMENT"):
        return request.getfixturevalue("prefkit")
    empty = tmp_path / ".environment"
    called(sys.executable, "-m", "venv", empty, cwd=tmp_path)
    pip = (empty / "bin/python", "-m", "pip", "install", "-q", "-c", root / "constraints.txt")
    # a checkout on the path would pass for an installed prefkit
    where = {"PYTHONPATH": "", "PREFKIT_CACHE": "", "HF_HUB_OFFLINE": "1"}
    called(*pip, "--no-deps", "torch", cwd=tmp_path, **where)  # first and alone, as the Makefile
    called(*pip, built[1], cwd=tmp_path, **where)

    def command(*arguments):
        return called(empty / "bin/prefkit", *arguments, cwd=tmp_path, **where)

    return command


def test_sdist_and_wheel_hold_what_a_run_needs(built):
    names = zipfile.ZipFile(built[1]).namelist()
    for needed in (
        "runs/runner.py",
        "model/loading.py",
        "share/nbs/pipelines/sft.ipynb",
        "share/nbs/reports/first_path.ipynb",
        "share/data/configs/tiny/first_path.yaml",
        "share/data/tiny/base/model.safetensors",
        "share/data/results/seeds/comparison.json",
        "data/templates/qwen2.5.jinja",
    ):
        assert f"prefkit/{needed}" in names
    assert not [name for name in names if "/tests/" in name or "ipynb_checkpoints" in name]
    sources = tarfile.open(built[0]).getnames()
    assert any(name.endswith("/settings.ini") for name in sources)


@pytest.mark.slow
def test_in_an_empty_folder_lists_are_those_of_the_wheel(prefkit, installed, tmp_path):
    asked = "from prefkit.core import *; print(SHARE, project_root(), sep='|')"
    words = (sys.executable, "-c", asked)
    share, root = called(*words, cwd=tmp_path, PYTHONPATH=str(installed)).strip().split("|")
    assert Path(share) == installed / "prefkit" / "share" and Path(root) == tmp_path.resolve()
    assert prefkit("--version").startswith("prefkit ")
    said = prefkit("list")
    for name in ("minor_dpo", "pairwise", "ultrafeedback_binarized", "own_pairs", "first_path"):
        assert f"  {name} " in said


def pairs_become_a_page(prefkit, root, folder):
    "From a file to a report: new, run, report; all below the folder that one stands in."
    shutil.copy(root / "data/tiny/pairs_test.jsonl", folder / "mine.jsonl")
    assert "kept 64" in prefkit("new", "first", "--data", "mine.jsonl")
    prefkit("run", "first.yaml", "--set", "sft.max_steps=2", "--set", "dpo.max_steps=2")
    said = prefkit("report", "first.yaml", "--set", "sft.max_steps=2", "--set", "dpo.max_steps=2")
    page = folder / "data/runs/first/report/report.html"
    assert str(page) in said and "Held-out pairs" in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_pairs_of_ones_own_become_a_page(prefkit, root, tmp_path):
    pairs_become_a_page(prefkit, root, tmp_path)
    assert not list(SHARE.glob("**/runs"))


OWN = {
    "my_reward.py": """
from prefkit.plugins import register_reward

def near(prompts, answers, *, words=3, **columns):
    return [-abs(len(answer.split()) - words) for answer in answers]

register_reward("near", near)
""",
    "my_loss.py": """
from torch.nn.functional import relu
from prefkit.plugins import register_loss

def hinge(policy_chosen_logps, policy_rejected_logps, *, margin=1.0):
    return relu(margin - policy_chosen_logps + policy_rejected_logps)

register_loss("hinge", hinge)
""",
}
FEW = {
    "model": "data/tiny/instruct",
    "limit": 8,
    "max_steps": 2,
    "batch_size": 4,
    "validation_limit": 4,
}


def own_parts_train(prefkit, folder):
    "A reward and a loss, in one command, in a folder that holds a config and their files."
    for name, text in OWN.items():
        (folder / name).write_text(text)
    stages = {
        "rloo": {"pipeline": "rollout", "parameters": {**FEW, "reward": "near", "samples": 2}},
        "hinge": {"pipeline": "preference", "parameters": {**FEW, "method": "hinge"}},
    }
    config = {"experiment": "own", "plugins": list(OWN), "stages": stages}
    (folder / "own.yaml").write_text(yaml.safe_dump(config))
    prefkit("run", "own.yaml")
    samples = read_jsonl(folder / "data/runs/own/rloo/samples.jsonl")
    assert samples and all(one["reward"] == -abs(len(one["answer"].split()) - 3) for one in samples)
    lines = read_jsonl(folder / "data/runs/own/hinge/metrics.jsonl")
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2]


@pytest.mark.slow
def test_a_reward_and_a_loss_of_ones_own_from_files(prefkit, tmp_path):
    own_parts_train(prefkit, tmp_path)


def demo_ends_with_a_picture(prefkit, folder):
    said = prefkit("demo")
    assert "gold reward" in said and "dpo " in said and "█" in said
    assert (folder / "data/runs/demo/report/report.html").is_file()
    assert list((folder / "data/runs/demo/report").rglob("win_rates.png"))


@pytest.mark.slow
def test_each_promise_is_kept_where_nothing_else_is_installed(alone, root, tmp_path):
    assert alone("--version").startswith("prefkit ") and "  minor_dpo " in alone("list")
    demo_ends_with_a_picture(alone, tmp_path)
    pairs_become_a_page(alone, root, tmp_path)
    own_parts_train(alone, tmp_path)


# ---- a config for data of one's own


@pytest.mark.parametrize("kind", TRIED)
def test_a_new_config_is_whole_and_names_the_rows_of_the_file(kind, root, tmp_path, monkeypatch):
    shutil.copy(root / f"data/tiny/{kind}_train.jsonl", tmp_path / "CONFIG [58:] of mine.jsonl")
    monkeypatch.chdir(tmp_path)
    path, account = new("mine-2", "CONFIG [58:] of mine.jsonl", "some/model")
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    stages = written["stages"]
    assert written["experiment"] == "mine-2" and "kept 64" in account
    first = next(iter(stages.values()))["parameters"]
    assert first["model"] == "some/model" and first["dataset"] == "CONFIG [58:] of mine.jsonl"
    assert (first["split"], first["validation_split"]) == ("train[:58]", "train[58:]")
    assert "data/tiny" not in path.read_text(encoding="utf-8")
    load_config(path)


@pytest.mark.parametrize("kind", TRIED)
def test_what_new_starts_from_is_a_config_itself(kind):
    loaded = load_config(shipped(f"data/configs/new/{kind}.yaml"))
    assert loaded.experiment == kind and loaded.report == "first_path"


@pytest.mark.parametrize(
    "name, data, said",
    [
        ("a/b", None, "cannot name an experiment"),
        ("", None, "cannot name an experiment"),
        ("there", None, "there.yaml is there already"),
        ("fine", "nowhere.jsonl", "nowhere.jsonl: no such file"),
        ("fine", "poem.jsonl", "poem.jsonl holds nothing to train on"),
        ("fine", "one.jsonl", "too few rows"),
    ],
)
def test_what_new_refuses(name, data, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.yaml").write_text("mine")
    (tmp_path / "poem.jsonl").write_text('{"verse": "one"}\n{"verse": "two"}\n')
    (tmp_path / "one.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    with pytest.raises((ConfigError, DataError), match=said):
        new(name, data)
    assert (tmp_path / "there.yaml").read_text() == "mine" and not (tmp_path / "fine.yaml").exists()


# ---- lists


@pytest.mark.parametrize("what", WHAT)
def test_everything_that_can_be_named_has_a_line(what):
    found = catalogue(what)[what]
    assert found and all(line.strip(" :.") for line in found.values()), found


def test_a_list_that_there_is_not_names_those_that_there_are():
    with pytest.raises(ConfigError, match="Did you mean `methods`"):
        catalogue("method")


# ---- where things are


def test_a_checkout_comes_first_and_its_own_files_are_used(root, tmp_path, monkeypatch):
    monkeypatch.delenv("PREFKIT_ROOT", raising=False)
    monkeypatch.chdir(root / "nbs")
    assert project_root() == root and shipped("nbs/pipelines") == root / "nbs/pipelines"
    assert resolve_path("data/tiny/base") == root / "data/tiny/base"
