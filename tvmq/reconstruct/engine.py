"""Reconstruct a network: unit after unit in the order of the network, each gated, into a plan."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from targets.code_range import code_range
from targets.errors import InputError
from tvmq.calibrate.calibrate import Calibration
from tvmq.float_model import FloatModel
from tvmq.plan.complete_plan import complete_plan
from tvmq.plan.plan import BiasPlan, Plan, ProductPlan
from tvmq.plan.product_groups import product_groups
from tvmq.reconstruct.losses import LOSSES
from tvmq.reconstruct.methods import Method, combined
from tvmq.reconstruct.network_pass import NetworkPass, NetworkWork
from tvmq.reconstruct.step_cost import StepCost, step_costs
from tvmq.reconstruct.unit_cache import UnitCache
from tvmq.reconstruct.unit_graph import QuantizedUnit, float_unit, network_steps
from tvmq.reconstruct.unit_state import (
    NEAREST,
    Candidate,
    Checkpoints,
    UnitResult,
    UnitState,
    apply_state,
    state_of,
)
from tvmq.reconstruct.unit_work import UnitWork
from tvmq.reconstruct.units import find_units

HELD_OUT = 8
"""One of so many calibration images is not trained on and decides what is accepted."""

Report = Callable[[int, int, str], None]
"""Called with the iterations done, those in all, and a few words."""

LARGEST_VALUE = 2.0**30
"""Of what is learned from; a network that was trained has none above some thousand."""


@dataclass(frozen=True)
class Reconstruction:
    """A network with learned weights and steps.

    Attributes:
        plan: complete.
        units: what was done for each unit, in order.
        network: what each refinement of the whole network did, in order.
        costs: of power-of-two steps, by layer; empty with free ones.
    """

    plan: Plan
    units: tuple[UnitResult, ...]
    network: tuple[NetworkPass, ...]
    costs: tuple[StepCost, ...]

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "units": [asdict(unit) for unit in self.units],
            "network": [asdict(refined) for refined in self.network],
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
        InputError: too few images, values too large to learn from, or no room for what units read.
        ArithmeticRangeError: learned steps lead to integers that do not fit.
    """
    method = method or combined(start.settings.method)
    _check_values(calibration)
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
    network = job.refine_network()
    plan = job.plan()
    costs = step_costs(model, calibration, plan)
    return Reconstruction(plan, tuple(job.results), network, costs)


def _check_values(calibration: Calibration) -> None:
    """Raise where float32 would not hold a gradient, or its square in the optimizer."""
    for name, histogram in calibration.histograms.items():
        reach = max(-histogram.low, histogram.high)
        if reach > LARGEST_VALUE:
            raise InputError(
                f"value {name} reaches {reach:.3g} in {calibration.source}; methods that learn "
                f"take values up to {LARGEST_VALUE:.3g}. Remove such images, mend the "
                "preprocessing, or choose --method rtn."
            )


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
        self.units = find_units(model, whole_blocks=method.units != "layers")
        self.steps = network_steps(model, start)
        scaled = "waps" in start.settings.method
        self.groups = product_groups(model, start.weights, start.settings) if scaled else {}
        self.cache = UnitCache(model, self.units, calibration, self.steps)
        self.held_out = max(1, self.cache.count // HELD_OUT)
        self.images = self.cache.count - self.held_out
        self.finished: list[QuantizedUnit] = []
        self.states: list[UnitState] = []
        self.results: list[UnitResult] = []
        self.iterations = sum(part.iterations(start.settings) for part in method.refinements)

    def run(self, index: int, files: Checkpoints | None) -> None:
        """Reconstruct a unit, or find it among the files, and go on behind it."""
        unit = QuantizedUnit(self.model, self.start, self.units[index], self.steps, self.groups)
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
        return Checkpoints(folder, self.start, self.method, self.seed, self.cache.digest())

    def refine_network(self) -> tuple[NetworkPass, ...]:
        """Apply what the method has for all units together, once they are decided."""
        if not self.units:
            return ()
        work = NetworkWork(
            self.model, self.calibration, self.finished, self.steps, self.images, self.report
        )
        return tuple(refinement.refine(work) for refinement in self.method.over_network)

    def plan(self) -> Plan:
        """The start with everything that was decided, complete."""
        values, weights = dict(self.start.values), dict(self.start.weights)
        biases: dict[str, BiasPlan] = {}
        products: dict[str, ProductPlan | None] = {}
        for result, state, unit in zip(self.results, self.states, self.finished, strict=True):
            verdict = result.kept if result.accepted else "nearest, nothing else was better"
            nearest = result.candidates[0].loss
            numbers = f"held-out loss {nearest:.4g} -> {result.held_out_loss:.4g}"
            for name, scale in unit.products.items():
                products[name] = scale.plan(f"{verdict} in {result.unit}: {numbers}")
            for name in result.layers:
                weight, correction = state[f"{name}_weight"], state[f"{name}_bias"]["correction"]
                weights[name] = replace(
                    weights[name],
                    steps=tuple(weight["steps"].tolist()),
                    codes=weight["codes"].numpy().tobytes(),
                    reason=f"{weights[name].reason}; {verdict} in {result.unit}: {numbers}",
                    products=products.get(name),
                )
                used = tuple(correction.double().tolist()) if bool(correction.any()) else ()
                biases[name] = BiasPlan(used, f"{verdict} in {result.unit}: {numbers}")
        for name, value in values.items():
            step, reason = self.steps[name], value.reason
            if step.exact != value.step:
                reason = f"{reason}; learned, from {value.step:.6g}"
            rounding = value.rounding
            if step.borders is not None:
                rounding = step.borders.rounding(code_range(value.bits, value.signed)[0])
            values[name] = replace(value, step=step.exact, reason=reason, rounding=rounding)
        return complete_plan(
            self.model, self.start.settings, self.start.calibration, values, weights, biases
        )

    def _learn(
        self, index: int, unit: QuantizedUnit, exact: torch.fx.GraphModule
    ) -> tuple[UnitState, UnitResult]:
        """Apply the refinements in order; keep the state with the smallest held-out loss.

        Each goes on from what the last one proposed, kept or not. Nothing here draws at random but
        refinements, from the one generator of the unit.
        """
        began = time.perf_counter()
        settings, method = self.start.settings, self.method
        loss = LOSSES[method.loss or "mse"](self.model, self.units[index], settings)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        work = UnitWork(
            unit, exact, self.cache, settings, loss, self.images, generator, self._told(index, 0)
        )
        work.correct_biases()
        kept, best = state_of(unit), Candidate(NEAREST, work.held_out_loss(), accepted=True)
        candidates, before = [best], 0
        for refinement in method.refinements:
            work.report = self._told(index, before)
            refinement.propose(work)
            found = work.held_out_loss()
            candidates.append(Candidate(refinement.name, found, accepted=found < best.loss))
            if candidates[-1].accepted:
                kept, best = state_of(unit), candidates[-1]
            before += refinement.iterations(settings)
        result = UnitResult(
            unit.unit.name,
            unit.unit.layers,
            tuple(candidates),
            best.name,
            str(loss),
            work.iterations,
            round(time.perf_counter() - began, 2),
        )
        return kept, result

    def _told(self, index: int, before: int) -> Callable[[int, float], None]:
        def told(done: int, loss: float) -> None:
            words = f"unit {index + 1}/{len(self.units)}, loss {loss:.4g}"
            self._tell(self.iterations * index + before + done, words)

        return told

    def _tell(self, done: int, words: str) -> None:
        if self.report is not None:
            self.report(done, self.iterations * len(self.units), words)
