"""The card of a data set that was made here: README.md in the form of the Hugging Face Hub, with
what its makers would have to ask us otherwise. A plain module: the pipeline `synthesize` uses it.
"""

import yaml

from prefkit.data.records import DATASETS

# of data sets whose licence we have looked up; their cards on the Hub say the same
LICENCES = {
    "tiny-world": "Apache-2.0, as prefkit, which generates it",
    "HuggingFaceH4/ultrafeedback_binarized": "MIT",
}
SIZE_CATEGORIES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
)


CARD = """---
{head}---
# {title}

{total:,} pairs of answers ({splits}), all of them written by a model: prompts, preferred and
dispreferred answers. Made by prefkit's pipeline `synthesize`.

## How it was made

- **Model:** `{model}`, asked through {server}.
- **Prompts:** in the theme of `{dataset}` (split `{split}`), of which each request showed \
{seeds}.
  Those that repeat one another, a seed prompt or a held-out prompt, word for word or nearly, are
  left out.
- **Answers:** the preferred one by the criteria below, the dispreferred one to fall short of them.
  A row holds the bare prompt, not the instruction.
- **Filter:** {judge}

{how}

Criteria:

{quoted}

## What became of it

{became}

```
{account}
```

**Spent:** {spent}.

## Columns

`prompt` and `chosen`, `rejected` (messages), `prompt_id`, `score_chosen` and `score_rejected` where
a judge has filtered, `lineage`: model, request, the seed prompts that it showed, the fingerprint of
the criteria, names of the requests for the answers and their tokens.

## Intended use

Research and teaching on preference tuning of small models. The dispreferred answers are poor on
purpose and may be false; the preferred ones are a model's, and nobody has checked them. Labels say
what the model was told to write, not what people prefer.

## Licence

The text is a model's output: the terms of whoever owns the model and runs the server apply, which
may forbid to train other models on it, or to publish it. Look them up before either. Seed set:
`{dataset}`, licence: {licence}.
"""


def licence_of(dataset: str) -> str:  # a name of DATASETS, or of the Hub
    "The licence of a data set, as far as it is known here."
    name = DATASETS[dataset].hub or dataset if dataset in DATASETS else dataset
    return LICENCES.get(name, "not known here: see its own card")


def rows_table(rows: list[dict]) -> str:
    "Rows with equal columns as a table of Markdown."
    shown = lambda value: str(value).replace("|", "\\|").replace("\n", " ")
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([shown(row[name]) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _front(title, total, source):
    "What stands in front of a card for machines."
    front = {
        "pretty_name": title,
        "license": "other",
        "license_name": "terms-of-the-models-owner",
        "task_categories": ["text-generation"],
        "tags": ["preference", "pairs", "dpo", "synthetic", "prefkit"],
        "size_categories": [next((name for most, name in SIZE_CATEGORIES if total < most), "n>1M")],
        "annotations_creators": ["machine-generated"],
        "language_creators": ["machine-generated"],
        "source_datasets": [source],
    }
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)


def data_card(
    *,
    title: str,
    model: str,  # as the server calls it
    server: str,  # its address
    dataset: str,  # of the seed prompts
    split: str,
    criteria: str,
    settings: dict[str, dict],  # what was asked for -> how
    counts: dict[str, int],  # rows of each split
    steps: list,  # of RowReport: what became of requests, prompts, answers and pairs
    judge: str,  # who filtered the pairs, in words
    spent: str,  # in words
) -> str:  # Markdown with YAML in front
    "A card for pairs that a model has made."
    total, hub = sum(counts.values()), DATASETS[dataset].hub if dataset in DATASETS else dataset
    how = [
        {
            "asked for": what,
            **{name: options.get(name, "") for name in ("temperature", "max_tokens")},
        }
        for what, options in settings.items()
    ]
    became = [
        {
            "step": each.source,
            "looked at": each.read,
            "kept": each.kept,
            "dropped": each.dropped_rows,
        }
        for each in steps
    ]
    quoted = "\n".join(f"> {line}" for line in criteria.strip().splitlines())
    splits = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    return CARD.format(
        head=_front(title, total, hub or dataset),
        title=title,
        total=total,
        splits=splits,
        model=model,
        server=server,
        dataset=dataset,
        split=split,
        seeds=settings["prompts"]["seeds"],
        judge=judge,
        how=rows_table(how),
        quoted=quoted,
        became=rows_table(became),
        account="\n".join(str(each) for each in steps),
        spent=spent,
        licence=licence_of(dataset),
    )
