"""What every test stands on. Set before torch is imported: one thread, nothing fetched."""

import os
from pathlib import Path

for name, value in {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
}.items():
    os.environ[name] = value

import pytest
from hypothesis import settings

# the same examples in every run, and no time limit for one: a slow machine is not a failure
settings.register_profile("prefkit", deadline=None, derandomize=True)
settings.load_profile("prefkit")

# The files that take longest, longest first. Workers take whole files in this order, so that none
# is left with a long one at the end.
LONGEST_FIRST = (
    "test_docs",
    "test_plan",
    "test_pipelines",
    "test_rollout_pipeline",
    "test_studies",
    "test_runs",
    "test_train",
    "test_online",
    "test_comparison",
    "test_offline",
    "test_bench",
    "test_golden",
    "test_methods",
    "test_ground",
    "test_report",
    "test_rewards",
    "test_online_reports",
    "test_evaluate",
)


def pytest_collection_modifyitems(items):
    rank = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    "No test finds what another run has cached, or leaves anything in the project's cache."
    os.environ["PREFKIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def root():
    "The project's top folder."
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def tokenizer(root):
    "The tiny world's; a test that changes it takes a copy."
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(root / "data/tiny/base")


@pytest.fixture(scope="session")
def real_data():
    "The folder with samples of real data sets; without it the test is skipped, saying so."
    folder = os.environ.get("PREFKIT_REAL_DATA", "")
    if not folder:
        pytest.skip("PREFKIT_REAL_DATA is not set: no samples of real data sets here")
    assert Path(folder).is_dir(), f"PREFKIT_REAL_DATA names {folder}, which is not a folder"
    return Path(folder)


@pytest.fixture()
def faulty(monkeypatch):
    "A server that has every fault there is, and a key for it."
    from helpers.served import KEY, Faulty, serving

    monkeypatch.setenv("FAKE_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(Faulty()) as server:
        yield server
