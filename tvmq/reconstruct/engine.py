"""Reconstruct a network: unit after unit in the order of the network, each gated, into a plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from tvmq.bias_correction import correct_biases, run_with_stops
from tvmq.calibrate import Calibration
from tvmq.float_model import FloatModel
from tvmq.plan import BiasPlan, Plan, ValuePlan, WeightPlan
from tvmq.planner import complete_plan
from tvmq.reconstruct.methods import Method
from tvmq.reconstruct.training import Training, reconstruction_loss, train_unit
from tvmq.reconstruct.unit_cache import UnitCache
from tvmq.reconstruct.unit_graph import QuantizedUnit, float_unit, network_steps
from tvmq.reconstruct.units import Unit, find_units
from tvmq.regions import find_regions

HELD_OUT = 8
"""One of so many calibration images is not trained on and decides what is accepted."""

CORRECTION_IMAGES = 256
"""Images from which a unit's mean errors are taken."""

Report = Callable[[int, int, str], None]
"""Called with the iterations done, those in all, and a few words."""
