"""Modules of operators, as networks: all answers equal, and near to what torch computes."""

from __future__ import annotations

import numpy as np
import torch
from placed_modules import run_placed
from torch import nn

from relay_passes.frontend.import_torch import import_torch
from relay_passes.pipeline import lower_to_integer
from relay_passes.place import place
from relay_passes.read_layers import read_layers
from targets.npu.machine.spec import load_spec
from tvmq.calibrate.calibrate import calibrate
from tvmq.capture.capture import capture_program
from tvmq.plan.annotate import annotate
from tvmq.plan.planner import make_plan
from tvmq.run.reference import run_reference

IMAGES = 32
LEAST_DB = 20


def export(module: nn.Module, images: torch.Tensor) -> torch.export.ExportedProgram:
    batch = {0: torch.export.Dim("batch")}
    with torch.no_grad():
        module(images)  # layers that find their own sizes
        return torch.export.export(module.eval(), (images[:3],), dynamic_shapes=(batch,))


def decibels(want: np.ndarray, got: np.ndarray) -> float:
    noise, signal = ((want - got) ** 2).sum(), (want**2).sum()
    return float("inf") if noise == 0 else 10 * np.log10(signal / noise)


def check(
    module: nn.Module,
    shape: tuple[int, ...],
    *,
    devices: bool,
    least_db: float = LEAST_DB,
    whole: bool = False,
) -> None:
    """All answers are equal, and near to what torch computes in float; ``whole`` on the NPU."""
    torch.manual_seed(0)
    images = torch.randn(IMAGES, *shape)
    program = export(module, images)
    model = capture_program(program)
    plan = make_plan(model, calibrate(model, [images], samples=IMAGES))
    annotated = annotate(model, plan)
    integer = lower_to_integer(import_torch(annotated))
    network = read_layers(integer)
    assert not [layer.refusal.what for layer in network.layers if layer.kind == "opaque"]
    (want,) = run_reference(integer, {model.inputs[0].name: images.numpy()})
    (fake,) = annotated(images.double())
    np.testing.assert_array_equal(fake.float().numpy(), want)
    if devices:
        spec = load_spec("e256")
        for machine in (None, spec):
            placed = place(integer, network, machine)
            if machine is not None and whole:
                assert not [p for p in placed.placements if p.device != "npu"]
            (got,) = run_placed(placed, machine, images.numpy())
            np.testing.assert_array_equal(got, want)
    with torch.no_grad():
        real = module(images).double().numpy()
    assert decibels(real, want) >= least_db
