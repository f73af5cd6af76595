"""A metric of the user, ``module:function``: what it must be, and what it may return.

The function is called once. It goes through the batches, of which each is a pair of the outputs by
name and the labels as the data gave them, and returns a number, or a dict of numbers by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from targets.errors import InputError
from tvmq.run.metrics import Batches, Metric
from tvmq.users_code import import_object, users_code

_FORM = (
    "Write it as function(batches), which goes through the (outputs, labels) of all batches and "
    "returns a dict of numbers by name"
)


def import_metric(spec: str) -> Metric:
    """The function of ``--metric``.

    Args:
        spec: ``package.module:function``.

    Returns:
        The metric; it raises an InputError where the function fails or returns no numbers.

    Raises:
        InputError: there is no such function, or it takes something else than the batches.
    """
    flag = f"--metric {spec}"
    function = import_object(spec, "--metric")
    if not callable(function):
        raise InputError(f"{flag}: is no function. {_FORM}.")
    try:
        inspect.signature(function).bind(())
    except TypeError as error:
        raise InputError(
            f"{flag}: can't be called with the batches alone ({error}). {_FORM}."
        ) from error
    except ValueError:  # a function of C, which doesn't say what it takes
        pass

    def metric(batches: Batches) -> dict[str, float]:
        with users_code(flag):
            found = function(batches)
            named = found if isinstance(found, Mapping) else {spec.rpartition(":")[2]: found}
            numbers = {str(name): _number(flag, name, value) for name, value in named.items()}
        if not numbers:
            raise InputError(f"{flag}: returned no number. {_FORM}.")
        return numbers

    return metric


def _number(flag: str, name: Any, value: Any) -> float:
    """Of Python, NumPy or torch."""
    shape = getattr(value, "shape", ())
    number = value.item() if hasattr(value, "item") and tuple(shape) == () else value
    if isinstance(number, int | float):
        return number
    what = f"an array of shape {list(shape)}" if shape else f"of type {type(value).__name__}"
    raise InputError(f"{flag}: {str(name)!r} is {what}, not a number. {_FORM}.")
