"""The integers that a plan shows are those in the layers, and those in the NPU's program."""

import numpy as np
import pytest
from quantization_cases import float_model, plan

from relay_passes.frontend.import_torch import import_torch
from relay_passes.pipeline import lower_to_integer
from relay_passes.read_layers import read_layers
from targets.layers import Add, Conv2d
from targets.npu.compiler import compile_layers
from targets.npu.machine import isa
from targets.npu.machine.spec import load_spec
from targets.npu.simulate.codes import RECORD
from targets.scale import Scale
from tvmq.plan.annotate import annotate
from tvmq.settings import Settings

PAR, CONSTANTS = 3, 0

CASES = [
    ("resnet_projection", Settings(scales="free", granularity="channel")),
    ("preact", Settings(scales="free")),
    ("densenet_small", Settings(granularity="channel")),
    ("silu_net", Settings()),
    ("mobilenet_rescaled", Settings(scales="free", method=("wess",))),
]


@pytest.mark.parametrize(("name", "settings"), CASES, ids=[case[0] for case in CASES])
def test_layers_hold_the_integers_of_the_plan(name, settings):
    quantized = plan(name, settings)
    integer = lower_to_integer(import_torch(annotate(float_model(name), quantized)))
    network = read_layers(integer)
    found = {}
    for layer in network.layers:
        if isinstance(layer, Add):
            assert layer.scale == quantized.additions[layer.name]
        elif isinstance(layer, Conv2d):
            proof = quantized.proofs[layer.name]
            bound = max(proof.sums, proof.largest, -proof.smallest)
            # a table's codes, known once it is made, may span less than those that were planned
            assert layer.max_sum == bound or (name == "silu_net" and layer.max_sum < bound)
            if layer.requantize is not None:
                found[layer.name] = layer.requantize.scale
    assert found == {name: _widened(s, found[name]) for name, s in quantized.requantize.items()}


def test_the_program_holds_them_too():
    name, settings = CASES[0]
    quantized = plan(name, settings)
    integer = lower_to_integer(import_torch(annotate(float_model(name), quantized)))
    network = read_layers(integer)
    program = compile_layers(network.layers, network.inputs, network.outputs, load_spec("e256"))
    assert {span.kind for span in program.layers} >= {"conv2d", "avg_pool2d"}
    for span in program.layers:
        if span.name in quantized.requantize:
            scale = quantized.requantize[span.name]
            left = scale.residual_shift or (0,) * len(scale.shift)
            channels = set(zip(scale.multiplier, scale.shift, left, strict=True))
            assert _executed(program, span) == (channels, {scale.residual_multiplier})


def _executed(program, span):
    """What a layer's REQs say: (multiplier, shift, residual's left shift) of their channels."""
    par = np.zeros(1 << 16, np.uint8)
    constants = np.frombuffer(program.constants, np.uint8)
    channels, residual_multipliers = set(), set()
    for i in span.of(program.instructions):
        if isinstance(i, isa.Load) and i.mem == PAR and i.region == CONSTANTS:
            assert i.y == i.z == 1
            par[i.spm_addr : i.spm_addr + i.x_bytes] = constants[i.dram_off :][: i.x_bytes]
        if isinstance(i, isa.Requantize):
            records = par[i.par_addr * 4 :][: i.nvalid * RECORD.itemsize].view(RECORD)
            for r in records:
                multiplier = int(r["mult"]) if i.multiply else 1
                channels.add((multiplier, i.shift + int(r["shift"]), int(r["res_shl"])))
            residual_multipliers.add(i.res_mult)
    return channels, residual_multipliers


def _widened(scale, like):
    """One number for all channels, written out for each."""
    K = len(like.shift)
    spread = [numbers * (K // len(numbers)) if numbers else () for numbers in
              (scale.multiplier, scale.shift, scale.residual_shift)]  # fmt: skip
    return Scale(scale.fraction, spread[0], spread[1], scale.residual_multiplier, spread[2])
