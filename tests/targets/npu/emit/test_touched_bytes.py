"""Bytes of all instructions."""

from __future__ import annotations

from targets.npu.emit.touched_bytes import Span, TouchedBytes

LOADED, READ, KEPT = Span("mem0", 64, 96), Span("mem1", 0, 64), Span("mem0", 128, 160)
OUTSIDE = Span("dram1", 64, 96)
PROGRAM = [((OUTSIDE,), (LOADED,)), ((), ()), ((LOADED, READ), (KEPT,))]
ROWS = [[5, 64, 96], [0, 64, 96], [0, 64, 96], [1, 0, 64], [0, 128, 160]]


def lists(touched: TouchedBytes) -> list[list[list[int]]]:
    return [each.tolist() for each in touched]


def test_memories_and_regions_have_numbers() -> None:
    assert lists(TouchedBytes.of(PROGRAM)) == [ROWS, [[1, 2], [2, 2], [4, 5]]]
    assert lists(TouchedBytes.of([])) == [[], []]


def test_bytes_of_what_moves_move_and_no_others() -> None:
    """A tensor that stays in ACT lies behind the scratchpads, and stays where it is."""
    touched = TouchedBytes.of(PROGRAM)
    moved, ends = touched.moved(0, range(64, 128), 32)
    assert moved.tolist() == [ROWS[0], [0, 96, 128], [0, 96, 128], *ROWS[3:]]
    assert ends is touched.ends


def test_parts_and_what_is_joined_of_them() -> None:
    touched = TouchedBytes.of(PROGRAM)
    for cut in range(4):
        parts = [touched.part(0, cut), touched.part(cut, 3)]
        assert [lists(part) for part in parts] == [
            lists(TouchedBytes.of(PROGRAM[:cut])),
            lists(TouchedBytes.of(PROGRAM[cut:])),
        ]
        assert lists(TouchedBytes.joined(parts)) == lists(touched)
