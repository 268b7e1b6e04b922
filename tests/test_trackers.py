"""What a run says reaches trackers and callbacks, offline; a callback may end a run."""

import json
import socket
import struct
import sys
from types import ModuleType

import pytest
from accelerate.utils import LoggerType

from helpers.processes import train
from prefkit.core import ConfigError, read_jsonl
from prefkit.train.log import TIME_FIELDS
from prefkit.train.settings import TRACKERS

FEW = {"max_steps": 3, "gradient_accumulation": 1, "sample_tokens": 4}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    "Nothing but this machine can be reached."
    connect = socket.socket.connect

    def only_here(self, address):
        here = self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost")
        assert here, f"a connection to {address}"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", only_here)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def numbers(folder) -> dict[tuple[int, str], float]:
    "What metrics.jsonl holds: (step, split/name) -> value."
    return {
        (line["step"], f"{line['split']}/{name}"): value
        for line in read_jsonl(folder / "metrics.jsonl")
        for name, value in line.items()
        if name != "split"
    }


def of_tensorboard(folder) -> dict:
    "The scalars of event files."
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "prefkit"))
    events.Reload()
    names = events.Tags()["scalars"]
    return {(event.step, name): event.value for name in names for event in events.Scalars(name)}


def chunks(data: bytes):
    "The records of a log as LevelDB writes it: pieces of 32 KiB, each part with 7 bytes before it."
    place, whole = 7, b""  # behind the file's own header
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def of_wandb(folder) -> dict:
    "The history of an offline run."
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    found = {}
    for data in chunks(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        items = {"/".join(x.nested_key) or x.key: x.value_json for x in record.history.item}
        found |= {
            (record.history.step.num, name): json.loads(text)
            for name, text in items.items()
            if not name.startswith("_")
        }
    return found


@pytest.mark.parametrize("tracker, read", [("tensorboard", of_tensorboard), ("wandb", of_wandb)])
def test_a_tracker_gets_the_numbers_of_metrics_jsonl(tracker, read, tmp_path, monkeypatch):
    pytest.importorskip(tracker, reason="of the extra `track`, which is not installed")
    monkeypatch.chdir(tmp_path)
    train("dpo", tmp_path / "run", tracker=tracker, **FEW)
    expected = numbers(tmp_path / "run")
    found = read(tmp_path / "run")
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-6)
    # nothing beside the run's folder
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


TRACKIO = """import json
config = {}

class Run:
    def __init__(self, project): self.file = open(PLACE, "a")
    def log(self, values, step=None): self.file.write(json.dumps([step, values]) + chr(10))
    def finish(self): self.file.close()

class Config(dict):
    def update(self, values, allow_val_change): dict.update(self, values)

config = Config()
init = Run
"""


def test_trackio_gets_the_numbers_of_metrics_jsonl(tmp_path, monkeypatch):
    "A stand-in with what accelerate asks of trackio: the real one wants pillow < 13, pinned at 13."
    place, trackio = tmp_path / "log", ModuleType("trackio")
    exec(f"PLACE = {str(place)!r}\n{TRACKIO}", vars(trackio))
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    for module in ("accelerate.tracking", "prefkit.train.devices"):
        monkeypatch.setattr(f"{module}.get_available_trackers", lambda: [LoggerType.TRACKIO])
    train("dpo", tmp_path / "run", tracker="trackio", **FEW)
    lines = [json.loads(text) for text in place.read_text().splitlines()]
    found = {(step, name): value for step, values in lines for name, value in values.items()}
    assert found == numbers(tmp_path / "run")


@pytest.mark.parametrize("tracker", TRACKERS[1:])
def test_a_tracker_that_is_not_installed_is_refused_by_name(tracker, tmp_path, monkeypatch):
    others = [LoggerType(name) for name in TRACKERS[1:] if name != tracker]
    monkeypatch.setattr("prefkit.train.devices.get_available_trackers", lambda: others)
    with pytest.raises(ConfigError, match=f"{tracker} is not installed") as error:
        train("dpo", tmp_path / "run", tracker=tracker)
    assert (error.value.field, error.value.reason) == ("tracker", "not installed")
    assert not (tmp_path / "run").exists()


# ---- callbacks


def test_a_callback_gets_every_line(tmp_path):
    lines = []
    result = train("dpo", tmp_path / "run", callbacks=(lines.append,), **FEW)
    assert lines == result.metrics == read_jsonl(tmp_path / "run/metrics.jsonl")


def test_a_callback_that_returns_true_ends_the_run_after_its_step(tmp_path):
    called = []
    ask = (lambda line: line["step"] == 2, lambda line: called.append(line["step"]))
    result = train("dpo", tmp_path / "run", callbacks=ask, **FEW)
    assert result.steps == 2 and result.path.is_dir() and called[-1] == 2
    training = json.loads((tmp_path / "run/training.json").read_text())
    assert training["finished"] and training["steps_taken"] == 2
    again = train("dpo", tmp_path / "run", **FEW)
    assert again.steps == 2 and again.metrics == result.metrics


def test_an_error_of_a_callback_ends_the_run_and_a_resume_goes_on(tmp_path):
    def fails(line):
        if line["step"] == 3:
            raise OSError("no such tracker")

    with pytest.raises(OSError, match="no such tracker"):
        train("dpo", tmp_path / "run", callbacks=(fails,), save_steps=2, **FEW)
    resumed = train("dpo", tmp_path / "run", save_steps=2, **FEW)
    whole = train("dpo", tmp_path / "whole", save_steps=2, **FEW)
    assert resumed.resumed_from == 2
    for line, other in zip(resumed.metrics, whole.metrics, strict=True):
        for name in TIME_FIELDS:
            line.pop(name, None), other.pop(name, None)
        assert line == other
