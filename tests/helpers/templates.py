"""Tokenizers as those of other people's models: the kit's own with their tokens and template."""

import copy
import json
from functools import cache
from types import SimpleNamespace

from transformers import AutoTokenizer

from prefkit.core import project_root

FOLDER = project_root() / "data/templates"
FAMILIES = json.loads((FOLDER / "families.json").read_text(encoding="utf-8"))


@cache
def _plain():
    return AutoTokenizer.from_pretrained(project_root() / "data/tiny/base")


def own_tokenizer(template: str | None = None):
    "A copy of the kit's tokenizer, with another template where one is given."
    made = copy.deepcopy(_plain())
    made.chat_template = made.chat_template if template is None else template
    return made


def imitation(family: str):
    "A tokenizer with a family's tokens and its template as written down in data/templates."
    about = FAMILIES[family]
    made = own_tokenizer((FOLDER / f"{family}.jinja").read_text(encoding="utf-8"))
    made.add_tokens(about["special"], special_tokens=True)
    made.add_tokens(about["words"])
    for kind in ("bos", "eos", "pad"):
        setattr(made, f"{kind}_token", about[kind])
    return made


def generation_config(tokenizer, family: str):
    "What stands for a model: the ends that the family's `generation_config.json` names."
    named = FAMILIES[family]["generation"]
    ids = tokenizer.convert_tokens_to_ids(named)
    return SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=ids))
