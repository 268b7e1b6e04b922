"""Who answers prompts in an evaluation besides models and servers: a function of one's own, such
as a rule to compare with, or a service with a protocol of its own. Not from a notebook.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from prefkit.core import ConfigError, DataError, fingerprint_files, run_own
from prefkit.judging.kinds import kind_of, lookup, make, options_of
from prefkit.judging.served import Served

QUESTION_FORMS = ("prompts", "conversations")  # what such a function takes first


@dataclass(kw_only=True)
class OwnAnswerer:
    "A function that answers; its options are the fields of a class of its own."

    name: ClassVar[str]
    function: ClassVar[Callable]

    def depends_on(self) -> list:
        "What makes its answers, besides the settings."
        file = inspect.getsourcefile(self.function)
        return ["answerer", self.name, options_of(self), fingerprint_files(file) if file else ""]

    def answer(
        self,
        chats: dict[str, list],  # prompt_id -> messages
        settings: dict,  # as `decoding` gives them
        label: str,  # unused: it is one call
        keep: Callable,  # given {prompt_id: answer}
    ):
        "Hand every answer to `keep`; raises `DataError` for another number of them, or no texts."
        given = inspect.signature(self.function).parameters
        asked = list(chats.values())
        if next(iter(given)) == "prompts":
            asked = [_last_question(chat) for chat in asked]
        own = {"settings": settings} if "settings" in given else {}
        texts = run_own(self.function, asked, **options_of(self), **own)
        texts = texts if isinstance(texts, list | tuple) else [texts]
        wrong = [text for text in texts if not isinstance(text, str)]
        if len(texts) != len(asked) or wrong:
            said = f"{wrong[0]!r} for an answer" if wrong else f"{len(texts)} answers"
            raise DataError(
                f"answerer {self.name} gave {said} to {len(asked)} prompts. Return a list of "
                "texts, one for each.",
                field=self.name,
                reason="wrong answers",
            )
        made = ({"text": text, "tokens": None, "ended": True} for text in texts)
        keep(dict(zip(chats, made)))


def _last_question(chat):
    return next((turn["content"] for turn in reversed(chat) if turn["role"] == "user"), "")


ANSWERERS: dict[str, type[OwnAnswerer]] = {}


def register_answerer(
    name: str,  # as in a config: models: {mine: {answerer: NAME}}
    # (prompts, **options) -> list[str], prompts being texts of last user turns; or (conversations,
    # **options), lists of messages. `settings`, where it takes them, is a dict with temperature,
    # top_p, max_new_tokens and seed
    function: Callable,
):
    "Add an answerer; a name may be given again. Raises `ConfigError` for a function of other form."
    first, *rest = [*inspect.signature(function).parameters.values(), None]
    if first is None or first.name not in QUESTION_FORMS:
        raise ConfigError(
            f"answerer {name}: its first parameter is {' or '.join(QUESTION_FORMS)}, not "
            f"{first.name if first else 'missing'}.",
            field="function",
            reason="wrong form",
        )

    def options(**_):
        "Stands for the function with its options alone."

    own = [
        each.replace(kind=each.KEYWORD_ONLY) for each in rest if each and each.name != "settings"
    ]
    options.__signature__ = inspect.Signature(own)  # ty: ignore[missing-attribute]
    made = kind_of("OwnAnswerer", options, OwnAnswerer, function=staticmethod(function))
    made.name, ANSWERERS[name] = name, made


def of_config(
    source: dict,  # {answerer: NAME, ...options}, or a server's settings
) -> OwnAnswerer | Served:
    "Who answers in a model's place; raises `ConfigError`."
    if "answerer" not in source:
        return Served(**source)
    options = dict(source)
    name = options.pop("answerer")
    return make(lookup(ANSWERERS, name, "answerer"), options, f"answerer {name}")
