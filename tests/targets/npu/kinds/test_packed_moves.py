"""Codes of 4 and 2 bits are moved as the bytes that hold them, where all pieces are whole bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from npu_layers import conv, meaning, random_inputs

from targets.layers import Conv2d, Layer, Move, Piece, Value
from targets.npu.compiler import compile_layers
from targets.npu.kinds.table import kind_of
from targets.npu.layer_plan import in_dram
from targets.npu.machine import isa
from targets.npu.machine.spec import load_spec
from targets.npu.simulate.interleave import interleaved, youngest
from targets.npu.simulate.simulator import Simulator

SPEC = load_spec("e256")
ONES, ORIGIN = (1, 1, 1), (0, 0, 0)


def with_layers_beside(move: Move) -> list[Layer]:
    """A layer that makes what is moved, the move, and a layer that reads what came of it."""
    source, made = move.pieces[0].value, move.output
    first = conv((6, 6, 8), source.shape[2], out=source.dtype, out_bits=source.bits, seed=1)
    last = conv(made.shape, 16, dtype=made.dtype, bits=made.bits, weight_bits=made.bits, seed=2)
    assert isinstance(first, Conv2d)
    assert isinstance(last, Conv2d)
    assert first.requantize is not None
    wider = replace(first.requantize, shift=first.requantize.shift - 2)
    named = replace(first.output, name=source.name)
    first = replace(first, output=named, requantize=wider, name="first")
    return [first, move, replace(last, input=made, name="last")]


def stored_bits(layers: list[Layer]) -> set[int]:
    """How what is moved lies in memory."""
    planned = in_dram(layers, {layers[0].inputs[0].name, layers[-1].output.name}, SPEC)
    (moved,) = (each for each in planned if isinstance(each.job.layer, Move))
    return {each.bits for each in (*moved.job.inputs, moved.job.output)}


def check(layers: list[Layer]) -> None:
    """The program computes the layers, in whatever order its units work."""
    first, move, last = layers
    (image,) = random_inputs(first, 3)
    between = meaning(first, [image])
    assert len(np.unique(between)) > 3
    want = meaning(last, [meaning(move, [between] * len(move.pieces))])
    program = compile_layers(layers, list(first.inputs), [last.output], SPEC)
    data = np.ascontiguousarray(image).view(np.uint8).reshape(-1)
    got = Simulator(SPEC).run(program, data)
    np.testing.assert_array_equal(got, want.astype(np.uint8).reshape(-1))
    other = Simulator(SPEC).run(program, data, interleaved(youngest))
    np.testing.assert_array_equal(other, got)


def box(bits: int, dtype: str, **what: tuple[int, int, int]) -> Piece:
    source = Value("moved", (6, 6, 16), dtype, bits)
    return Piece.box(source, **{"start": ORIGIN, "step": ONES, "at": ORIGIN, **what})


def move(bits: int, dtype: str, shape: tuple[int, int, int], *pieces: Piece, fill: int = 1) -> Move:
    return Move("move", "net.move", pieces, Value("made", shape, dtype, bits), fill)


def shortcut(bits: int, dtype: str, at: int = 8) -> Move:
    """Every other pixel, with channels of a constant before and behind."""
    piece = box(bits, dtype, step=(2, 2, 1), size=(3, 3, 16), at=(0, 0, at))
    return move(bits, dtype, (3, 3, 32), piece, fill=-1 if dtype == "int8" else 1)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("bits", [2, 4])
def test_a_shortcut_that_skips_pixels_and_adds_channels(bits, dtype):
    layers = with_layers_beside(shortcut(bits, dtype))
    assert stored_bits(layers) == {bits}
    check(layers)


@pytest.mark.parametrize("bits", [2, 4])
def test_channels_cut_out_and_put_together_in_another_order(bits):
    halves = [
        box(bits, "uint8", start=(0, 0, 8 * n), size=(6, 6, 8), at=(0, 0, 8 - 8 * n))
        for n in range(2)
    ]
    layers = with_layers_beside(move(bits, "uint8", (6, 6, 16), *halves))
    assert stored_bits(layers) == {bits}
    check(layers)


def test_a_move_stores_the_bytes_that_hold_the_codes():
    def stored(bits: int) -> int:
        layers = with_layers_beside(shortcut(bits, "uint8"))
        program = compile_layers(layers, list(layers[0].inputs), [layers[-1].output], SPEC)
        runs = program.layers[1].runs
        moved = [each for begin, end in runs for each in program.instructions[begin:end]]
        return sum(each.x_bytes * each.y * each.z for each in moved if isinstance(each, isa.Store))

    assert [stored(bits) for bits in (2, 4, 8)] == [3 * 3 * 8, 3 * 3 * 16, 3 * 3 * 32]


@pytest.mark.parametrize(
    "piece",
    [
        {"start": (0, 0, 2), "size": (6, 6, 12)},
        {"size": (6, 6, 14)},
        {"size": (6, 6, 12), "at": (0, 0, 2)},
        {"step": (1, 1, 2), "size": (6, 6, 8)},
    ],
    ids=["begins inside a byte", "ends inside one", "is written inside one", "skips codes"],
)
def test_a_piece_of_no_whole_bytes_is_moved_code_by_code(piece):
    layers = with_layers_beside(move(2, "uint8", (6, 6, 16), box(2, "uint8", **piece)))
    assert stored_bits(layers) == {8}
    check(layers)


def test_rows_of_pixels_of_no_whole_bytes_are_moved_code_by_code():
    """Pixels overlap, as those of a window do: each begins two codes behind the one before."""
    overlapping = replace(box(2, "uint8", size=(6, 30, 16)), strides=(96, 2, 1))
    layers = with_layers_beside(move(2, "uint8", (6, 30, 16), overlapping))
    assert stored_bits(layers) == {8}
    check(layers)
    alone = replace(overlapping, size=(6, 1, 16))  # the stride to a second one doesn't matter
    layers = with_layers_beside(move(2, "uint8", (6, 1, 16), alone))
    assert stored_bits(layers) == {2}
    check(layers)


def test_pixels_in_another_order_are_moved_packed():
    """Rows become columns, written as a view of one row for each."""
    turned = replace(box(4, "int8", size=(6, 6, 16)), strides=(16, 96, 1))
    moving = replace(move(4, "int8", (1, 36, 16), turned, fill=0), view=(6, 6, 16))
    layers = with_layers_beside(moving)
    assert stored_bits(layers) == {4}
    check(layers)


def test_stripes_take_the_bytes_that_hold_the_codes():
    """Two of a row are in ACT at a time."""
    planned = in_dram(with_layers_beside(shortcut(2, "uint8")), {"x", "y"}, SPEC)
    (job,) = (each.job for each in planned if isinstance(each.job.layer, Move))
    row = 3 * 32 // 4
    kind = kind_of(job.layer)
    assert [*kind.choices(replace(job, act_bytes=2 * row))] == [1]
    assert [*kind.choices(replace(job, act_bytes=2 * row - 1))] == []
    assert f"needs {2 * row} bytes of ACT" in kind.too_large(replace(job, act_bytes=8))


def test_pixels_of_no_whole_bytes_are_moved_code_by_code():
    layers = with_layers_beside(move(2, "uint8", (6, 6, 18), box(2, "uint8", size=(6, 6, 16))))
    assert stored_bits(layers) == {8}
    check(layers)


def test_a_view_of_no_whole_bytes_is_written_code_by_code():
    """Its rows are longer than the pieces in them by less than a byte."""
    rows = replace(box(2, "uint8", size=(32, 1, 16)), strides=(16, 16, 1))
    moving = replace(move(2, "uint8", (6, 6, 16), rows), view=(32, 1, 18))
    layers = with_layers_beside(moving)
    assert stored_bits(layers) == {8}
    check(layers)


def test_a_reshape_of_packed_codes_shares_their_bytes():
    piece = box(2, "uint8", size=(6, 6, 16))
    layers = with_layers_beside(replace(move(2, "uint8", (3, 12, 16), piece), reshape=True))
    assert stored_bits(layers) == {2}
    check(layers)
