"""Spans of bytes."""

from __future__ import annotations

from targets.npu.emit.touched_bytes import Span


def test_bytes_of_what_moves_move_and_no_others() -> None:
    """A tensor that stays in ACT lies behind the scratchpads, and stays where it is."""
    scratchpads = {"mem0": (range(64, 128), 32), "mem1": (range(64), 0)}
    assert Span("mem0", 64, 96).moved(scratchpads) == Span("mem0", 96, 128)
    assert Span("mem0", 128, 160).moved(scratchpads) == Span("mem0", 128, 160)
    assert Span("mem1", 0, 64).moved(scratchpads) == Span("mem1", 0, 64)
    assert Span("dram1", 64, 96).moved(scratchpads) == Span("dram1", 64, 96)
