"""A run is killed in the middle of a step, of a line, of a file.

Started again, it has to end in the same weights, to the last bit, and in the same log. That takes
four small rules: a file is written under another name and renamed; a checkpoint holds all that the
next step depends on, and a sum for each of its files and of the lines before it; lines after the
checkpoint are dropped; and a folder belongs to one run.
"""

import hashlib
import json
import os
import random
import shutil
from array import array
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard, cast

import numpy
import torch
import transformers
from peft import set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.utils import logging as transformers_logging

from prefkit.core import (
    ConfigError,
    PrefkitError,
    announce,
    code_behind,
    fingerprint,
    fingerprint_files,
    iter_jsonl,
    optional_cache,
    sync_files,
    write_json,
    write_jsonl,
)
from prefkit.data.rows import Row, as_rows
from prefkit.model.batches import reference_logps
from prefkit.model.kernels import attention_of
from prefkit.model.loading import model_fingerprint
from prefkit.train.devices import Share

# in a checkpoint; it is written last, so its presence says that the checkpoint is whole
STATE_FILE = "prefkit.json"
WEIGHTS, ADAPTER = "model.safetensors", "adapter_model.safetensors"  # as save_pretrained calls them
LINE_FILES = (
    "metrics.jsonl",
    "samples.jsonl",
)  # what a run has written so far, beside its checkpoints
BESIDE = "beside.safetensors"  # what is trained beside the model: a value head


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
    sync_files(partial)
    discard(folder)
    os.replace(partial, folder)


class Saves:
    """Checkpoints of a run, each whole or not there: folders checkpoint-N that are written under
    another name, checked by a sum for each file, and renamed.
    """

    def __init__(
        self,
        folder: Path,  # holds checkpoint-N
        learner: Any,  # a `Learner`: its trainable weights are what is saved
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        parts: dict[str, Any],  # name -> something with `state()` and `load(state)`
        share: Share,
    ):
        self.folder, self.learner, self.optimizer, self.scaler = folder, learner, optimizer, scaler
        self.parts, self.share = parts, share

    def write(self, step: int, finished: bool, keep: set[int | None]):
        "Write a checkpoint and discard all but it and those of `keep`."
        state = {name: part.state() for name, part in self.parts.items()}
        state |= {"step": step, "finished": finished, "random": self.share.each(random_states())}
        weights, memory = whole_state(self.learner, self.optimizer)  # all processes take part
        if self.share.rank == 0:
            self._write_files(step, state, weights, memory)
            for other, path in find_checkpoints(self.folder).items():
                if other != step and other not in keep:
                    discard(path)
        self.share.wait()

    def _write_files(self, step: int, state: dict, weights: dict | None, memory: dict):
        writing = self.folder / ".writing"
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)
        with no_bars():
            self.learner.model.save_pretrained(writing, state_dict=weights)
        if others := self.learner.others():
            save_file(others, writing / BESIDE)
        torch.save(memory, writing / "optimizer.pt")
        torch.save(self.scaler.state_dict(), writing / "scaler.pt")
        state |= {"files": sums_of(writing), "lines": lines_so_far(self.folder.parent)}
        write_json(writing / STATE_FILE, {**state, "sum": fingerprint(json_form(state))})
        sync_files(writing)
        whole = self.folder / f"checkpoint-{step}"
        shutil.rmtree(whole, ignore_errors=True)
        os.replace(writing, whole)

    def newest(self) -> int | None:
        """Step of the last checkpoint that is as it was written, with the lines before it; damaged
        ones are named, and where there is no other the run starts anew.
        """
        found = [path for path in self.folder.glob("checkpoint-*") if path.name[11:].isdigit()]
        for path in sorted(found, key=step_of, reverse=True):
            damaged = self._damaged(path)
            if not damaged:
                return step_of(path)
            if self.share.rank == 0:
                announce(
                    f"{path}: {', '.join(damaged)} is damaged. The checkpoint is not used; an "
                    "earlier one is, or the run starts anew."
                )
        return None

    def _damaged(self, path: Path) -> list[str]:
        "Files that are not as they were, of what a run needs to go on from a checkpoint."
        damaged = damaged_files(path)
        if damaged:
            return damaged
        state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        best = state["best"]["step"] if self.parts["best"].keep else None
        kept = path.with_name(f"checkpoint-{best}")
        if best is not None and kept != path:
            damaged = [f"{kept.name}/{name}" for name in damaged_files(kept)]
        return damaged + damaged_lines(self.folder.parent, state.get("lines", {}))

    def load(self, step: int) -> bool:  # whether the run was at its end
        "Everything as it was at a checkpoint."
        path = self.folder / f"checkpoint-{step}"
        state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        self.load_weights(step)
        memory = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
        load_memory(self.learner, self.optimizer, memory)
        self.scaler.load_state_dict(torch.load(path / "scaler.pt", weights_only=True))
        for name, part in self.parts.items():
            part.load(state[name])
        states = state["random"]
        set_random_states(states[self.share.rank if len(states) == self.share.of else 0])
        return state["finished"]

    def load_weights(self, step: int):
        "The weights of a checkpoint; raises `PrefkitError` if it is another model's."
        path, model = self.folder / f"checkpoint-{step}", self.learner.model
        if (path / ADAPTER).exists():
            set_peft_model_state_dict(model, load_file(path / ADAPTER))
        else:
            copy_weights(load_file(path / WEIGHTS), model, path)
        if (path / BESIDE).exists():
            self.learner.load_others(load_file(path / BESIDE))


def copy_weights(stored: dict[str, torch.Tensor], model, path: Path):
    "Into a model, from a checkpoint of it; tied weights are stored once."
    mine, known = trainable(model), model.state_dict()
    other = sorted((mine.keys() - stored.keys()) | (stored.keys() - known.keys()))
    if other:
        raise PrefkitError(f"{path} is of another model ({other[0]}).")
    with torch.no_grad():
        for name, value in stored.items():
            known[name].copy_(like(value, known[name]))


def trainable(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    "What training changes: parameters with a gradient, by name. Tied ones come once."
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def is_cut(weight: torch.Tensor) -> TypeGuard[DTensor]:
    "Whether a weight lies in parts on several devices (FSDP)."
    return isinstance(weight, DTensor)


def like(value: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    "A whole tensor as the weight lies: on its device, in parts if that is."
    value = value.to(weight.device)
    return (
        distribute_tensor(value, weight.device_mesh, weight.placements) if is_cut(weight) else value
    )


def whole_state(learner, optimizer) -> tuple[dict | None, dict]:
    "Weights, None where the model has them whole, and the optimiser's memory, put together."
    weights = trainable(learner.model)
    if not any(map(is_cut, weights.values())):
        return None, optimizer.state_dict()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    memory = get_optimizer_state_dict(learner, optimizer, options=options)
    cut = cast(dict[str, DTensor], weights)
    return {name: weight.full_tensor().data.cpu() for name, weight in cut.items()}, memory


def load_memory(learner, optimizer, memory: dict):
    "The optimiser's memory from `whole_state`."
    if any(map(is_cut, trainable(learner).values())):
        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(learner, optimizer, memory, options=options)
    else:
        optimizer.load_state_dict(memory)  # it moves it to where the weights are


def step_of(checkpoint: Path) -> int:
    "The step in a checkpoint's name."
    return int(checkpoint.name.split("-")[1])


def json_form(value):
    "What comes back of a value that was written as JSON."
    return json.loads(json.dumps(value))


def sums_of(folder: Path) -> dict[str, str]:
    "Fingerprints of the files of a folder, by name."
    return {file.name: fingerprint_files(file) for file in sorted(folder.iterdir())}


def damaged_files(
    checkpoint: Path,
) -> list[str]:  # names; empty: whole
    "Files of a checkpoint that are missing or not what was written."
    try:
        state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        told, sums = state.pop("sum", None), state["files"]
        if told is not None and told != fingerprint(state):
            return [STATE_FILE]
        files = {checkpoint / name: sum_ for name, sum_ in sums.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [STATE_FILE]
    return [file.name for file, was in files.items() if not same_file(file, was)]


def lines_so_far(folder: Path) -> dict[str, dict]:
    "How much a run has written of its lines, and its sum, by file."
    texts = {name: (folder / name).read_bytes() for name in LINE_FILES if (folder / name).exists()}
    return {name: {"bytes": len(text), "sum": sum_of(text)} for name, text in texts.items()}


def damaged_lines(folder: Path, told: dict[str, dict]) -> list[str]:  # names
    "Files of lines whose beginning is not what `lines_so_far` told."
    return [
        name
        for name, one in told.items()
        if not (folder / name).is_file()
        or sum_of((folder / name).read_bytes()[: one["bytes"]]) != one["sum"]
    ]


def sum_of(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]


def same_file(file: Path, was: str) -> bool:
    "Whether a file is there and has a fingerprint."
    return file.is_file() and fingerprint_files(file) == was


def random_states() -> dict:  # plain numbers, for json
    "Python's, NumPy's and torch's random state of this process."
    name, keys, *rest = cast(tuple, numpy.random.get_state())
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": random.getstate(),
        "numpy": [name, keys.tolist(), *rest],
        "torch": torch.get_rng_state().tolist(),
        "cuda": [state.tolist() for state in devices],
    }


def set_random_states(states: dict):
    "Take up what `random_states` gave, after a journey through json or not."
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    numpy.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(torch.tensor(states["torch"], dtype=torch.uint8))
    if torch.cuda.is_available() and states["cuda"]:
        devices = [torch.tensor(state, dtype=torch.uint8) for state in states["cuda"]]
        torch.cuda.set_rng_state_all(devices)


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


def rows_fingerprint(rows: Iterable[Row | dict] | None) -> str:
    "A short name for encoded rows."
    digest = hashlib.sha256()
    for row in as_rows(rows):
        for name, value in sorted(row.columns().items()):
            told = array("q", value).tobytes() if isinstance(value, list) else str(value).encode()
            digest.update(name.encode() + told)
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
    path, identity = folder / "training.json", json_form(identity)  # tuples are lists
    before = read_claim(path)
    if before is None:
        # nothing says whose checkpoints these are
        if (folder / "checkpoints").exists():
            announce(f"{path} is gone or damaged: the run starts anew.")
            discard(folder / "checkpoints")
        write_claim(path, {**identity, "finished": False})
        return False
    changed = [
        name for key, value in identity.items() for name in differences(key, before.get(key), value)
    ]
    if changed:
        raise OtherRun(
            f"{folder} holds a run with other {', '.join(changed)} ({path.name}). Choose another "
            "output_dir or delete this one."
        )
    if before["finished"] and (damaged := damaged_end(folder, before)):
        announce(f"{folder}: {', '.join(damaged)} is damaged. It is made again.")
        write_claim(path, {**identity, "finished": False})
        return False
    return before["finished"]


def write_claim(path: Path, claim: dict):
    "Write training.json, with a sum of what it says."
    write_json(path, {**claim, "sum": fingerprint(json_form(claim))})


def read_claim(path: Path) -> dict | None:  # None: there is none that is as it was written
    "What `write_claim` has written, without the sum; one of an earlier version has none."
    try:
        claim = json.loads(path.read_text(encoding="utf-8"))
        told = claim.pop("sum", None)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    return claim if told in (None, fingerprint(claim)) and "finished" in claim else None


def end_of(folder: Path) -> dict:
    "Sums of what a finished run has left, for its training.json."
    models = [folder / name for name in ("checkpoint", "adapter") if (folder / name).is_dir()]
    return {"files": {one.name: sums_of(one) for one in models}, "lines": lines_so_far(folder)}


def damaged_end(folder: Path, told: dict) -> list[str]:  # names
    "Files of a finished run that are not as `end_of` has told; an earlier version told nothing."
    told = {"files": {}, "lines": {}, **told}
    files = [(f"{place}/{name}", one[name]) for place, one in told["files"].items() for name in one]
    damaged = [name for name, was in files if not same_file(folder / name, was)]
    return damaged + damaged_lines(folder, told["lines"])


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
        **json.loads(json.dumps(config, default=str), parse_constant=str),  # Bamba has an infinity
        "attention": attention_of(model),
        "device": model.device.type,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }


def read_stored(
    path: Path | None,
) -> dict:  # {} where there is none that is as it was written: it is then made anew
    "A stored reference."
    if path is None or not path.exists():
        return {}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        told = stored.pop("sum", None)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        stored, told = {}, None
    if told == fingerprint(stored):
        return stored
    announce(f"{path} is damaged, or of an earlier version. It is made anew.")
    return {}


def draw_answers(model, rows: list[Row], extra: dict[str, Callable]) -> list[dict]:
    "For each row the ids of its extra answers, by column."
    made = {name: make(model, rows) for name, make in extra.items()} if rows else {}
    return [{f"{name}_ids": ids[i] for name, ids in made.items()} for i in range(len(rows))]


def with_reference(
    model,  # before training
    sets: dict[str, list[Row]],  # name -> encoded rows
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
) -> dict[str, list[Row]]:  # the same rows with reference log-probs, and with the extra answers
    """Rows with what the model before training says of them: from the run's folder if it is there
    for these rows and weights, else computed.
    """
    path = folder / "reference.json"
    sets = {name: as_rows(rows) for name, rows in sets.items()}
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
    stored: dict[str, Any] | None = next((one for one in found if one.get("key") == key), None)
    if stored is None:
        stored = {"key": key}
        for name, rows in sets.items():
            added = draw_answers(model, rows, extra)
            whole = [row | more for row, more in zip(rows, added)]
            logps = reference_logps(model, whole, answers, pad_token_id, **options)
            stored[name] = [{**more, **ref} for more, ref in zip(added, logps)]
    whole = {**stored, "sum": fingerprint(json_form(stored))}
    if found[0].get("key") != key:
        write_json(path, whole)
    if shared and found[1].get("key") != key:
        with optional_cache(shared):
            write_json(shared, whole)
    return {
        name: [row | logps for row, logps in zip(rows, stored[name])] for name, rows in sets.items()
    }
