"""Calls whose loops do not fit an instruction: what is cut, and what is refused."""

import numpy as np
import pytest
from npu_layers import FLAT, meaning, random_inputs, softmax

from targets.errors import ArithmeticRangeError
from targets.layers import MaxPool2d, Value
from targets.npu.compiler import compile_layers
from targets.npu.constraints import refusal
from targets.npu.emit.compute import emit_call
from targets.npu.emit.emitted import ACC, ACT, WGT, Place
from targets.npu.emit.loop_tree import Leaf, Number, Offset, Part
from targets.npu.emit.visits import Visits
from targets.npu.machine import isa
from targets.npu.machine.spec import load_spec
from targets.npu.schedule.meanings import ProductFields
from targets.npu.simulate.simulator import Simulator

E256 = load_spec("e256")


def pool(kernel: tuple[int, int]) -> MaxPool2d:
    """Three columns of windows, one row of them."""
    kh, kw = kernel
    x, y = Value("x", (kh, kw + 2, 8), "uint8"), Value("y", (1, 3, 8), "uint8")
    return MaxPool2d("layer", "net.pool", x, y, kernel, (1, 1), FLAT)


@pytest.mark.parametrize("kernel", [(31, 1), (1, 31), (31, 31)])
def test_the_largest_windows_are_right(kernel):
    layer = pool(kernel)
    assert refusal(layer, E256) is None
    program = compile_layers([layer], layer.inputs, [layer.output], E256)
    inputs = random_inputs(layer)
    codes = np.frombuffer(Simulator(E256).run(program, inputs[0].tobytes()), np.uint8)
    np.testing.assert_array_equal(codes.reshape(layer.output.shape), meaning(layer, inputs))


@pytest.mark.parametrize("kernel", [(32, 1), (1, 32)])
def test_a_larger_window_is_refused_and_never_cut(kernel):
    """A maximum starts anew with every instruction: cut along its window it would forget."""
    layer = pool(kernel)
    assert f"a window of {kernel[0]} x {kernel[1]}" in str(refusal(layer, E256))
    with pytest.raises(ArithmeticRangeError, match="window is too large"):
        compile_layers([layer], layer.inputs, [layer.output], E256)


@pytest.mark.parametrize(("pixels", "heads"), [(3, 4095), (9000, 1)])
def test_more_rows_than_an_instruction_counts_are_several(pixels, heads):
    layer = softmax((1, pixels, heads), heads, dtype="uint8")
    program = compile_layers([layer], layer.inputs, [layer.output], E256)
    made = [i for i in program.instructions if isinstance(i, isa.Softmax)]
    assert sum(i.m0 * i.m1 for i in made) == pixels * heads
    inputs = random_inputs(layer)
    codes = np.frombuffer(Simulator(E256).run(program, inputs[0].tobytes()), np.uint8)
    np.testing.assert_array_equal(codes.reshape(layer.output.shape), meaning(layer, inputs))


LANES, COLUMNS, KVALID = 16, 16, 5
TILE = LANES * COLUMNS
Strides = tuple[int, int, int]


def products(
    *loops: tuple[int, Strides], initialise: bool = True, tiles: int = 2
) -> list[isa.Gemm]:
    """What is emitted for loops of an extent and what a step adds to input, weights and sums."""
    named = {f"i{n}": loop for n, loop in enumerate(loops)}
    offsets = tuple(
        Offset(buffer, Number(strides={name: strides[n] for name, (_, strides) in named.items()}))
        for n, buffer in enumerate(("act", "wgt", "acc"))
    )
    extents = tuple((name, Number(extent)) for name, (extent, _) in named.items())
    fields = ProductFields(LANES, COLUMNS, 8, 8, "uint8", 0, KVALID, COLUMNS, tiles)
    leaf = Leaf("npu.gemm", offsets, fields, loops=extents)
    places = {
        "act": Place(ACT, 0, 1, dram=False),
        "wgt": Place(WGT, 0, 1, dram=False),
        "acc": Place(ACC, 0, 4, dram=False),
    }
    once = Visits(leaf, {}, np.arange(1))
    ((_, emitted),) = emit_call(once, places, E256, initialise=initialise)
    return [each.instruction for each in emitted]


def gemms(*loops: tuple[int, Strides], initialise: bool = True) -> list[tuple[int, ...]]:
    """(row of ACC, tile of weights, valid lanes, whether its sums start at zero) of each GEMM."""
    emitted = products(*loops, initialise=initialise)
    return [(i.acc_row, i.wgt_addr // TILE, i.kvalid, i.acc_init) for i in emitted]


def test_sums_start_anew_wherever_a_cut_leads_to_other_sums():
    """Two rows of pixels that don't follow each other in ACC, in front of the kernel's loop."""
    nest = [(2, (64, 0, 9 * COLUMNS)), (3, (LANES, TILE, 0)), (4, (8, 0, COLUMNS))]
    assert gemms(*nest) == [(0, 0, KVALID, True), (9, 0, KVALID, True)]
    assert gemms(*nest, initialise=False) == [(0, 0, KVALID, False), (9, 0, KVALID, False)]


def test_sums_go_on_wherever_a_cut_leads_along_the_kernel():
    """A kernel of four loops: the innermost, whose last tile has few lanes, stays whole."""
    four = [(2, (64, n * TILE, 0)) for n in (8, 4, 2, 1)]
    assert gemms(*four) == [(0, 0, KVALID, True), (0, 8, KVALID, False)]


def test_tiles_that_do_not_follow_each_other_are_products_of_their_own():
    """The innermost loop is cut: all lanes of the tiles before the last are valid."""
    apart = [(3, (LANES, 2 * TILE, 0)), (4, (8, 0, COLUMNS))]
    assert gemms(*apart) == [(0, 0, LANES, True), (0, 2, LANES, False), (0, 4, KVALID, False)]


def test_rows_of_sums_that_do_not_follow_each_other_are_products_of_their_own():
    rows = [(2, (64, TILE, 0)), (2, (8, 0, 9 * COLUMNS)), (2, (1, 0, COLUMNS))]
    first = [(0, 0, LANES, True), (9, 0, LANES, True)]
    assert gemms(*rows) == [*first, (0, 1, KVALID, False), (9, 1, KVALID, False)]
    columns = [(2, (64, TILE, 0)), (2, (8, 0, 2 * COLUMNS))]
    first = [(0, 0, LANES, True), (2, 0, LANES, True)]
    assert gemms(*columns) == [*first, (0, 1, KVALID, False), (2, 1, KVALID, False)]


def test_taps_of_few_channels_have_few_lanes_each():
    """k0 is the loop over tiles of channels; without one it does not become that of taps."""
    taps = [(5, (64, 3 * TILE, 0)), (3, (LANES, TILE, 0)), (4, (8, 0, COLUMNS))]
    (deep,) = products(*taps, tiles=3)
    assert (deep.k2, deep.k1, deep.k0) == (1, 5, 3)
    (shallow,) = products(*taps, tiles=1)
    assert (shallow.k2, shallow.k1, shallow.k0) == (5, 3, 1)
    assert (shallow.as_k2, shallow.as_k1, shallow.kvalid) == (64, LANES, KVALID)
    cut = products((2, (64, 9 * TILE, 0)), (4, (8, 0, COLUMNS)), tiles=1)
    assert [i.kvalid for i in cut] == [KVALID, KVALID]


def test_a_kernel_too_long_for_k1_is_still_one_product():
    (tall,) = products((35, (64, TILE, 0)), (4, (8, 0, COLUMNS)), tiles=1)
    assert (tall.k2, tall.k1, tall.k0) == (1, 1, 35)


OUTER = np.array([2, 3, 2])


def test_a_loop_whose_stride_the_loops_around_set():
    """What a nest is folded to may be kept only where it is the same everywhere."""
    part = Part(1, lambda env: env["outer"] * env["i"], frozenset({"outer", "i"}))
    moving = Number(parts=(part,), reads=part.reads, products=frozenset({("outer", "i")}))
    leaf = Leaf("copy", (Offset("x", moving),), loops=(("i", Number(5)),))
    apart = [(which.tolist(), nest) for which, nest in leaf.fold({"outer": OUTER}, len(OUTER))]
    assert [(which, nest.strides) for which, nest in apart] == [([0, 2], ((2,),)), ([1], ((3,),))]
    longer = Number(strides={"outer": 1}, reads=frozenset({"outer"}))
    leaf = Leaf("copy", (Offset("x", Number(strides={"i": 1})),), loops=(("i", longer),))
    apart = [(which.tolist(), nest) for which, nest in leaf.fold({"outer": OUTER}, len(OUTER))]
    assert [(which, nest.extents) for which, nest in apart] == [([0, 2], (2,)), ([1], (3,))]
