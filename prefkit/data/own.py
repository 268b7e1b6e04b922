"""Data sets of one's own by a name: a function that makes rows. Not from a notebook."""

from collections.abc import Callable

from prefkit.core import ConfigError
from prefkit.data.records import ALL_SPLITS, DATASETS, KINDS, Source
from prefkit.data.sources import MAKERS


def register_dataset(
    name: str,  # as in a config
    # (kind, split, n, seed) -> a list of rows in any layout that `load_records` reads; n None: as
    # many as there are
    make: Callable,
    kinds: tuple[str, ...] = KINDS,  # of rows that it makes: sft, pairs, binary, prompts
    note: str = "",  # one sentence for `prefkit list`
):
    "Add a data set; a name of yours may be given again, another raises `ConfigError`."
    if name in DATASETS and name not in MAKERS:
        raise ConfigError(
            f"dataset: {name} is there already. Take another name.", field="name", reason="taken"
        )
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ConfigError(
            f"dataset {name}: {unknown[0]} is none of {', '.join(KINDS)}.",
            field="kinds",
            reason="unknown",
        )
    MAKERS[name] = make
    DATASETS[name] = Source("", ALL_SPLITS, tuple(kinds), note=note or "A data set of your own.")
