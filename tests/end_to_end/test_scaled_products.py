"""Factors of products in a plan: the same integers on all devices, and nothing where all are 1."""

import json
import math

import numpy as np
import pytest
from placed_modules import run_placed
from quantization_cases import float_model, images, plan

from relay_passes.frontend.import_torch import import_torch
from relay_passes.pipeline import lower_to_integer
from relay_passes.place import place
from relay_passes.read_layers import read_layers
from targets.layers import Conv2d
from targets.npu.machine.isa import Gemm
from targets.npu.machine.spec import load_spec
from targets.product_factors import FACTORS, integer_factors
from tvmq.float_model import groups_of
from tvmq.plan.annotate import annotate
from tvmq.plan.plan_file import plan_from_json, plan_to_json
from tvmq.regions import find_regions, is_depthwise
from tvmq.run.reference import run_reference
from tvmq.settings import Settings

W2A2 = Settings(2, 2, "pot", "channel")
CASES = {
    "all outputs alike": ("resnet_small", W2A2, 8, 10**6, "e256"),
    "by the array's width": ("shufflenet_small", Settings(4, 4, "free", "channel"), 16, 16, "e256"),
    "by output": ("vgg_small", Settings(2, 4), 16, 1, "e256"),
    "in groups": ("grouped", Settings(4, 4), 2, 5, "m2048"),
    "dense layers": ("mlp", Settings(8, 8, "free", "tensor"), 16, 16, "m2048"),
    "tokens": ("vit_small", Settings(4, 8), 8, 16, "e256"),
    "odd numbers": ("odd_channels", Settings(4, 4), 3, 7, "e256"),
    "behind depthwise layers": ("mobilenet_small", Settings(4, 4), 8, 16, "e256"),
}


def with_factors(name, settings, inputs, outputs, factors, seed=0):
    """The plan of a network with factors drawn for the products of all layers that can have some.

    Args:
        name: of the network.
        settings: of the plan.
        inputs: channels of a group.
        outputs: channels that have factors in common.
        factors: drawn from.
        seed: of the draw.
    """
    model, rng = float_model(name), np.random.default_rng(seed)
    document = json.loads(plan_to_json(plan(name, settings)))
    for layer in find_regions(model).weighted:
        node = model.nodes[layer.name]
        if is_depthwise(node):
            continue
        K, C = model.weight_of(node).shape[:2]
        each = K // groups_of(node)
        rows = groups_of(node) * math.ceil(each / outputs)
        table = rng.choice(factors, (rows, math.ceil(C / inputs)))
        document["layers"][layer.name]["products"] = {
            "channels": inputs,
            "outputs": outputs,
            "factors": table.tolist(),
        }
    return plan_from_json(json.dumps(document), model)


@pytest.mark.parametrize(
    ("name", "settings", "inputs", "outputs", "machine"), CASES.values(), ids=CASES
)
def test_scaled_products_are_the_same_everywhere(name, settings, inputs, outputs, machine):
    model, spec = float_model(name), load_spec(machine)
    quantized = with_factors(name, settings, inputs, outputs, FACTORS)
    assert plan_from_json(plan_to_json(quantized), model) == quantized
    x = images(name)[:3]
    program = annotate(model, quantized)
    integer = lower_to_integer(import_torch(program))
    want = run_reference(integer, {model.inputs[0].name: x.numpy()})
    network = read_layers(integer)
    scaled = [layer for layer in network.layers if isinstance(layer, Conv2d) and _factors(layer)]
    plans = [weights.products for weights in quantized.weights.values() if weights.products]
    # a layer all of whose factors are 1/2 has but another unit
    assert len(scaled) == sum((integer_factors(np.array(p.factors))[0] != 1).any() for p in plans)
    for layer in scaled:
        if layer.requantize is not None:  # what was planned is what is executed
            planned, executed = quantized.requantize[layer.name], layer.requantize
            assert executed.fraction == planned.fraction
            assert (executed.shift == np.array(planned.shift)).all()
            assert (executed.multiplier == np.array(planned.multiplier)).all()
    on_cpu, on_npu = place(integer, network, None), place(integer, network, spec)
    placed = {p.name: p for p in on_npu.placements}
    assert all(placed[layer.name].device == "npu" for layer in scaled)
    for answer in (
        [t.float().numpy() for t in program(x.double())],
        run_placed(on_cpu, None, x.numpy()),
        run_placed(on_npu, spec, x.numpy()),
    ):
        for got, expected in zip(answer, want, strict=True):
            np.testing.assert_array_equal(got, expected)
    gemms = [i for p in on_npu.programs for i in p.instructions if isinstance(i, Gemm)]
    assert any(gemm.alpha_sign or gemm.alpha_a for gemm in gemms)


def _factors(layer):
    return getattr(layer.right, "factors", None)


def test_factors_of_one_change_nothing():
    name, spec = "resnet_small", load_spec("e256")
    without, ones = plan(name, W2A2), with_factors(name, W2A2, 8, 16, [1.0])
    assert ones == without
    programs = []
    for quantized in (without, ones):
        integer = lower_to_integer(import_torch(annotate(float_model(name), quantized)))
        programs.append([p.to_bytes() for p in place(integer, read_layers(integer), spec).programs])
    assert programs[0] == programs[1]


def test_the_proof_counts_the_fraction_bits_of_factors():
    """A layer whose sums would not fit with them goes without."""
    name = "resnet_small"
    quantized = with_factors(name, W2A2, 8, 16, [1.0625])
    for layer, weights in quantized.weights.items():
        if weights.products is None:
            continue
        assert weights.products.fraction == 4
        with_them, before = quantized.proofs[layer], plan(name, W2A2).proofs[layer]
        assert 16 * before.sums <= with_them.sums <= 17 * before.sums + 17
