"""What the pipelines share: a look at the data before anything runs, their rows, the model, what an
evaluation asks.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from prefkit.core import (
    ConfigError,
    DataError,
    PrefkitError,
    announce,
    cache_folder,
    check_number,
    code_behind,
    fingerprint,
    nearest,
    optional_cache,
    resolve_path,
    there,
)
from prefkit.data.chat import check_limits, check_messages, use_template
from prefkit.data.records import (
    DATASETS,
    Records,
    RowReport,
    check_kept,
    encode_records,
    kind_to_read,
    load_records,
)
from prefkit.data.foreign import Carried
from prefkit.data.rows import Row, as_rows
from prefkit.data.framing import check_system_prompt, put_system_prompt, system_turn
from prefkit.data.thoughts import split_thought
from prefkit.data.world import SPLITS, gold_reward, second_judge
from prefkit.judging.rewards import make_reward
from prefkit.judging.answerers import of_config
from prefkit.judging.served import Served, reach
from prefkit.data.sources import (
    WORLDS,
    SplitError,
    check_options,
    check_revision,
    is_hub_name,
    is_made_by_a_stage,
    make_records,
    no_split,
    parse_split,
    requests_in,
)
from prefkit.model.loading import check_model, load_tokenizer, model_config


def check_part(
    data,  # DataSettings of the part
    kind: str,  # sft, pairs, binary or prompts
    prefix: str = "",  # of the parameters' names in messages: validation_, probe_
) -> Records | None:  # None: nothing of it is on this machine
    """Read what is on this machine once through, so that faulty data show before anything runs;
    nothing is downloaded for it.
    """
    check_limits(**data.given_to(check_limits))
    check_system_prompt(data.system_prompt)
    name, limit = data.dataset, data.limit
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ConfigError(
            f"{prefix}limit is {limit!r}, but must be a whole number of at least 1, or null for "
            "all rows.",
            field=f"{prefix}limit",
            reason="out of range",
        )
    source = DATASETS.get(name)
    try:
        split_name = parse_split(data.split)[0]
        if source:
            kind_to_read(name, kind, **data.given_to(kind_to_read))
        if source and split_name not in source.splits:
            raise no_split(name, split_name, source.splits)
        if (source and not source.hub) or is_made_by_a_stage(name):
            check_revision(name, data.dataset_revision)
        check_options(name, kind, data.dataset_options)
        if source and not source.hub and data.columns:
            load_records(name, kind=kind, limit=1, columns=data.columns)  # which refuses
        if source or _is_elsewhere(name):
            return None  # generated, on the Hub, or made by a stage
        return load_records(name, kind=kind, **data.given_to(load_records))
    except SplitError as error:
        way_out = (
            ' To train without validation, write validation_split: "".'
            if prefix == "validation_"
            else ""
        )
        raise ConfigError(
            f"{prefix}split: {error}{way_out}", field=f"{prefix}split", reason="no such split"
        ) from error
    except (ConfigError, DataError) as error:
        raise error.at(f"{prefix}dataset") from error


def _is_elsewhere(name):
    "Whether the rows of a data set that is not registered cannot be looked at here, or not yet."
    return is_hub_name(name) or is_made_by_a_stage(name)


def check_dataset(
    name: str,  # as `load_records` takes it
    *,
    kind: str,  # sft, pairs, binary or prompts
    prefix: str = "",  # as for `check_part`
    **reading,  # settings of data: split, limit, ...
) -> Records | None:
    "`check_part` of a data set by its name."
    from prefkit.train.settings import PreferenceData

    given: dict[str, Any] = {"dataset": name, "limit": None, **reading}
    return check_part(PreferenceData(**given), kind, prefix)


def check_rows(
    data,  # DataSettings of a pipeline
    kinds: dict[str, str],  # part of the data -> kind of its rows: {"train": "pairs", ...}
) -> dict[str, Records | None]:  # part -> its rows, None where they are not on this machine
    "`check_part` of every part that there is."
    parts = {part: data.part(part) for part in kinds}
    return {
        part: check_part(settings, kinds[part], "" if part == "train" else f"{part}_")
        for part, settings in parts.items()
        if settings
    }


@contextmanager
def all_cores():
    """Let a fast tokenizer use all cores.

    Afterwards it is as it was: a process that forks should not have it run in threads.
    """
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def encode_once(
    records: Records,  # as `load_records` gives them
    tokenizer,  # a transformers tokenizer with a chat template
    folder: Path | None = None,  # what was encoded before; None: data/cache/encoded
    **settings,  # of `encode_records`
) -> tuple[list[Row], RowReport]:  # as from `encode_records`
    """`encode_records` on all cores; whoever has the same rows, tokenizer and settings again finds
    them on disk.
    """
    # it cannot be told from another
    if not getattr(tokenizer, "is_fast", False):
        return encode_records(records, tokenizer, **settings)
    import pyarrow
    from pyarrow import parquet

    told = [
        tokenizer.backend_tokenizer.to_str(),
        tokenizer.chat_template,
        tokenizer.special_tokens_map,
    ]
    code = code_behind(encode_records)
    name = fingerprint([list(records), asdict(records.report), told, settings, code])
    file = (folder or cache_folder() / "encoded") / f"{name}.rows"
    if (table := _kept_table(file)) is not None:
        return _rows_in(table), RowReport(**json.loads(table.schema.metadata[b"report"]))
    with all_cores():
        rows, report = encode_records(records, tokenizer, **settings)
    plain = [_with_texts(row.columns(), json.dumps) for row in rows]
    names = dict.fromkeys(name for row in plain for name in row)  # not all rows have marks
    kept = [dict.fromkeys(names) | row for row in plain]
    table = pyarrow.Table.from_pylist(kept)
    # what does not come back as it was is encoded each time: rows that are not alike, NaN, rows
    # that say of a column why it is not there
    whole = not any(getattr(row.record, "left_out", {}) for row in rows)
    if whole and _rows_in(table) == rows:
        told = pyarrow.BufferOutputStream()
        about = table.replace_schema_metadata({"report": json.dumps(asdict(report))})
        parquet.write_table(about, told, compression="zstd")
        _keep_table(file, told.getvalue().to_pybytes())
    return rows, report


def _keep_table(file: Path, table: bytes):
    "Keep a table behind a sum of its bytes; a cache that cannot be written to is done without."
    with optional_cache(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}")
        part.write_bytes(sha256(table).digest() + table)
        part.replace(file)


def _kept_table(file: Path):  # None: there is none that is as it was written
    "A table that `_keep_table` has kept; a damaged one is said, and made anew."
    import pyarrow
    from pyarrow import parquet

    if not file.is_file():
        return None
    try:
        text = file.read_bytes()
    except OSError:
        text = b""
    told, table = text[:32], text[32:]
    if sha256(table).digest() == told:
        return parquet.read_table(pyarrow.BufferReader(table))
    announce(f"{file} is damaged: what it held is made anew.")
    return None


def _with_texts(row, change):
    "A plain row, changed in what has any shape, which the file has as a text of JSON."
    texts = {name: change(row[name]) for name in ("prompt", "record") if name in row}
    return {**row, **texts}


def _rows_in(table):
    "The encoded rows of a file."
    rows = [
        {name: value for name, value in row.items() if value is not None}
        for row in table.to_pylist()
    ]
    return [Row.of(_with_texts(row, json.loads)) for row in rows]


@dataclass
class Rows:
    "A part of the data, read and encoded; all None where there is no such part."

    records: Records | None = None  # as they were read
    encoded: list[Row] | None = None  # as token ids
    report: RowReport | None = None  # what became of them


def rows_of(
    data,  # DataSettings of a pipeline
    part: str,  # train, validation, ...
    tokenizer,  # a transformers tokenizer with a chat template
    *,
    seed: int,  # of the tiny world's draw, unless data_seed is given
    kind: str,  # that the data are read as: sft, pairs, binary or prompts
    encoded_as: str = "",  # a kind, where it is another: of pairs, sft takes the chosen answers
) -> Rows:
    "The rows of one part of a pipeline's data."
    settings = data.part(part)
    if settings is None:
        return Rows()
    seed = seed if data.data_seed is None else data.data_seed
    given = settings.given_to(load_records)
    records = load_records(settings.dataset, kind=kind, seed=seed, **given)
    if (kind, encoded_as) == ("pairs", "sft"):
        records = chosen_answers(records)
    given = settings.given_to(encode_records)
    encoded, report = encode_once(records, tokenizer, kind=encoded_as or kind, **given)
    return Rows(records, encoded, report)


def first_row(
    name: str,
    kind: str,
    split: str,
    **reading,  # further settings of data
) -> dict | None:  # None: nothing can be known of it here
    """The first record of a data set that is generated or lies on this machine, to see what its
    rows hold.
    """
    if DATASETS[name].hub if name in DATASETS else _is_elsewhere(name):
        return None
    return next(iter(load_records(name, kind=kind, split=split, limit=1, **reading)), None)


def check_rewards(
    data,  # DataSettings of a pipeline
    rewards: list[tuple[str, dict]],  # name and options of each
):
    """What can be known of rewards before anything is generated: whether each can judge every row
    that is on this machine; raises `ConfigError` and `DataError`, naming the row.
    """
    from prefkit.judging import combined  # noqa: F401 adds the rewards that ask others

    parts = [part for part in map(data.part, ("train", "validation")) if part]
    for rows in map(_rows_here, parts):
        for name, options in rewards:
            source = make_reward(name, options, f"reward {name}")
            # a function that comes without a check is asked about one row
            checks = getattr(source, "checker", True)
            for row in (rows if checks else rows[:1]) or [None]:
                _check_reward_of(source, row, source.check, _asked(row))
            lacking = [row for row in rows if not checks and row["record"].left_out]
            for row in lacking[:1]:  # and a second time where it may miss a column
                empty = [{"text": "", "tokens": 0, "ended": True}]
                _check_reward_of(source, row, source, [row], empty)


def _check_reward_of(source, row, call, *given):
    "Call something of a reward; its error names the reward, and the row where there is one."
    try:
        call(*given)
    except PrefkitError as error:
        place = f", {row['row']}" if row else ""
        raise error.at(f"reward {source.name}{place}") from error


def _rows_here(part):
    "Prompts of what lies on this machine, one of what is generated, none of the Hub's."
    name = part.dataset
    if DATASETS[name].hub if name in DATASETS else _is_elsewhere(name):
        return []
    given = part.given_to(load_records) | ({"limit": 1} if name in DATASETS else {})
    return load_records(name, kind="prompts", **given).rows


def _asked(row):
    "What a reward's check looks at: the row's columns, and its prompt; None: nothing is known."
    if row is None:
        return None
    held = row["record"]
    return Carried({**held, "prompt": row["prompt"]}, held.left_out, row["row"])


def chosen_answers(
    pairs: Records,  # of kind pairs
) -> Records:  # of kind sft
    "The chosen answers of pairs as rows to imitate: what 'SFT on the chosen answers' trains on."
    kept = ("prompt", "tools", "row")
    rows = [
        {name: row[name] for name in kept if name in row} | {"response": row["chosen"]}
        for row in pairs
    ]
    return Records(rows, pairs.report)


LABELS = ("response", "response_without_end", "conversation")


def label_tokens(
    rows: Sequence[Row | dict],  # encoded, of kind sft: prompt_ids, response_ids
    labels: str,  # one of `LABELS`
    end: int,  # id of the token that ends a turn
) -> list[Row]:  # the same rows, parted anew
    """Which tokens SFT learns. response: the answer and its end. The two ways of the comparison
    report (section 4.3; which reading of v1.2 is likelier is argued in the lesson on SFT):
    response_without_end, its v1.2, and conversation, its v2.6, prompt and answer.
    """
    if labels not in LABELS:
        raise ConfigError(
            f"labels: {labels!r} is none of {', '.join(LABELS)}.",
            field="labels",
            reason="no such choice",
        )
    rows = as_rows(rows)
    if labels == "response":
        return rows
    if labels == "conversation":
        return [_whole_conversation(row) for row in rows]
    bare = [_without_ends(row, end) for row in rows]
    return [row for row in bare if any(row.learned_of("response"))]


def _whole_conversation(row):
    "A row of which all is learned but its first token and what is marked in the answer."
    first, more = row.prompt_ids[:1], row.prompt_ids[1:]
    return _parted(
        row,
        first,
        [*more, *row.answers["response"]],
        [True] * len(more) + row.learned_of("response"),
    )


def _without_ends(row, end):
    "A row of which no end of a turn is learned."
    ids = row.answers["response"]
    learned = [mark and token != end for mark, token in zip(row.learned_of("response"), ids)]
    cut = len(ids) - (ids[-1] == end)
    return _parted(row, row.prompt_ids, ids[:cut], learned[:cut])


def _parted(row, prompt, answer, learned):
    "A row with its tokens parted anew."
    marks = {} if all(learned) else {"response": learned}
    return replace(row, prompt_ids=prompt, answers={"response": answer}, learned=marks)


def check_training(
    settings,  # TrainSettings
    validation_split: str,  # "": no validation
):
    """Raise `ConfigError` for settings that this machine or the lack of a validation split does not
    allow.
    """
    import torch
    from prefkit.train.devices import choose_precision

    if (settings.keep_best or settings.early_stopping_patience) and not validation_split:
        raise ConfigError(
            "keep_best and early_stopping_patience go by the validation loss. Give "
            "validation_split.",
            field="validation_split",
            reason="missing",
        )
    choose_precision(
        settings, "cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu"
    )


def last_values(
    metrics: list[dict],  # the lines of metrics.jsonl
    split: str,  # train or validation
) -> dict:  # the last line of that split without its times; {} where there is none
    "What a table of results would show."
    from prefkit.train.log import TIME_FIELDS

    lines = [line for line in metrics if line["split"] == split]
    return (
        {name: value for name, value in lines[-1].items() if name not in (*TIME_FIELDS, "split")}
        if lines
        else {}
    )


def check_sampling(
    *,
    prompts: int | None,  # how many; None: all
    split: str,  # of the tiny world
    temperature: float,  # 0: greedy
    top_p: float,  # nucleus
    max_new_tokens: int,  # answers are cut off there
    batch_size: int,  # prompts at a time
    world: str = "tiny-world",  # or another of `WORLDS`
):
    """Raise `ConfigError` for a split that does not exist or has too few prompts, or a number out
    of its range.
    """
    if split not in SPLITS:
        raise ConfigError(
            f"split: {split!r} is none of {', '.join(SPLITS)}.",
            field="split",
            reason="no such split",
        )
    counts = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    if prompts is not None:
        counts = {"prompts": prompts, **counts}
    for name, value in counts.items():
        if value < 1:
            raise _out_of_range(name, f"{value} is not at least 1.")
    if temperature < 0:
        raise _out_of_range("temperature", f"{temperature} is below 0. Write 0 for greedy answers.")
    if not 0 < top_p <= 1:
        raise _out_of_range(
            "top_p", f"{top_p} is not above 0 and at most 1. Write 1 to keep every token."
        )
    if split != "train" and prompts and prompts > (there := requests_in(world, split)):
        raise _out_of_range(
            "prompts",
            f"the {split} split has {there} prompts, {prompts} are wanted. Ask for fewer.",
        )


def _out_of_range(name, text):
    "The error of a number that cannot be."
    return ConfigError(f"{name}: {text}", field=name, reason="out of range")


def check_shape(shape: dict):  # fields of `Qwen2Config`, as `tiny_config` takes them
    "Raise `ConfigError` for a field that the architecture has not, or sizes that do not divide."
    from transformers import Qwen2Config

    known = Qwen2Config().to_dict()
    for name, value in shape.items():
        if name not in known:
            raise ConfigError(
                f"shape: there is no {name!r}.{nearest(str(name), known)}",
                field=f"shape.{name}",
                reason="unknown",
            )
        if name.startswith(("hidden_size", "intermediate_size", "num_")):
            check_number(f"shape.{name}", value, whole=True, least=1)
    width, heads = shape.get("hidden_size", 128), shape.get("num_attention_heads", 4)
    groups = shape.get("num_key_value_heads", 2)
    if width % (2 * heads) or heads % groups:
        raise ConfigError(
            f"shape: hidden_size {width}, num_attention_heads {heads} and num_key_value_heads "
            f"{groups} do not go together: a head's width is an even part of hidden_size, and "
            "every key is shared by as many heads as any other.",
            field="shape",
            reason="sizes do not divide",
        )


def decoding_ways(
    # name -> settings, or a name of `prefkit.judging.asking.DECODING`; {}: one way, without a name
    decodings: dict,
    token_limits: list[int],  # []: the one of `sampling`
    seed: int,  # of the draws
    # name -> what stands before a question, as `read_instructions` takes it; {}: nothing
    instructions: dict | None = None,
    **sampling,  # temperature, top_p and max_new_tokens where nothing else is said
    # instruction, decoding and token_limit, where there are several, and sampling: all settings
) -> list[dict]:
    """Every decoding with every limit, under every instruction; raises `ConfigError` naming the
    one that cannot be.
    """
    from prefkit.judging.instructions import read_instructions

    told = [{"instruction": name} for name in read_instructions(instructions or {})] or [{}]
    ways = _decodings_and_limits(decodings, token_limits, seed, sampling)
    return [{**one, **way} for one in told for way in ways]


def _decodings_and_limits(decodings, token_limits, seed, sampling):
    "The ways without their instructions."
    from prefkit.judging.asking import DECODING, decoding

    plain = {name: sampling[name] for name in ("temperature", "top_p")}
    ways = []
    for name, values in (decodings or {"": plain}).items():
        field = f"decodings.{name}" if name else None
        if isinstance(values, str) and values not in DECODING:
            raise ConfigError(
                f"decodings, {name}: {values!r} is none of {', '.join(DECODING)}. Or give "
                f"settings, such as {{temperature: 0.6, top_p: 0.95}}.",
                field=field,
                reason="unknown",
            )
        given = DECODING[values] if isinstance(values, str) else values
        if not isinstance(given, dict):
            raise ConfigError(
                f"decodings, {name}: give settings, such as {{temperature: 0.6, top_p: 0.95}}, not "
                f"{given!r}.",
                field=field,
                reason="wrong type",
            )
        for limit in token_limits or [sampling["max_new_tokens"]]:
            try:
                # a decoding may have a seed of its own: several rounds of the same settings
                full = decoding({"seed": seed, **given, "max_new_tokens": limit})
            except ConfigError as error:
                raise (error.at(f"decodings, {name}") if name else error) from None
            way = {"decoding": name} if name else {}
            if token_limits:
                way["token_limit"] = limit
            ways.append({**way, "sampling": full})
    return ways


def evaluation_prompts(
    dataset: str,  # any that `prefkit.data.records` reads
    split: str,  # of it
    prompts: int | None,  # how many; None: all (the tiny world: 1,000)
    prompts_seed: int = 0,  # which draw of the tiny world's
    columns: dict | None = None,  # as `load_records` takes them
    dataset_revision: str = "",  # as `load_records` takes it
    on_bad_rows: str = "drop",  # as `load_records` takes it
    system_prompt: str = "",  # as `load_records` takes it
    # prompt_id and prompt; of the tiny world also kind and held_out; of others the row's own
    # columns under record; and the account
) -> Records:
    "The prompts that every model answers; raises `DataError` where there are fewer."
    if dataset in WORLDS:
        if prompts is None:
            prompts = 1000 if split == "train" else min(1000, requests_in(dataset, split))
        made = make_records(dataset, "prompts", split, prompts, prompts_seed, {})
        made, changed = put_system_prompt(made, system_prompt)
        n = len(made)
        return Records(made, RowReport(f"{dataset} ({split})", read=n, kept=n, changed=changed))
    rows = load_records(
        dataset,
        kind="prompts",
        split=split,
        limit=prompts,
        columns=columns,
        dataset_revision=dataset_revision,
        on_bad_rows=on_bad_rows,
        system_prompt=system_prompt,
    )
    _check_no_tools(rows)
    if prompts is not None and len(rows) < prompts:
        raise DataError(
            f"prompts: {dataset} ({split}) has {len(rows)} that can be asked, {prompts} are "
            f"wanted. Ask for fewer. ({rows.report})",
            field="prompts",
            reason="out of range",
        )
    asked = [
        {
            "prompt_id": str(row.get("record", {}).get("prompt_id", number)),
            "prompt": row["prompt"],
            "record": row.get("record", {}),
        }
        for number, row in enumerate(rows)
    ]
    return Records(asked, rows.report)


def prompts_that_fit(
    asked: Records,  # as `evaluation_prompts` gives them
    # name -> checkpoint, or what knows its own limits: a server's settings, {answerer: NAME}
    models: dict,
    ways: list[dict],  # settings of sampling
    chat_template: str = "",  # of all models, in place of their own
    on_bad_rows: str = "drop",  # or error
    # name -> wordings, as `read_instructions` gives them: asked with each of them
    instructions: dict[str, tuple[str, ...]] | None = None,
    seed: int = 0,  # of the draws of wordings
) -> Records:
    """The prompts that every model can be asked, before any of them answers: one that a model has
    no positions or no tokens for, or whose template loses a part of it, is a bad row, and so is
    one that an instruction makes such. Raises `DataError` as `load_records` does.
    """
    from prefkit.judging.asking import prompt_records
    from prefkit.judging.instructions import instructed

    told = (instructions or {"": ()}).items()
    asked_as = [instructed(asked.rows, name, words, seed) for name, words in told]
    chats = list(zip(*(prompt_records(rows)[1] for rows in asked_as)))
    most = max(way["max_new_tokens"] for way in ways)
    readers = {
        model: _Reader.of(source, chat_template)
        for model, source in models.items()
        if not isinstance(source, dict)
    }
    report, kept = copy.deepcopy(asked.report), []
    for row, several in zip(asked.rows, chats):
        name = row["prompt_id"]
        try:
            for model, reader in readers.items():
                for chat in several:
                    reader.check(f"models, {model}", name, chat, most)
        except DataError as error:
            report.bad(f"prompt {name}", error, on_bad_rows)
            continue
        kept.append(row)
    report.kept = len(kept)
    return Records(kept, check_kept(report))


@dataclass
class _Reader:
    "What a model can be asked, by its config and its tokenizer."

    config: Any
    tokenizer: Any

    @classmethod
    def of(cls, source: str, chat_template: str):
        tokenizer = load_tokenizer(source)
        use_template(tokenizer, chat_template)
        return cls(model_config(source), tokenizer)

    def check(self, where: str, name: str, chat: list[dict], max_new_tokens: int):
        "Raise `DataError` for a prompt that cannot be asked."
        from prefkit.model.limits import check_ids, check_prompt_lengths
        from prefkit.model.sampling import encode_prompts

        try:
            [ids] = encode_prompts(self.tokenizer, [chat])
            rows = self.config.get_text_config().vocab_size
            check_ids([(f"prompt {name}", ids)], rows, self.tokenizer)
            check_prompt_lengths(self.config, {name: ids}, max_new_tokens)
        except DataError as error:
            raise error.at(where) from error


def check_questions(
    source: str,  # the model that is going to be asked: a folder, a name on the Hub, stage:NAME
    chat_template: str,  # in place of its own; "": its own
    questions: list[str],  # `sample_prompts`
    system_prompt: str = "",  # that stands before each; "": none
):
    """Raise `ConfigError` for a question or a system prompt that cannot be put: an empty one, one
    that holds a token which the model reads as a boundary, or one that its template refuses. Of a
    model that is not here only the first is known.
    """
    check_system_prompt(system_prompt)
    here = (questions or system_prompt) and there(resolve_path(source))
    reader = _Reader.of(source, chat_template) if here else None
    told = {f"sample_prompts, {number}": text for number, text in enumerate(questions, 1)}
    if system_prompt:  # by itself first, so that a question is not blamed for it
        told = {"system_prompt": "Hello?", **told}
    for place, text in told.items():
        chat = [*system_turn(system_prompt), {"role": "user", "content": text}]
        try:
            if reader:
                reader.check("", place.rpartition(", ")[2], chat, 1)
            else:
                check_messages(chat)
        except DataError as error:
            raise ConfigError(
                f"{place}: {str(error).removeprefix(': ')}",
                field=place.partition(",")[0],
                reason=error.reason,
            ) from None


def _check_no_tools(rows):
    "Raise `DataError` for prompts that describe tools: no model is told of them when it is asked."
    for row in rows:
        if "tools" in row:
            raise DataError(
                f"{row['row']}: the prompt comes with tools, and models that are evaluated are not "
                "told of them. Leave such rows out, or do not read them: columns: {tools: null}.",
                field="tools",
                reason="tools in an evaluation",
            )


def check_evaluation(
    *,
    models: dict,  # name -> checkpoint, a server's settings, or {answerer: NAME}
    references: list[str],  # of the models
    judges: dict,  # name -> options
    dataset: str,  # where the prompts come from
    split: str,  # of it
    prompts: int | None,  # how many; None: all
    batch_size: int,  # prompts at a time
    seed: int,  # of the draws
    chat_template: str = "",  # of all models, in place of their own
    columns: dict | None = None,  # as `load_records` takes them
    dataset_revision: str = "",  # as `load_records` takes it
    on_bad_rows: str = "drop",  # as `load_records` takes it
    system_prompt: str = "",  # as `load_records` takes it
    start: str = "",  # of the models: the distance to it is measured
    start_prompts: int = 1,  # on so many prompts
    **ways,  # of `decoding_ways`
) -> list[dict]:  # what `decoding_ways` returns
    """Raise `ConfigError` or `DataError` for what an evaluation could not do; nothing is loaded or
    asked.
    """
    check_models(models, references, chat_template)
    _check_evaluation_start(start, start_prompts, models)
    reading: dict[str, Any] = {
        "columns": columns or {},
        "dataset_revision": dataset_revision,
        "on_bad_rows": on_bad_rows,
        "system_prompt": system_prompt,
    }
    if dataset in WORLDS:
        check_dataset(dataset, kind="prompts", **reading)
        check_sampling(
            prompts=prompts,
            split=split,
            temperature=1.0,
            top_p=1.0,
            max_new_tokens=1,
            batch_size=batch_size,
            world=dataset,
        )
    else:
        few = prompts is not None and prompts < 1
        if few or batch_size < 1:
            raise ConfigError(
                f"prompts {prompts} and batch_size {batch_size} must be at least 1.",
                field="prompts" if few else "batch_size",
                reason="out of range",
            )
        rows = check_dataset(dataset, kind="prompts", split=split, limit=prompts, **reading)
        _check_no_tools(rows or [])
    check_judges(judges, dataset)
    return decoding_ways(seed=seed, **ways)


def _check_evaluation_start(start, prompts, models):
    if not start:
        return
    if start not in models:
        raise ConfigError(
            f"start: {start!r} is none of the models.{nearest(start, list(models))}",
            field="start",
            reason="no such model",
        )
    if isinstance(models[start], dict):
        raise ConfigError(
            f"start: {start!r} is a server, and a server gives no log-probs. Name another model.",
            field="start",
            reason="a server",
        )
    check_number("start_prompts", prompts, whole=True, least=2)


def check_models(
    models: dict,  # name -> checkpoint, a server's settings, or {answerer: NAME}
    references: list[str],  # of the models
    chat_template: str = "",  # of all models, in place of their own
):
    "Raise `ConfigError` for models that cannot be asked, or not be compared."
    if not models:
        raise ConfigError(
            "models: name at least one, such as {base: data/tiny/base}.",
            field="models",
            reason="missing",
        )
    for name, value in models.items():
        if not isinstance(value, dict):
            check_model(value, f"models, {name}", chat_template)
            continue
        if chat_template:
            raise ConfigError(
                f"chat_template: {name} is asked through a server or a function, which has a "
                "template of its own or none. Leave chat_template out.",
                field="chat_template",
                reason="a server has its own",
            )
        try:
            of_config(value)
        except (ConfigError, TypeError) as error:
            raise ConfigError(
                f"models, {name}: {error}", field=f"models.{name}", reason="no server"
            ) from None
    for name in references:
        if name not in models:
            raise ConfigError(
                f"references: {name!r} is none of the models {', '.join(models)}.",
                field="references",
                reason="unknown",
            )
    if references and not any(name in references for name in list(models)[:-1]):
        raise ConfigError(
            f"references: {', '.join(references)} stands after every other model, so that nothing "
            "is compared. Name it before them in models.",
            field="references",
            reason="nothing to compare",
        )


def check_judges(
    judges: dict,  # name -> options
    dataset: str,  # where the prompts come from
):
    "Raise `ConfigError` for judges that cannot be asked about answers to these prompts."
    from prefkit.judging.judges import check_judge

    if not judges:
        raise ConfigError(
            "judges: name at least one, such as {gold: {}, second: {}}.",
            field="judges",
            reason="missing",
        )
    for name, options in judges.items():
        if not isinstance(options, dict):
            raise ConfigError(
                f"judges, {name}: give options, such as {name}: {{}}, not {options!r}.",
                field=f"judges.{name}",
                reason="wrong type",
            )
        kind = options.get("kind", name)
        if kind in ("gold", "second") and dataset not in WORLDS:
            raise ConfigError(
                f"judges, {name}: it knows the tiny world only, not {dataset!r}. Use another "
                "judge, or dataset: tiny-world.",
                field=f"judges.{name}",
                reason="cannot judge these prompts",
            )
        if name == "gold" and kind != "gold":
            raise ConfigError(
                f"judges: gold is the name of the tiny world's true reward. Call the {kind} judge "
                "otherwise.",
                field="judges.gold",
                reason="name is taken",
            )
        check_judge(kind, **{key: value for key, value in options.items() if key != "kind"})


def reach_servers(
    models: dict,  # name -> checkpoint, a server's settings, or {answerer: NAME}
    judges: dict,  # name -> options
):
    """Ask every server of an evaluation once, so that one that is away is known before hours of
    work; raises `ConfigError` naming it.
    """
    from prefkit.judging.judges import reach_judge

    asked: dict[str, Callable] = {
        f"models, {name}": partial(reach, Served(**value))
        for name, value in models.items()
        if isinstance(value, dict) and "answerer" not in value
    }
    for name, options in judges.items():
        own = {key: value for key, value in options.items() if key != "kind"}
        asked[f"judges, {name}"] = partial(reach_judge, options.get("kind", name), **own)
    _reach_all(asked)


def reach_rewards(
    reward: str,  # that is trained on
    options: dict,  # of it
    judges: list[str],  # that are only watched
):
    "Ask once whoever gives rewards from outside of this machine; raises `ConfigError` naming it."
    sources = {"reward": make_reward(reward, options, "reward")}
    sources |= {f"judges, {name}": make_reward(name, {}, "judges") for name in judges}
    _reach_all({where: source.reach for where, source in sources.items()})


def _reach_all(asked):
    for where, ask in asked.items():
        try:
            ask()
        except PrefkitError as error:
            raise error.at(where) from error


def answer_prompts(
    model,  # a causal language model
    tokenizer,  # its tokenizer
    asked: list[dict],  # records of the tiny world of kind prompts
    *,
    label: str = "",  # what the model is called
    seed: int = 0,  # of the draws: equal for all models that are compared
    # max_new_tokens, temperature, top_p, batch_size, as `prefkit.model.sampling.generate` takes
    # them
    **options,
) -> list[dict]:  # each record with model, answer, tokens and ended
    "One sampled answer to every prompt."
    from prefkit.model.sampling import generate

    chats = [[{"role": "user", "content": record["prompt"]}] for record in asked]
    made = generate(model, tokenizer, chats, seed=seed, label=label or "answers", **options)
    return [
        {
            "model": label,
            **record,
            **split_thought(answer["text"]).to_dict(),
            "tokens": answer["tokens"],
            "ended": answer["ended"],
        }
        for record, answer in zip(asked, made)
    ]


def judge_answers(
    rows: list[dict],  # with prompt and answer; changed in place
) -> list[dict]:  # the same rows with gold (a dict) and second (a number)
    "What the two judges of the tiny world think of each answer."
    for row in rows:
        row |= {
            "gold": gold_reward(row["prompt"], row["answer"]).to_dict(),
            "second": second_judge(row["prompt"], row["answer"]),
        }
    return rows
