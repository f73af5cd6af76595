"""The collector is as it was, whatever happens while it is paused."""

import gc

import pytest

from targets import collector


def test_it_is_paused_within_and_as_before_behind():
    assert gc.isenabled()
    with collector.paused():
        assert not gc.isenabled()
        with collector.paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_an_error_does_not_leave_it_paused():
    with pytest.raises(ZeroDivisionError), collector.paused():
        1 / 0  # noqa: B018
    assert gc.isenabled()
