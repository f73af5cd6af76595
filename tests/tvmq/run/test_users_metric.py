"""What `--metric` takes and gives back."""

import sys
import types

import numpy as np
import pytest
import torch

from targets.errors import InputError
from tvmq.run.users_metric import import_metric


@pytest.fixture
def metric(monkeypatch):
    """The metric that is called so in a module."""

    def make(function):
        module = types.ModuleType("some_metrics")
        module.mine = function
        monkeypatch.setitem(sys.modules, "some_metrics", module)
        return import_metric("some_metrics:mine")

    return make


@pytest.mark.parametrize(
    "value",
    [0.5, np.float32(0.5), np.array(0.5), torch.tensor(0.5), torch.tensor(0.5, dtype=torch.half)],
)
def test_numbers_of_any_kind(metric, value):
    for found in (value, {"mine": value}):
        numbers = metric(lambda batches, found=found: found)(iter(()))
        assert numbers == {"mine": 0.5}
        assert type(numbers["mine"]) is float


def test_whole_numbers_stay_whole(metric):
    numbers = metric(lambda batches: {"a": 3, "b": np.int64(4), "c": torch.tensor(5)})(iter(()))
    assert numbers == {"a": 3, "b": 4, "c": 5}
    assert all(type(number) is int for number in numbers.values())


@pytest.mark.parametrize(
    ("found", "pattern"),
    [
        (None, "'mine' is of type NoneType, not a number. Write it as function"),
        ({"map": torch.zeros(80)}, r"'map' is an array of shape \[80\], not a number"),
        ({"map": "0.5"}, "'map' is of type str"),
        ({}, "returned no number"),
    ],
)
def test_what_is_no_number(metric, found, pattern):
    with pytest.raises(InputError, match=rf"--metric some_metrics:mine: {pattern}"):
        metric(lambda batches: found)(iter(()))


@pytest.mark.parametrize(
    "function", [lambda outputs, labels: 0.0, lambda: 0.0], ids=["two", "none"]
)
def test_functions_of_something_else(metric, function):
    with pytest.raises(InputError, match=r"some_metrics:mine: can't be called with .* Write it as"):
        metric(function)


def test_what_is_no_function(metric):
    with pytest.raises(InputError, match="some_metrics:mine: is no function"):
        metric(0.5)


def test_failures_are_the_users(metric):
    with pytest.raises(InputError, match=r"failed with ZeroDivisionError.*test_users_metric.py:"):
        metric(lambda batches: 1 / 0)(iter(()))
