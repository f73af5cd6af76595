"""WESS: the rule, what limits a shift, and one multiplier per layer down to the NPU."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
import torch
from quantization_cases import calibration, float_model, plan

from relay_passes.frontend.import_torch import import_torch
from relay_passes.pipeline import lower_to_integer
from relay_passes.place import place
from relay_passes.read_layers import read_layers
from targets.arithmetic import requantize as requantize_sums
from targets.npu.machine import isa
from targets.npu.machine.spec import load_spec
from targets.rounding import HALF_UP
from targets.scale import derive_scale
from tvmq.plan.annotate import annotate
from tvmq.plan.plan_file import read_plan, write_plan
from tvmq.plan.planner import make_plan
from tvmq.plan.rounded_bias import rounded_bias
from tvmq.plan.snap import snap_weight_step
from tvmq.plan.weight_steps import choose_weight_steps, weight_codes
from tvmq.plan.wess import Surroundings, choose_shifted_steps
from tvmq.regions import find_regions
from tvmq.settings import Settings, weight_limit

NAME = "mobilenet_rescaled"
RULE = Settings(scales="free", method=("wess",), calib_method="minmax")
NO_BIAS = Surroundings(2.0**-6, 2.0**-5, None, torch.zeros(64, dtype=torch.float64))


def _weights(spread, channels=64, seed=0):
    """Depthwise-like, with ranges that differ by up to 2**spread."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.exp2(-spread * torch.rand(channels, generator=generator))
    return torch.randn(channels, 1, 3, 3, generator=generator) * sizes.reshape(-1, 1, 1, 1)


def _exponents(steps):
    """Shift of each channel against the coarsest."""
    ratios = [Fraction(max(steps)) / Fraction(step) for step in steps]
    assert all(r.denominator == 1 and r.numerator.bit_count() == 1 for r in ratios)
    return [r.numerator.bit_length() - 1 for r in ratios]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("scales", ["free", "pot"])
@pytest.mark.parametrize("spread", [0, 6, 12])
def test_each_channel_uses_more_than_half_of_the_codes(bits, scales, spread):
    weight, settings = _weights(spread), dataclasses.replace(RULE, scales=scales)
    chosen = choose_shifted_steps(weight, bits, settings, NO_BIAS)
    exponents = _exponents(chosen.steps)
    assert 0 <= min(exponents) <= max(exponents) <= 15
    largest = weight_codes(weight, chosen).abs().flatten(1).amax(dim=1)
    assert int(largest.min()) >= 2 ** (bits - 2)
    assert int(largest.max()) <= weight_limit(bits)
    own = weight.abs().flatten(1).amax(dim=1).double() / weight_limit(bits)
    assert all(step < 2 * float(best) for step, best in zip(chosen.steps, own, strict=True))


@pytest.mark.parametrize("multiplied", [True, False])
def test_integers_round_the_real_numbers_half_up(multiplied):
    settings = dataclasses.replace(RULE, scales="free" if multiplied else "pot")
    chosen = choose_shifted_steps(_weights(8), 8, settings, NO_BIAS)
    source, output = NO_BIAS.source, NO_BIAS.output
    steps = [snap_weight_step(step, source, output) for step in chosen.steps]
    unit = Fraction(source) / Fraction(output)
    integers = derive_scale([unit * Fraction(step) for step in steps])
    assert (set(integers.multiplier) == {1}) != multiplied
    sums = np.random.default_rng(0).integers(-(2**18), 2**18, (500, len(steps)))
    codes = requantize_sums(
        sums,
        np.zeros(64, np.int64),
        np.array(integers.shift),
        multiplier=np.array(integers.multiplier),
        rounding=HALF_UP,
        zero_point=0,
        low=-(2**40),
        high=2**40,
    )
    for channel, step in enumerate(steps):
        ratio = Fraction(source) * Fraction(step) / Fraction(output)
        want = [(int(s) * ratio + Fraction(1, 2)).__floor__() for s in sums[:, channel]]
        assert codes[:, channel].tolist() == want


def test_with_powers_of_two_it_is_a_power_of_two_per_channel():
    """One mechanism: the exponent of a channel is that of the layer less its shift."""
    shifted = Settings(method=("wess",), calib_method="minmax")
    channels = Settings(granularity="channel", calib_method="minmax")
    for spread in (0, 6, 12):
        one = choose_shifted_steps(_weights(spread), 8, shifted, NO_BIAS)
        assert one.steps == choose_weight_steps(_weights(spread), 8, channels).steps
    one, other = plan(NAME, shifted), plan(NAME, channels)
    assert {n: w.steps for n, w in one.weights.items()} == {
        n: w.steps for n, w in other.weights.items()
    }
    assert one.requantize == other.requantize
    assert max(max(_exponents(w.steps)) for w in one.weights.values()) >= 6


@pytest.mark.parametrize("method", ["mse", "lp"])
@pytest.mark.parametrize("scales", ["free", "pot"])
def test_a_search_is_never_worse_than_the_rule(method, scales):
    weight, power = _weights(6, seed=3), 2.0 if method == "mse" else 2.4
    errors = []
    for calib_method in ("minmax", method):
        settings = dataclasses.replace(RULE, scales=scales, calib_method=calib_method)
        chosen = choose_shifted_steps(weight, 4, settings, NO_BIAS)
        steps = torch.tensor(chosen.steps, dtype=torch.float64).reshape(-1, 1, 1, 1)
        error = (weight - weight_codes(weight, chosen) * steps).abs().pow(power).flatten(1).sum(1)
        errors.append(float((error / weight.double().abs().pow(power).flatten(1).sum(1)).mean()))
    assert errors[1] < errors[0]


def test_a_bias_holds_its_channel_back():
    weight = _weights(0)
    weight[1:] *= 2.0**-10
    bias = torch.zeros(64, dtype=torch.float64)
    bias[5] = 2000.0
    chosen = choose_shifted_steps(weight, 8, RULE, dataclasses.replace(NO_BIAS, bias=bias))
    free = choose_shifted_steps(weight, 8, RULE, NO_BIAS)
    assert "1 of 64 channels held back, since their bias or right shift" in chosen.reason
    assert "held back" not in free.reason
    units = 2000.0 / (NO_BIAS.source * chosen.steps[5])
    assert 2**29 < units <= 2**30
    assert [a == b for a, b in zip(chosen.steps, free.steps, strict=True)].count(False) == 1


def test_the_shift_field_holds_channels_back():
    weight = _weights(0)
    weight[1:] *= 2.0**-12
    coarse = dataclasses.replace(NO_BIAS, source=2.0**-26, output=2.0**4)
    chosen = choose_shifted_steps(weight, 8, dataclasses.replace(RULE, scales="pot"), coarse)
    assert "of 64 channels held back, since their bias or right shift would not" in chosen.reason
    unit = Fraction(coarse.source) / Fraction(coarse.output)
    assert max(derive_scale([unit * Fraction(step) for step in chosen.steps]).shift) == 47


def test_dead_channels_round_to_zero_and_keep_the_coarsest_step():
    weight = _weights(0)
    weight[3] *= 2.0**-20
    weight[7] = 0
    bias = torch.full((64,), 100.0, dtype=torch.float64)
    chosen = choose_shifted_steps(weight, 8, RULE, dataclasses.replace(NO_BIAS, bias=bias))
    assert "1 of 64 channels are dead and round to 0" in chosen.reason
    assert chosen.steps[3] == chosen.steps[7] == max(chosen.steps)
    assert not weight_codes(weight, chosen)[[3, 7]].any()
    nothing = choose_shifted_steps(0 * weight, 8, RULE, NO_BIAS)
    assert nothing.reason == "wess: all weights are 0"
    assert len(set(nothing.steps)) == 1


def _program(settings):
    quantized = make_plan(float_model(NAME), calibration(NAME), settings)
    integer = lower_to_integer(import_torch(annotate(float_model(NAME), quantized)))
    (program,) = place(integer, read_layers(integer), load_spec("e256")).programs
    return quantized, program


def _multipliers(program, span):
    """Those in the parameter records of a layer: uint16 at byte 4 of each 12."""
    layer = span.of(program.instructions)
    loads = [i for i in layer if isinstance(i, isa.Load) and i.mem == 3]
    found = set()
    for load in loads:
        data = program.constants[load.dram_off : load.dram_off + load.x_bytes * load.y]
        found |= {int.from_bytes(data[n + 4 : n + 6], "little") for n in range(0, len(data), 12)}
    return found


@pytest.mark.parametrize("scales", ["free", "pot"])
def test_one_multiplier_per_layer_on_the_plan_and_on_the_npu(scales):
    quantized, program = _program(Settings(scales=scales, method=("wess",)))
    layers = find_regions(float_model(NAME)).layers
    spread = 0
    for name, integers in quantized.requantize.items():
        if layers[name].kind == "pool":
            continue
        assert len(set(integers.multiplier)) == 1
        spread = max(spread, max(integers.shift) - min(integers.shift))
        (span,) = (span for span in program.layers if span.name == name)
        layer = span.of(program.instructions)
        requantizes = [i for i in layer if isinstance(i, isa.Requantize)]
        assert requantizes
        assert {i.multiply for i in requantizes} == {int(scales == "free")}
        (multiplier,) = _multipliers(program, span)
        ratio, rest = divmod(integers.multiplier[0], multiplier)
        assert (rest, ratio.bit_count()) == (0, 1)  # lowering takes powers of two out
        assert (multiplier == 1) == (scales == "pot")
    assert spread >= 6


def test_it_costs_no_cycle_and_no_byte():
    (_, plain), (_, shifted) = (
        _program(Settings(method=(method,), bias_correction=False)) for method in ("rtn", "wess")
    )
    assert len(plain.to_bytes()) == len(shifted.to_bytes())

    def skeleton(i):
        return dataclasses.replace(i, **{n: 0 for n in ("shift", "frac") if hasattr(i, n)})

    assert [skeleton(i) for i in plain.instructions] == [skeleton(i) for i in shifted.instructions]
    assert plain.constants != shifted.constants


def test_weights_are_nearer_than_with_one_step():
    """What the rescaled network is for: one step per layer loses whole channels."""
    errors = {}
    for method in ("rtn", "wess"):
        chosen = plan(NAME, Settings(scales="free", method=(method,))).weights["conv2d_2"]
        weight = float_model(NAME).weight_of(float_model(NAME).nodes["conv2d_2"])
        steps = torch.tensor(chosen.steps, dtype=torch.float64).reshape(-1, 1, 1, 1)
        error = (weight - weight_codes(weight, chosen) * steps).flatten(1).norm(dim=1)
        errors[method] = float((error / weight.flatten(1).norm(dim=1)).max())
    assert errors["wess"] < 0.02 < 0.1 < errors["rtn"]


def test_biases_fit_after_the_shifts():
    quantized = plan(NAME, Settings(scales="free", method=("wess",)))
    for name, layer in find_regions(float_model(NAME)).layers.items():
        if layer.kind in ("conv", "linear"):
            source = quantized.values[layer.inputs[0]].step
            bias = rounded_bias(
                float_model(NAME), name, source, quantized.weights[name].steps,
                quantized.biases.get(name),
            )  # fmt: skip
            assert int(bias.abs().max()) < 2**31 - 1


def test_the_plan_file_keeps_shifts_and_reasons(tmp_path):
    quantized = plan(NAME, Settings(scales="free", method=("wess",)))
    write_plan(quantized, tmp_path / "plan.json")
    again = read_plan(tmp_path / "plan.json", float_model(NAME))
    assert again.weights == quantized.weights
    assert again.requantize == quantized.requantize
    assert again.weights["conv2d_2"].reason.startswith("wess, mse: one step, shifted by up to 6")
