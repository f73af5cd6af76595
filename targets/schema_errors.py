"""What pydantic found wrong, in the words of an error message."""

from __future__ import annotations

import reprlib

from pydantic_core import ErrorDetails


def in_words(error: ErrorDetails) -> str:
    """One broken rule: the field, what it holds and what is wrong with that."""
    where, what = ".".join(map(str, error["loc"])), error["msg"]
    if error["type"] == "value_error":  # a rule of ours: it names what it is about
        what = what.removeprefix("Value error, ")
        return f"{where}: {what}" if where else what
    if not where or isinstance(error["input"], dict):
        return f"{where}: {what}" if where else what
    return f"{where} is {reprlib.repr(error['input'])}: {what}"
