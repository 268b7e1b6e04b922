"""A run is killed in the middle of a step, of a line, of a file.

Started again, it has to end in the same weights, to the last bit, and in the same log. That takes
four small rules.
"""

import hashlib, json, os, shutil
from array import array
from contextlib import contextmanager
from pathlib import Path
from typing import Callable

import torch
import transformers
from transformers.utils import logging as transformers_logging

from prefkit.core import ConfigError, code_behind, fingerprint, iter_jsonl, write_json, write_jsonl
from prefkit.model.batches import reference_logps

# in a checkpoint; it is written last, so its presence says that the checkpoint is whole
STATE_FILE = "prefkit.json"


def find_checkpoints(
    folder: Path,  # with checkpoint-N folders in it, or nothing yet
) -> dict[int, Path]:  # step -> folder, in order; only whole ones
    "The complete checkpoints in a folder."
    found = {
        int(path.parent.name.split("-")[1]): path.parent
        for path in Path(folder).glob(f"checkpoint-*/{STATE_FILE}")
    }
    return dict(sorted(found.items()))


def discard(folder: Path):
    "Delete a folder so that a kill in between leaves nothing that looks whole."
    if not folder.exists():
        return
    doomed = folder.with_name(f".old-{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


@contextmanager
def no_bars():
    "transformers draws a bar for every file that it writes; one bar is enough."
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def save_folder(folder: Path, *savers: Callable):
    "Let each saver write into a folder that appears only when it is whole."
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with no_bars():
        for save in savers:
            save(partial)
    discard(folder)
    os.replace(partial, folder)


LEFTOVERS = (
    ".training.json.*",
    ".reference.json.*",
    ".metrics.jsonl.*",
    ".samples.jsonl.*",
    ".checkpoint.partial",
    ".adapter.partial",
    ".old-*",
    "checkpoints/.*",
)


def clear_leftovers(
    folder: Path,  # of a run
):
    "Delete what a killed run had begun to write or to delete; only names that are given here."
    for path in [path for pattern in LEFTOVERS for path in folder.glob(pattern)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def cut_lines(
    path: Path,  # metrics.jsonl or samples.jsonl
    step: int,  # of the checkpoint that the run goes on from; -1 for a new start
):
    "Drop the lines after `step`, which are going to be written again, and one that was broken off."
    kept = (
        [record for _, record, _ in iter_jsonl(path) if record and record["step"] <= step]
        if path.exists()
        else []
    )
    write_jsonl(path, kept)


def model_fingerprint(model) -> str:
    "A short name for a model's weights."
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
        digest.update(
            weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()[:16]


def rows_fingerprint(rows: list[dict]) -> str:
    "A short name for encoded rows."
    digest = hashlib.sha256()
    for row in rows or []:
        for name in sorted(row):
            digest.update(
                name.encode()
                + (
                    array("q", row[name]).tobytes()
                    if isinstance(row[name], list)
                    else str(row[name]).encode()
                )
            )
    return digest.hexdigest()[:16]


class OtherRun(ConfigError):
    "A folder that holds a run with other settings, data or start."


def open_folder(
    folder: Path,  # output_dir of a run
    identity: dict,  # everything that must be equal for a run to be continued
) -> bool:  # is the run in it finished?
    """Claim an output folder for one run; raises `OtherRun` if it holds another run, `ConfigError`
    if it cannot be written to.
    """
    path = folder / "training.json"
    if not path.exists():
        write_json(path, {**identity, "finished": False})
        return False
    # as json gives it back: tuples are lists
    before, identity = json.loads(path.read_text()), json.loads(json.dumps(identity))
    changed = [
        name for key, value in identity.items() for name in differences(key, before.get(key), value)
    ]
    if changed:
        raise OtherRun(
            f"{folder} holds a run with other {', '.join(changed)}. Choose another output_dir or "
            "delete this one."
        )
    return before["finished"]


def differences(name: str, old, new) -> list[str]:
    "Dotted names of the entries in which two values differ."
    if isinstance(old, dict) and isinstance(new, dict):
        return [f"{name}.{key}" for key in {**old, **new} if old.get(key) != new.get(key)]
    return [] if old == new else [name]


def model_settings(model) -> dict:
    """What besides weights a model's log-probs depend on: its config (positions, kind of
    attention), where and with which versions it runs.
    """
    config = {
        name: value
        for name, value in model.config.to_dict().items()
        if name not in ("_name_or_path", "transformers_version")
    }
    return {
        **json.loads(json.dumps(config, default=str)),
        "attention": getattr(model.config, "_attn_implementation", None),
        "device": model.device.type,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }


def read_stored(
    path: Path | None,
) -> dict:  # {} where there is none, or none that can be read: it is then made anew
    "A stored reference."
    try:
        return json.loads(path.read_text()) if path and path.exists() else {}
    except ValueError:
        return {}


def with_reference(
    model,  # before training
    sets: dict[str, list[dict]],  # name -> encoded rows
    answers: tuple[str, ...],  # names of their answers, those of `extra` too
    pad_token_id: int,  # any token
    folder: Path,  # where reference.json is kept
    *,
    # answers to be added: name -> function of model and rows that gives token ids for each row
    extra: dict[str, Callable] = {},
    # a folder in which other runs with this model and these rows find the log-probs; not used with
    # `extra`
    cache: Path | None = None,
    **options,  # batch_size, precision, layout: as for `reference_logps`
) -> dict[str, list[dict]]:  # the same rows with reference log-probs, and with the extra answers
    """Rows with what the model before training says of them: from the run's folder if it is there
    for these rows and weights, else computed.
    """
    path = folder / "reference.json"
    key = {
        "model": model_fingerprint(model),
        "config": model_settings(model),
        "code": code_behind(reference_logps, *extra.values()),
        "answers": list(answers),
        **options,
        **{name: rows_fingerprint(rows) for name, rows in sets.items()},
    }
    shared = cache / f"{fingerprint(key)}.json" if cache and not extra else None
    found = [read_stored(place) for place in (path, shared)]
    stored = next((one for one in found if one.get("key") == key), None)
    if stored is None:
        added = {
            name: [
                dict(zip((f"{new}_ids" for new in extra), ids))
                for ids in zip(*(make(model, rows) for make in extra.values()))
            ]
            or [{}] * len(rows)
            if rows
            else []
            for name, rows in sets.items()
        }
        whole = {
            name: [{**row, **more} for row, more in zip(rows, added[name])]
            for name, rows in sets.items()
        }
        logps = {
            name: reference_logps(model, rows, answers, pad_token_id, **options)
            for name, rows in whole.items()
        }
        stored = {
            "key": key,
            **{
                name: [{**more, **ref} for more, ref in zip(added[name], logps[name])]
                for name in sets
            },
        }
    for place, one in zip((path, shared), found):
        if place and one.get("key") != key:
            write_json(place, stored)
    return {
        name: [{**row, **logps} for row, logps in zip(rows, stored[name])]
        for name, rows in sets.items()
    }
