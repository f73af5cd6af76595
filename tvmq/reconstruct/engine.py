"""Reconstruct a network: unit after unit in the order of the network, each gated, into a plan."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from targets.errors import InputError
from tvmq.calibrate.calibrate import Calibration
from tvmq.float_model import FloatModel
from tvmq.plan.complete_plan import complete_plan
from tvmq.plan.plan import BiasPlan, Plan
from tvmq.reconstruct.compensation import compensate_weights
from tvmq.reconstruct.methods import LEARNED, Method, loss_power
from tvmq.reconstruct.network_pass import NetworkPass, search_network
from tvmq.reconstruct.step_cost import StepCost, step_costs
from tvmq.reconstruct.step_search import search_unit, unit_loss
from tvmq.reconstruct.training import Training, train_unit
from tvmq.reconstruct.unit_bias import correct_unit_biases
from tvmq.reconstruct.unit_cache import UnitCache
from tvmq.reconstruct.unit_graph import QuantizedUnit, float_unit, network_steps
from tvmq.reconstruct.unit_state import (
    Checkpoints,
    UnitResult,
    UnitState,
    apply_state,
    state_of,
)
from tvmq.reconstruct.units import find_units

HELD_OUT = 8
"""One of so many calibration images is not trained on and decides what is accepted."""

COMPENSATION = 0.5
"""How far from the float weight to compensating codes learning starts."""

Report = Callable[[int, int, str], None]
"""Called with the iterations done, those in all, and a few words."""


@dataclass(frozen=True)
class Reconstruction:
    """A network with learned weights and steps.

    Attributes:
        plan: complete.
        units: what was done for each unit, in order.
        network: what the pass over the whole network did; None if there was none.
        costs: of power-of-two steps, by layer; empty with free ones.
    """

    plan: Plan
    units: tuple[UnitResult, ...]
    network: NetworkPass | None
    costs: tuple[StepCost, ...]

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "units": [asdict(unit) for unit in self.units],
            "network": None if self.network is None else asdict(self.network),
            "power_of_two_cost": [asdict(cost) for cost in self.costs],
        }


def reconstruct(
    model: FloatModel,
    calibration: Calibration,
    start: Plan,
    *,
    method: Method | None = None,
    prepare: Callable[[QuantizedUnit], None] | None = None,
    seed: int = 0,
    checkpoints: Path | None = None,
    report: Report | None = None,
    note: Callable[[str], None] | None = None,
) -> Reconstruction:
    """Learn what ``start.settings.method`` says.

    Args:
        model: the float network.
        calibration: with images.
        start: a complete plan that rounds to nearest; its bias corrections are made anew.
        method: something else than ``start.settings.method`` stands for, to compare with.
        prepare: changes each unit before anything is decided about it, to compare with.
        seed: of images and masks.
        checkpoints: folder in which finished units are kept, and found again.
        report: told about progress.
        note: told what there was in ``checkpoints``, if anything.

    Raises:
        InputError: too few images, or no room for what units read.
        ArithmeticRangeError: learned steps lead to integers that do not fit.
    """
    method = method or LEARNED[start.settings.learned_method]
    if calibration.samples < 2:
        raise InputError(
            f"method {', '.join(start.settings.method)} has {calibration.samples} calibration "
            "images, but learns from some and decides by others. Give two or more; 1,024 are good."
        )
    job = _Job(model, calibration, start, method, prepare, seed, report)
    try:
        files = None if checkpoints is None else job.checkpoints(checkpoints)
        if files is not None and note is not None and (found := files.found()):
            note(f"note: {found}")
        for index in range(len(job.units)):
            job.run(index, files)
    finally:
        job.cache.close()
    whole = method.exponents and start.settings.pot and job.units
    network = job.search_network() if whole else None
    plan = job.plan()
    costs = step_costs(model, calibration, plan)
    return Reconstruction(plan, tuple(job.results), network, costs)


class _Job:
    """One reconstruction: the network, its units and how far they are."""

    def __init__(
        self,
        model: FloatModel,
        calibration: Calibration,
        start: Plan,
        method: Method,
        prepare: Callable[[QuantizedUnit], None] | None,
        seed: int,
        report: Report | None,
    ) -> None:
        self.model, self.calibration, self.start = model, calibration, start
        self.method, self.prepare = method, prepare
        self.seed, self.report = seed, report
        self.units = find_units(model, whole_blocks=self.method.whole_blocks)
        self.steps = network_steps(model, start)
        self.cache = UnitCache(model, self.units, calibration, self.steps)
        self.held_out = max(1, self.cache.count // HELD_OUT)
        self.images = self.cache.count - self.held_out
        self.finished: list[QuantizedUnit] = []
        self.states: list[UnitState] = []
        self.results: list[UnitResult] = []
        training = Training(start.settings.iterations, start.settings.learn_batch)
        self.iterations = sum(training.iterations_of(phase) for phase in method.phases)

    def run(self, index: int, files: Checkpoints | None) -> None:
        """Reconstruct a unit, or find it among the files, and go on behind it."""
        unit = QuantizedUnit(self.model, self.start, self.units[index], self.steps)
        if self.prepare is not None:
            self.prepare(unit)
        exact = float_unit(self.model, self.units[index])
        self.cache.float_outputs(index, exact)
        found = None if files is None else files.load(index)
        if found is None:
            found = self._learn(index, unit, exact)
            if files is not None:
                files.save(index, *found)
        state, result = found
        apply_state(unit, state)
        self.cache.advance(index, unit)
        self.finished.append(unit)
        self.states.append(state)
        self.results.append(result)
        self._tell(self.iterations * (index + 1), f"unit {index + 1} done: {result.kept}")

    def checkpoints(self, folder: Path) -> Checkpoints:
        """The files of this job; asked for before its first unit."""
        return Checkpoints(folder, self.start, self.seed, self.cache.digest())

    def search_network(self) -> NetworkPass:
        """Move exponents of activations by what they do to the network's outputs."""
        return search_network(
            self.model, self.calibration, self.finished, self.steps, self.images, self.report
        )

    def plan(self) -> Plan:
        """The start with everything that was decided, complete."""
        values, weights = dict(self.start.values), dict(self.start.weights)
        biases: dict[str, BiasPlan] = {}
        for result, state in zip(self.results, self.states, strict=True):
            verdict = result.kept if result.accepted else "nearest, nothing else was better"
            numbers = f"held-out loss {result.nearest_loss:.4g} -> {result.held_out_loss:.4g}"
            for name, codes in state.codes.items():
                weights[name] = replace(
                    weights[name],
                    steps=tuple(state.weight_steps[name].tolist()),
                    codes=codes.numpy().tobytes(),
                    reason=f"{weights[name].reason}; {verdict} in {result.unit}: {numbers}",
                )
            for name, correction in state.corrections.items():
                used = tuple(correction.double().tolist()) if bool(correction.any()) else ()
                biases[name] = BiasPlan(used, f"{verdict} in {result.unit}: {numbers}")
        for name, value in values.items():
            step = self.steps[name].exact
            if step != value.step:
                reason = f"{value.reason}; learned, from {value.step:.6g}"
                values[name] = replace(value, step=step, reason=reason)
        return complete_plan(
            self.model, self.start.settings, self.start.calibration, values, weights, biases
        )

    def _learn(
        self, index: int, unit: QuantizedUnit, exact: torch.fx.GraphModule
    ) -> tuple[UnitState, UnitResult]:
        began = time.perf_counter()
        settings, method = self.start.settings, self.method
        power = loss_power(self.model, self.units[index], method, settings.kappa)
        held_out = slice(self.images, self.cache.count)
        candidates: dict[str, tuple[float, UnitState]] = {}

        def keep(name: str) -> None:
            loss = unit_loss(unit, self.cache, power, held_out)
            if name not in candidates or loss < candidates[name][0]:
                candidates[name] = loss, state_of(unit)

        def correct(name: str) -> None:
            if settings.bias_correction:
                correct_unit_biases(self.cache, unit, exact, self.images)
                keep(name)
                apply_state(unit, candidates[name][1])

        keep("nearest")
        correct("nearest")
        if method.compensated:
            if method.exponents:
                search_unit(unit, exact, self.cache, power, self.images, settings)
            else:
                compensate_weights(unit, self.cache, self.images, (0,))
            keep("compensated")
            correct("compensated")
            for weight in unit.weights.values():
                weight.start_from(weight.codes, COMPENSATION)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        training = Training(
            settings.iterations,
            settings.learn_batch,
            power=power,
            correct_biases=settings.bias_correction,
        )
        done = before = 0
        for phase in method.phases:
            if not phase.weights and not unit.own_steps(self.cache.regions.tied):
                continue  # sums that leave the network have no step that could be learned
            told = self._told(index, before)
            done += train_unit(unit, self.cache, phase, training, self.images, generator, told)
            before += training.iterations_of(phase)
        keep("learned")
        kept = min(candidates, key=lambda name: candidates[name][0])
        result = UnitResult(
            unit.unit.name,
            unit.unit.layers,
            kept,
            candidates["nearest"][0],
            candidates["compensated"][0] if method.compensated else None,
            candidates["learned"][0],
            power,
            done,
            round(time.perf_counter() - began, 2),
        )
        return candidates[kept][1], result

    def _told(self, index: int, before: int) -> Callable[[int, float], None]:
        def told(done: int, loss: float) -> None:
            words = f"unit {index + 1}/{len(self.units)}, loss {loss:.4g}"
            self._tell(self.iterations * index + before + done, words)

        return told

    def _tell(self, done: int, words: str) -> None:
        if self.report is not None:
            self.report(done, self.iterations * len(self.units), words)
