"""What `--metric` takes and gives back."""

import sys
import types

import pytest

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
