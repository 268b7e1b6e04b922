"""The names of the parts that what is generated here is split into."""

from prefkit.core import DataError

SPLITS = ("train", "validation", "test")


def check_split(
    split: str,  # as a user names it
    owner: str,  # what is split, for the message
):
    "Raise `DataError` for a name that is none of `SPLITS`."
    if split not in SPLITS:
        raise DataError(
            f"{owner} has the splits {', '.join(SPLITS)}, not {split!r}.",
            field="split",
            reason="unknown split",
        )
