"""Depthwise layers in both modes of the description: the same bits, and cycles as documented."""

from pathlib import Path

import numpy as np
import pytest
from npu_layers import conv, meaning, random_inputs

from targets.npu.compiler import compile_layers
from targets.npu.execute.compiled import Executor
from targets.npu.machine import isa, spec
from targets.npu.machine.spec import load_spec
from targets.npu.price.durations import duration
from targets.npu.price.layer_costs import price
from targets.npu.simulate.simulator import Simulator

PRESET = Path(spec.__file__).parents[1] / "specs" / "e256.toml"
CASES = {
    "3x3": (conv((12, 12, 20), 20, groups=20), 9, 3),
    "3x3 of stride 2": (conv((13, 13, 20), 20, groups=20, strides=(2, 2)), 9, 6),
    "5x5": (conv((14, 14, 33), 33, (5, 5), groups=33, padding=(2, 2, 2, 2)), 25, 5),
}


def _machine(mode, folder):
    """The preset's description with another mode, as a user would write it."""
    text = PRESET.read_text()
    assert 'dw = "stream"' in text
    path = folder / f"{mode}.toml"
    path.write_text(text.replace('dw = "stream"', f'dw = "{mode}"').replace("e256", f"own_{mode}"))
    return load_spec(str(path))


@pytest.mark.parametrize("case", CASES)
def test_both_modes_give_the_same_bits_in_documented_cycles(case, tmp_path):
    layer, *taps = CASES[case]
    inputs = random_inputs(layer)
    packed = np.concatenate([x.reshape(-1).view(np.uint8) for x in inputs])
    totals = []
    for mode, cycles_per_pixel in zip(("stream", "window"), taps, strict=True):
        machine = _machine(mode, tmp_path)
        assert machine.array.dw == mode
        program = compile_layers([layer], list(layer.inputs), [layer.output], machine)
        (got,) = Executor(machine).run(program, packed[None])
        np.testing.assert_array_equal(got, Simulator(machine).run(program, packed))
        codes = got.view(layer.output.dtype).reshape(layer.output.shape)
        np.testing.assert_array_equal(codes, meaning(layer, inputs))
        products = [i for i in program.instructions if isinstance(i, isa.Depthwise)]
        assert products
        for i in products:
            assert duration(i, machine).work == i.m0 * i.m1 * cycles_per_pixel
        totals.append(price(program, machine).timeline.total)
    assert totals[1] < totals[0]
