"A language model that is trained within a lesson."

import copy
import io
from contextlib import redirect_stdout

import pytest
import torch

from prefkit.core import ConfigError
from prefkit.course import training
from prefkit.course.training import judged_answers, start_model, tiny_rows
from prefkit.model.loading import load_model


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("PREFKIT_CACHE", str(folder))
        patch.setattr(training, "STEPS", 2)
        said = io.StringIO()
        with redirect_stdout(said):
            model, tokenizer = start_model()
        log = folder / "lessons/sft/metrics.jsonl"
        yield model, tokenizer, log, said.getvalue()


def test_the_start_is_trained_once_and_then_read(short, capsys):
    model, _, log, said = short
    written = log.stat().st_mtime_ns, log.read_bytes()
    again, _ = start_model()
    assert said == capsys.readouterr().out == ""  # a lesson shows the same both times
    assert (log.stat().st_mtime_ns, log.read_bytes()) == written
    pairs = zip(model.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_rows_are_those_that_a_method_is_trained_on(short):
    _, tokenizer, *_ = short
    rows = tiny_rows("pairs", 3, tokenizer)
    assert len(rows) == 3 and {"chosen_ids", "rejected_ids"} <= set(rows[0])
    with pytest.raises(ConfigError, match="triples"):
        tiny_rows("triples", 3, tokenizer)


def test_models_are_judged_on_the_same_prompts_and_against_the_first():
    able, tokenizer = load_model("data/tiny/instruct")
    silent = copy.deepcopy(able)
    with torch.no_grad():
        silent.get_output_embeddings().weight.zero_()  # every token as likely: the first is taken
    models = {"silent": silent, "able": able}
    judged, answers = judged_answers(models, tokenizer, prompts=8, show=3)
    assert list(judged.index) == list(models)
    assert judged.loc["silent", "win rate"] == 0.5 and judged.loc["able", "win rate"] > 0.9
    assert judged.loc["silent", "right"] == 0 < judged.loc["able", "right"]
    assert judged.loc["able", "gold"] > judged.loc["silent", "gold"] + 1
    assert answers.shape == (3, 2) and answers.index.is_unique and answers.index.name == "prompt"
    assert (answers["able"] != answers["silent"]).all()
