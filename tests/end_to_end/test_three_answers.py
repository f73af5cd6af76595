"""The promise: what is evaluated is, bit for bit, what runs, on networks of every shape of trouble.

Four answers are compared exactly: the fake-quantized torch forward, the NumPy reference, the CPU
build, and the build whose layers run on the NPU's executor.
"""

import functools
import itertools

import numpy as np
import pytest
import torch
from models import ZOO, export
from placed_modules import run_placed

from relay_passes.frontend.import_torch import import_torch
from relay_passes.pipeline import lower_to_integer
from relay_passes.place import place
from relay_passes.read_layers import read_layers
from targets.npu.input_blocks import in_blocks
from targets.npu.machine.spec import load_spec
from tvmq.calibrate.calibrate import calibrate
from tvmq.capture.capture import capture_program
from tvmq.float_model import FloatModel
from tvmq.plan.annotate import annotate
from tvmq.plan.planner import make_plan
from tvmq.plan.round_reads import round_reads
from tvmq.run.reference import run_reference
from tvmq.settings import Settings

SETTINGS = {
    "pot-tensor": Settings(scales="pot", granularity="tensor"),
    "pot-channel": Settings(scales="pot", granularity="channel"),
    "free-tensor": Settings(scales="free", granularity="tensor"),
    "free-channel": Settings(scales="free", granularity="channel"),
    "wess-free": Settings(scales="free", method=("wess",)),
    "wess-pot": Settings(scales="pot", method=("wess",)),
    "w2a2-pot": Settings(weight_bits=2, activation_bits=2, first_last_bits=2),
    "w4a4-pot": Settings(weight_bits=4, activation_bits=4, scales="pot", granularity="channel"),
}
IMAGES = 7


@functools.cache
def captured(name: str):
    module, example = ZOO[name]()
    return capture_program(export((module, example))), tuple(example.shape[1:])


def cases() -> list[object]:
    """Every network with every setting; a few in the quick tests, the rest slow.

    Quick are each network with one setting, the settings in turn; packed codes with every kind of
    layer; and WESS where channels differ.
    """
    quick = set(zip(ZOO, itertools.cycle(SETTINGS), strict=False))
    packed = ("resnet_projection", "mobilenet_small", "densenet_small", "grouped", "silu_net")
    quick |= {(name, "w4a4-pot") for name in packed}
    quick |= {("mobilenet_rescaled", "wess-free"), ("mobilenet_rescaled", "wess-pot")}
    return [
        pytest.param(*case, marks=() if case in quick else pytest.mark.slow)
        for case in itertools.product(ZOO, SETTINGS)
    ]


@pytest.mark.parametrize(("name", "settings"), cases())
def test_all_answers_are_equal(name: str, settings: str) -> None:
    model, shape = captured(name)
    _same_answers(model, shape, SETTINGS[settings])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resnet_small", Settings(2, 2, "pot", "channel", residual_bits=8)),
        ("mobilenet_small", Settings(2, 2, "free", residual_bits=4)),
        ("resnet_projection", Settings(2, 2, residual_bits=8, residual_reads="whole")),
    ],
)
def test_all_answers_are_equal_with_residuals_of_more_bits(name: str, settings: Settings) -> None:
    model, shape = captured(name)
    _same_answers(round_reads(model, settings), shape, settings)


def _same_answers(model: FloatModel, shape: tuple[int, ...], settings: Settings) -> None:
    images = np.random.default_rng(0).normal(size=(IMAGES, *shape)).astype(np.float32)
    calibration = calibrate(model, [torch.from_numpy(images)], samples=IMAGES)
    program = annotate(model, make_plan(model, calibration, settings))
    integer = lower_to_integer(import_torch(program))
    network = read_layers(integer)

    want = run_reference(integer, {model.inputs[0].name: images})
    fake = program(torch.from_numpy(images).double())
    on_cpu = place(integer, network, None)
    spec = load_spec("e256")
    on_npu = place(integer, network, spec)

    assert [p.reason for p in on_npu.placements if p.device == "cpu"] == []
    assert all(p.device == "cpu" for p in on_cpu.placements)
    for answer in (
        run_placed(on_cpu, None, images),
        run_placed(on_npu, spec, images),
        [t.float().numpy() for t in fake],
    ):
        for got, expected in zip(answer, want, strict=True):
            np.testing.assert_array_equal(got, expected)


def test_another_machine_gives_the_same_integers() -> None:
    model, shape = captured("mobilenet_small")
    images = np.random.default_rng(1).normal(size=(IMAGES, *shape)).astype(np.float32)
    calibration = calibrate(model, [torch.from_numpy(images)], samples=IMAGES)
    integer = lower_to_integer(import_torch(annotate(model, make_plan(model, calibration))))
    network = read_layers(integer)
    specs = [load_spec(machine) for machine in ("e256", "m2048")]
    edge, mobile = (place(integer, network, spec) for spec in specs)
    assert edge.programs[0].to_bytes() != mobile.programs[0].to_bytes()
    ends = network.inputs, network.outputs  # the wider array reads blocks of pixels
    assert [bool(in_blocks(network.layers, *ends, spec).blocks) for spec in specs] == [False, True]
    answers = [run_placed(*one, images)[0] for one in ((edge, specs[0]), (mobile, specs[1]))]
    np.testing.assert_array_equal(*answers)
