"""Kills, played through: a piece of code is stopped at its first move of files, its second, ..."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from unittest import mock


class Killed(BaseException):
    "Stands for SIGKILL: nothing in the kit catches it."


@contextmanager
def killed_at(instant: int):
    """Stop the code inside at its `instant`-th instant, counted from 0; yields a list that says so.

    Before each rename lies one instant; a removal has two, before it and half way through it.
    """
    rename, replace, rmtree = os.rename, os.replace, shutil.rmtree
    passed = []

    def look():
        if len(passed) == instant:
            raise Killed
        passed.append("instant")

    def killable(move):
        def moved(old, new, **options):
            look()
            move(old, new, **options)

        return moved

    def killable_rmtree(folder, ignore_errors=False, **options):
        look()
        if not os.path.exists(folder):
            return
        for path in [path for path in Path(folder).rglob("*") if path.is_file()][:1]:
            path.unlink()
        look()
        rmtree(folder, ignore_errors, **options)

    with (
        mock.patch.object(os, "rename", killable(rename)),
        mock.patch.object(os, "replace", killable(replace)),
        mock.patch.object(shutil, "rmtree", killable_rmtree),
    ):
        killed = []
        try:
            yield killed
        except Killed:
            killed.append(True)


def instants(start, work):
    """All that a kill can leave: `start(number)` makes a place, `work(place)` is killed there.

    Yields each place once, the last one after work that nobody disturbed.
    """
    instant, killed = 0, [True]
    while killed:
        place = start(instant)
        with killed_at(instant) as killed:
            work(place)
        yield place
        instant += 1


def alive(pid):
    "Whether a process runs; one that has ended and waits for its parent does not."
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
