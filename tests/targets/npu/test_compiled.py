"""Compiled loops, where nothing can be kept."""

from __future__ import annotations

import pytest
from numba.core.caching import FunctionCache

from targets.npu.compiled import compiled


def doubled(value: int) -> int:
    return 2 * value


def test_where_no_folder_can_be_written_it_is_compiled_anew(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(FunctionCache._impl_class, "_locator_classes", [])
    assert compiled(doubled)(21) == 42
