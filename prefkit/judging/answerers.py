"""Who answers prompts in an evaluation besides models and servers: a function of one's own, such
as a rule to compare with, or a service with a protocol of its own. Not from a notebook.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from prefkit.core import ConfigError, DataError, fingerprint_files, nearest, run_own
from prefkit.judging.served import Served

ANSWERERS: dict[str, Callable] = {}
QUESTION_FORMS = ("prompts", "conversations")  # what such a function takes first


def register_answerer(
    name: str,  # as in a config: models: {mine: {answerer: NAME}}
    # (prompts, **options) -> list[str], prompts being texts of last user turns; or (conversations,
    # **options), lists of messages. `settings`, where it takes them, is a dict with temperature,
    # top_p, max_new_tokens and seed
    function: Callable,
):
    "Add an answerer; a name may be given again. Raises `ConfigError` for a function of other form."
    given = list(inspect.signature(function).parameters)
    if not given or given[0] not in QUESTION_FORMS:
        raise ConfigError(
            f"answerer {name}: its first parameter is {' or '.join(QUESTION_FORMS)}, not "
            f"{given[0] if given else 'missing'}.",
            field="function",
            reason="wrong form",
        )
    ANSWERERS[name] = function


@dataclass(frozen=True)
class OwnAnswerer:
    """A function that answers, by its registered name; raises `ConfigError` for an unknown name or
    option.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.name not in ANSWERERS:
            raise ConfigError(
                f"answerer: there is none called `{self.name}`.{nearest(self.name, ANSWERERS)} "
                "register_answerer adds one.",
                field="answerer",
                reason="unknown name",
            )
        known = self._parameters()
        for option in self.options:
            if option not in known:
                raise ConfigError(
                    f"answerer {self.name}: there is no option `{option}`.{nearest(option, known)}",
                    field=option,
                    reason="unknown option",
                )
        lacking = [key for key, each in known.items() if each.default is each.empty]
        if lacking := [key for key in lacking if key not in self.options]:
            raise ConfigError(
                f"answerer {self.name}: the option {lacking[0]} must be given.",
                field=lacking[0],
                reason="missing",
            )

    def _parameters(self):
        "Its options: neither what it is asked nor `settings`."
        given = list(inspect.signature(ANSWERERS[self.name]).parameters.items())[1:]
        return {key: each for key, each in given if key != "settings"}

    def depends_on(self) -> list:
        "What makes its answers, besides the settings."
        file = inspect.getsourcefile(ANSWERERS[self.name])
        return ["answerer", self.name, self.options, fingerprint_files(file) if file else ""]

    def answer(
        self,
        chats: dict[str, list],  # prompt_id -> messages
        settings: dict,  # as `decoding` gives them
        label: str,  # unused: it is one call
        keep: Callable,  # given {prompt_id: answer}
    ):
        "Hand every answer to `keep`; raises `DataError` for another number of them, or no texts."
        function = ANSWERERS[self.name]
        given = inspect.signature(function).parameters
        asked = list(chats.values())
        if next(iter(given)) == "prompts":
            asked = [_last_question(chat) for chat in asked]
        own = {"settings": settings} if "settings" in given else {}
        texts = run_own(function, asked, **self.options, **own)
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


def of_config(
    source: dict,  # {answerer: NAME, ...options}, or a server's settings
) -> OwnAnswerer | Served:
    "Who answers in a model's place; raises `ConfigError`."
    if "answerer" in source:
        options = dict(source)
        return OwnAnswerer(options.pop("answerer"), options)
    return Served(**source)
