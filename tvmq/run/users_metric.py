"""A metric of the user, ``module:function``: importing it, and saying where it failed."""

from __future__ import annotations

import inspect
from typing import Any

from targets.errors import InputError
from tvmq.run.metrics import FORM, Batches, Metric
from tvmq.users_code import import_object, users_code


def import_metric(spec: str) -> Metric:
    """The function of ``--metric``.

    Args:
        spec: ``package.module:function``.

    Returns:
        The metric; it raises an InputError where the function fails.

    Raises:
        InputError: there is no such function, or it takes something else than the batches.
    """
    flag = f"--metric {spec}"
    function = import_object(spec, "--metric")
    if not callable(function):
        raise InputError(f"{flag}: is no function. {FORM}.")
    try:
        inspect.signature(function).bind(())
    except TypeError as error:
        raise InputError(
            f"{flag}: can't be called with the batches alone ({error}). {FORM}."
        ) from error
    except ValueError:  # a function of C, which doesn't say what it takes
        pass

    def metric(batches: Batches) -> Any:
        with users_code(flag):
            return function(batches)

    metric.__name__ = spec.rpartition(":")[2]
    return metric
