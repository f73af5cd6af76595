"""Captured and calibrated networks of the zoo, made once per test process."""

from __future__ import annotations

from functools import cache

import models
import torch

from tvmq.calibrate.calibrate import Calibration, calibrate
from tvmq.capture.capture import capture_program
from tvmq.float_model import FloatModel
from tvmq.plan.plan import Plan
from tvmq.plan.planner import make_plan
from tvmq.settings import Settings


@cache
def float_model(name: str) -> FloatModel:
    """A network of the zoo, captured."""
    return capture_program(models.export(models.ZOO[name]()))


@cache
def images(name: str, count: int = 32) -> torch.Tensor:
    """Seeded noise, float32[count, ...]."""
    shape = float_model(name).inputs[0].shape[1:]
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


@cache
def calibration(name: str) -> Calibration:
    """From 32 images in two batches."""
    return calibrate(float_model(name), list(images(name).split(16)))


@cache
def plan(name: str, settings: Settings) -> Plan:
    """With the calibration above."""
    return make_plan(float_model(name), calibration(name), settings)
