"""Calls whose loops do not fit an instruction: what is cut, and what is refused."""

import numpy as np
import pytest
from npu_layers import FLAT, meaning, random_inputs

from targets.errors import ArithmeticRangeError
from targets.layers import MaxPool2d, Value
from targets.npu.compiler import compile_layers
from targets.npu.constraints import refusal
from targets.npu.machine.spec import load_spec
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
    assert f"a window of {kernel[0]} x {kernel[1]}" in refusal(layer, E256)
    with pytest.raises(ArithmeticRangeError, match="window is too large"):
        compile_layers([layer], layer.inputs, [layer.output], E256)
