"""What pydantic found wrong, in the words of an error message."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from difflib import get_close_matches

from pydantic import BaseModel
from pydantic_core import ErrorDetails


def in_words(error: ErrorDetails, model: type[BaseModel] | None = None) -> str:
    """One broken rule: the field, what it holds and what is wrong with that.

    Args:
        error: of pydantic.
        model: that was validated, so that a misspelt field leads to the one that was meant.
    """
    where, what = ".".join(map(str, error["loc"])), error["msg"]
    if error["type"] == "missing":
        return f"{where} is missing"
    if error["type"] == "extra_forbidden":
        near = get_close_matches(str(error["loc"][-1]), _fields(model, error["loc"][:-1]), 1)
        return f"{where} is no field" + (f" (did you mean {near[0]}?)" if near else "")
    if error["type"] == "value_error":  # a rule of ours: it names what it is about
        what = what.removeprefix("Value error, ")
        return f"{where}: {what}" if where else what
    if not where or isinstance(error["input"], dict):
        return f"{where}: {what}" if where else what
    return f"{where} is {reprlib.repr(error['input'])}: {what}"


def _fields(model: type[BaseModel] | None, place: Sequence[int | str]) -> list[str]:
    """Names of the fields at a place in a model, as far as it is models all the way."""
    for name in place:
        field = None if model is None else model.model_fields.get(str(name))
        found = None if field is None else field.annotation
        model = found if isinstance(found, type) and issubclass(found, BaseModel) else None
    return [] if model is None else list(model.model_fields)
