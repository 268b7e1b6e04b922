"""What a study runs: a short training, and the judged answers of a model. Each is a stage, which
the runner executes as any other.
"""

from pathlib import Path

import torch

from prefkit.core import NotFinite, cache_folder, write_jsonl
from prefkit.data.world import tiny_records
from prefkit.model.loading import load_model
from prefkit.runs.pipelines import answer_prompts, judge_answers, rows_of
from prefkit.runs.stage import finish
from prefkit.train.loop import train_model
from prefkit.train.methods import get_method
from prefkit.train.settings import PreferenceData, SftData, TrainSettings


def train_short(
    output_dir: str,  # the run folder
    model: str,  # where training starts
    seed: int,  # of the data's draw, and of training
    *,
    method: str,  # a name in the method table, of one that learns offline
    hyperparameters: dict,  # of its loss
    settings: dict,  # of training
    limit: int,  # this and what follows: `StudyData` of `study_config`
    validation_limit: int | None,
    answers: str,
    dataset_kind: str,
    dataset_options: dict,
    probe: bool,
):
    "Train, or go on; numbers that are not finite are a finding, and stand in the metrics."
    start, tokenizer = load_model(model)
    kind = get_method(method, online=False).kind
    data = PreferenceData(
        limit=limit,
        validation_split="validation" if validation_limit else "",
        validation_limit=validation_limit,
        from_pairs=dataset_kind == "pairs" if kind == "binary" else None,
        dataset_options=dataset_options,
    )
    watched = SftData(probe_dataset="tiny-world" if probe else "", probe_limit=256)
    read_as = "pairs" if (kind, answers) == ("sft", "chosen") else kind
    parts = {
        part: rows_of(data, part, tokenizer, seed=seed, kind=read_as, encoded_as=kind)
        for part in ("train", "validation")
    }
    parts["probe"] = rows_of(watched, "probe", tokenizer, seed=seed, kind="pairs")
    try:
        result = train_model(
            start,
            tokenizer,
            method,
            parts["train"].encoded or [],
            parts["validation"].encoded,
            output_dir,
            TrainSettings.of({**settings, "seed": seed}),
            hyperparameters,
            probe_rows=parts["probe"].encoded,
            # what the start says of the data is the same for many runs
            cache=cache_folder() / "reference",
        )
        metrics = {"steps": result.steps}
    except NotFinite as error:
        metrics = {"error": str(error)}
    accounts = {name: part.report.to_dict() for name, part in parts.items() if part.report}
    told = {"dataset_options": dataset_options} if dataset_options else {}
    finish(output_dir, metrics=metrics, data={"dataset": "tiny-world", **told, **accounts})


def answer_short(
    output_dir: str,  # the run folder
    model: str,  # that answers
    seed: int,  # of sampling
    *,
    prompts: int,  # how many
    split: str,  # of the tiny world
    **sampling,  # temperature, top_p, max_new_tokens, batch_size
):
    "Answer prompts of the tiny world and judge the answers: answers.jsonl."
    loaded, tokenizer = load_model(model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    asked = tiny_records("prompts", split, prompts)
    rows = answer_prompts(loaded.to(device), tokenizer, asked, seed=seed, **sampling)
    write_jsonl(Path(output_dir) / "answers.jsonl", judge_answers(rows))
    finish(output_dir, metrics={}, data={"dataset": "tiny-world", "prompts": len(asked)})
