"""Kernels for processors that are not this one: what they need, and what they compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cpu_convolutions import CONVS, conv, conv_reference, extreme_conv
from cpu_kernels import RANGE, codes, features
from emulated_kernels import Machine

from targets.cpu.instruction_sets import named
from targets.cpu.kernels import make_kernel
from targets.layers import Conv2d

ARM = ("qemu-aarch64", "aarch64-linux-gnu-gcc")
MACHINES = {
    # The first three lack what the next ones have: an instruction too many ends the program.
    "armv8-neon": Machine(ARM[0], "cortex-a53", ARM[1]),
    "armv8-dotprod": Machine(ARM[0], "neoverse-n1", ARM[1]),
    "armv8-i8mm": Machine(ARM[0], "max", ARM[1]),
    "x86-64": Machine("qemu-x86_64", "core2duo", "x86_64-linux-gnu-gcc"),
    "avx2": Machine("qemu-x86_64", "max", "x86_64-linux-gnu-gcc"),
}
LAYERS = {
    name: conv(**CONVS[name])
    for name in (
        *("square", "stem", "odd channels", "dense wide", "pointwise ragged", "asymmetric"),
        *(
            "depthwise ragged",
            "depthwise 5x5",
            "depthwise strided",
            "grouped",
            "multiplier",
            "scaled products in words",
            "raw",
            "depthwise of 4 bits",
        ),
    )
} | {f"extreme {dtype}": extreme_conv(dtype) for dtype in RANGE}


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("name", MACHINES)
def test_kernels_under_emulation(name: str, layer: Conv2d, tmp_path: Path) -> None:
    machine, instructions = MACHINES[name], named(name)
    if not machine.is_here:
        pytest.skip(f"needs {machine.emulator} and {machine.compiler}")
    kernel = make_kernel(layer, features(instructions))
    inputs = [codes(np.random.default_rng(1), 2, value) for value in layer.inputs]
    if layer.requantize is None:  # the ends of the range, where sums are largest
        inputs = [np.where(each > each.mean(), each.max(), each.min()) for each in inputs]
    got = machine.run(kernel, instructions, layer, inputs, tmp_path)
    np.testing.assert_array_equal(got, conv_reference(layer, inputs))
