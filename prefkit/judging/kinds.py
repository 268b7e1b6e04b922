"""Rewards and judges by their names: each is a dataclass whose fields are its options. Written by
hand, not exported from a notebook.
"""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, field, fields, make_dataclass
from typing import Any, TypeVar

from prefkit.core import ConfigError, PrefkitError, nearest

Kind = TypeVar("Kind", bound=type)
KEY_HINT = (
    " A key is never an option: put it into an environment variable, and that variable's name "
    "into key_env."
)


def options_of(
    made,  # an instance of such a dataclass
    kind: type[Any] | None = None,  # only the fields of this class
) -> dict:  # option -> value
    "What something was made with."
    return {each.name: getattr(made, each.name) for each in fields(kind or made) if each.init}


def make(
    kind: type[Any],  # a dataclass
    options: dict,  # of it, by name
    where: str,  # stands at the start of a message
):  # an instance
    "Raises `ConfigError` for an option that is unknown, missing or, says the class, out of range."
    known = {each.name: each for each in fields(kind) if each.init}
    for name in options:
        if name not in known:
            is_key = "key_env" in known and ("key" in name.lower() or "token" in name.lower())
            raise ConfigError(
                f"{where}: there is no option `{name}`.{nearest(name, known)}"
                f"{KEY_HINT if is_key else ''}",
                field=name,
                reason="unknown option",
            )
    for name, each in known.items():
        if name not in options and each.default is MISSING and each.default_factory is MISSING:
            raise ConfigError(
                f"{where}: the option {name} must be given.", field=name, reason="missing"
            )
    try:
        return kind(**options)
    except PrefkitError as error:
        raise error.at(where) from error


def kind_of(
    name: str,  # of the class
    maker: Callable,  # its keywords with their defaults become the fields
    base: type,  # a dataclass
    **members,  # of the class besides
) -> type[Any]:  # a dataclass that holds the maker
    "A class for what a function makes of its keywords."
    own = [
        (option, object, field() if each.default is each.empty else _default(each.default))
        for option, each in inspect.signature(maker).parameters.items()
        if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
    ]
    return make_dataclass(
        name,
        own,
        bases=(base,),
        kw_only=True,
        namespace={"maker": staticmethod(maker), **members},
    )


def _default(value):
    return field(default_factory=lambda: value)


def lookup(
    table: dict[str, Kind],  # name -> kind
    name: str,
    what: str,  # reward or judge
) -> Kind:
    "Raises `ConfigError` for a name that is not in the table, with the nearest."
    if name in table:
        return table[name]
    raise ConfigError(
        f"{what}: there is no {what} `{name}`.{nearest(name, table)} register_{what} adds one.",
        field=what,
        reason="unknown name",
    )
