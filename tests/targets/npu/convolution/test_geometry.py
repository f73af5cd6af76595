"""What a layer's tiling depends on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from npu_layers import by_borders, conv

from targets.npu.convolution.geometry import ConvGeometry
from targets.npu.convolution.tile_cost import estimate
from targets.npu.convolution.tiling import tilings
from targets.npu.kinds.convolution import Convolution
from targets.npu.machine.spec import load_spec
from targets.npu.schedule.job import Job
from targets.npu.schedule.storage import NO_BORDER

SPEC = load_spec("e256")
PLAIN = {"shape": (28, 28, 64), "channels": 64}


def job_of(changes, spec=SPEC):
    return Job.alone(conv(**{**PLAIN, **changes}), spec)


def lying(tensor, **changes):
    """The plain layer with another place or width of its input or output."""
    job = job_of({})
    value = getattr(job.layer, tensor)
    return replace(job, tensors={**job.tensors, value.name: replace(job.stored(value), **changes)})


OTHERS = {
    "rows": job_of({"shape": (30, 28, 64)}),
    "channels in": job_of({"shape": (28, 28, 72)}),
    "channels out": job_of({"channels": 72}),
    "kernel": job_of({"kernel": (3, 1), "padding": (1, 0, 1, 0)}),
    "strides": job_of({"shape": (57, 57, 64), "strides": (2, 2)}),
    "padding": job_of({"padding": (2, 1, 0, 1)}),
    "strides of 4": job_of({"shape": (59, 59, 64), "strides": (4, 4)}),
    "dilation with these": job_of({"shape": (59, 59, 64), "strides": (4, 4), "dilation": (2, 2)}),
    "groups": job_of({"groups": 4}),
    "depthwise": job_of({"groups": 64}),
    "input bits": lying("input", bits=4),
    "weight bits": job_of({"weight_bits": 4}),
    "output bits": lying("output", bits=4),
    "sums": job_of({"out": "int32"}),
    "multipliers": job_of({"multiply": True}),
    "residual": job_of({"residual": "uint8"}),
    "borders": job_of({"out_bits": 4, "rounding": by_borders(64)}),
    "a row of borders": job_of({"out_bits": 4, "rounding": by_borders(1)}),
    "less of ACT": replace(job_of({}), act_bytes=20_000),
    "another machine": job_of({}, load_spec("m2048")),
    "input in ACT": lying("input", border=NO_BORDER),
    "output in ACT": lying("output", border=NO_BORDER),
}


def key(job):
    return ConvGeometry(job).key


@pytest.mark.parametrize("what", OTHERS)
def test_layers_that_differ_are_not_taken_for_each_other(what):
    assert key(OTHERS[what]) != key(job_of({}))


def test_all_kinds_of_differences_are_told_apart():
    assert len({key(job) for job in OTHERS.values()}) == len(OTHERS)


@pytest.mark.parametrize("changes", [{"seed": 1}, {"zero_point": 3}, {"fraction": 2}], ids=str)
def test_layers_that_differ_in_numbers_are_tiled_alike_at_the_same_costs(changes):
    one, other = (ConvGeometry(job_of(c)) for c in ({}, changes))
    assert one.key == other.key
    assert {t: estimate(one, t) for t in tilings(one)} == {
        t: estimate(other, t) for t in tilings(other)
    }


@pytest.mark.parametrize("what", OTHERS)
def test_a_choice_does_not_depend_on_those_before(what):
    kind = Convolution()
    for job in (job_of({}), *OTHERS.values()):
        kind.choose(job)
    assert kind.choose(OTHERS[what]) == Convolution().choose(OTHERS[what])


def test_requantizing_a_tile_of_a_group_takes_as_long_as_its_channels():
    """Not as long as all that the array has columns for."""
    layer = conv((7, 7, 128), 128, groups=32, multiply=True)
    geometry = ConvGeometry(Job.alone(layer, SPEC))
    assert SPEC.vu.mult_lanes == geometry.group_channels_out == 4
    assert geometry.requantize_cycles == 1
    ungrouped = ConvGeometry(Job.alone(replace(layer, groups=1), SPEC))
    assert ungrouped.requantize_cycles == SPEC.array.cols // 4
