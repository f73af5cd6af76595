"""Reconstruct a network: unit after unit in the order of the network, each gated, into a plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from targets.code_range import code_range
from targets.errors import InputError
from tvmq.calibrate.calibrate import Calibration, calibrate_again
from tvmq.calibrate.observers import choose_codes
from tvmq.float_model import FloatModel
from tvmq.plan.complete_plan import complete_plan
from tvmq.plan.plan import BiasPlan, Plan, ProductPlan
from tvmq.plan.product_groups import product_groups
from tvmq.plan.scale_tensors import Family, find_families, scale_further
from tvmq.reconstruct.inner_scales import InnerScales, inner_families
from tvmq.reconstruct.learn_device import learn_device
from tvmq.reconstruct.losses import LOSSES
from tvmq.reconstruct.methods import Method, combined
from tvmq.reconstruct.network_work import NetworkPass, NetworkWork, most_to_compare
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

SCALED = "scaled tensors"
"""The candidate with the best free steps of what is inside a unit, made powers of two."""

Report = Callable[[int, int, str], None]
"""Called with the iterations done, those in all, and a few words."""

LARGEST_VALUE = 2.0**30
"""Of what is learned from; a network that was trained has none above some thousand."""


@dataclass(frozen=True)
class Reconstruction:
    """A network with learned weights and steps.

    Attributes:
        model: the float network with the tensors inside units scaled; as it was if none were.
        calibration: of it.
        plan: of it, complete.
        units: what was done for each unit, in order.
        network: what each refinement of the whole network did, in order.
        costs: of power-of-two steps, by layer; empty with free ones.
    """

    model: FloatModel
    calibration: Calibration
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
    device: str = "cpu",
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
        device: to train units on, as ``--learn-device`` takes it.
        checkpoints: folder in which finished units are kept, and found again.
        report: told about progress.
        note: told what there was in ``checkpoints``, if anything.

    Raises:
        InputError: too few images, or too large ones, values too large to learn from, no room for
            what units read, or no such device.
        ArithmeticRangeError: learned steps lead to integers that do not fit.
    """
    method = method or combined(start.settings.method)
    _check_values(calibration)
    if calibration.samples < 2:
        raise InputError(
            f"method {', '.join(start.settings.method)} has {calibration.samples} calibration "
            "images, but learns from some and decides by others. Give two or more; 1,024 are good."
        )
    job = _Job(model, calibration, start, method, prepare, seed, learn_device(device), report)
    try:
        job.check_held_out()
        files = None if checkpoints is None else job.checkpoints(checkpoints)
        if files is not None and note is not None and (found := files.found()):
            note(f"note: {found}")
        for index in range(len(job.units)):
            job.run(index, files)
    finally:
        job.cache.close()
    network = job.refine_network(files)
    model = job.scaled_model()
    if model.fingerprint != start.fingerprint:
        calibration = calibrate_again(model, calibration)
    plan = job.plan(model)
    costs = step_costs(model, calibration, plan)
    return Reconstruction(model, calibration, plan, tuple(job.results), network, costs)


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
        device: torch.device,
        report: Report | None,
    ) -> None:
        self.model, self.calibration, self.start = model, calibration, start
        self.method, self.prepare = method, prepare
        self.seed, self.device, self.report = seed, device, report
        self.units = find_units(model, whole_blocks=method.units != "layers")
        self.steps = network_steps(model, start)
        scaled = "waps" in start.settings.method
        self.groups = product_groups(model, start.weights, start.settings) if scaled else {}
        self.cache = UnitCache(model, self.units, calibration, self.steps)
        self.inner: dict[int, dict[str, Family]] = {}
        if model.scaling is not None and not model.scaling.left_out and start.settings.pot:
            families = find_families(model.graph_module)
            for index, family, value in inner_families(families, self.units, self.cache.regions):
                self.inner.setdefault(index, {})[value] = family
        self.held_out = max(1, self.cache.count // HELD_OUT)
        self.images = self.cache.count - self.held_out
        self.finished: list[QuantizedUnit] = []
        self.states: list[UnitState] = []
        self.results: list[UnitResult] = []
        self.refined: list[NetworkPass] = []
        self.iterations = sum(part.iterations(start.settings) for part in method.refinements)

    def check_held_out(self) -> None:
        """Raise where a refinement could accept nothing, before units are learned for hours."""
        compared = min(self.held_out, most_to_compare(self.model, self.units)) if self.units else 0
        for refinement in self.method.over_network:
            if self.units and compared < refinement.least_held_out:
                few = self.held_out < refinement.least_held_out
                advice = (
                    f"one of {HELD_OUT} calibration images is held out, so give "
                    f"{HELD_OUT * refinement.least_held_out} or more"
                    if few
                    else "what its units give to each other is too large for more, so leave it out"
                )
                raise InputError(
                    f"method {', '.join(self.start.settings.method)}: what is {refinement.name} is "
                    f"kept by {refinement.least_held_out} held-out images or more, and {compared} "
                    f"can be compared: {advice}."
                )

    def run(self, index: int, files: Checkpoints | None) -> None:
        """Reconstruct a unit, or find it among the files, and go on behind it."""
        unit = QuantizedUnit(self.model, self.start, self.units[index], self.steps, self.groups)
        exact = float_unit(self.model, self.units[index])
        self.cache.float_outputs(index, exact)
        if families := self.inner.get(index):
            InnerScales(self.model, unit, exact, families)
        if self.prepare is not None:
            self.prepare(unit)
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
        data = f"{self.cache.digest()} {self.device}"
        return Checkpoints(folder, self.start, self.method, self.seed, data)

    def refine_network(self, files: Checkpoints | None) -> tuple[NetworkPass, ...]:
        """Apply what the method has for all units together, once they are decided."""
        if not self.units:
            return ()
        for index, refinement in enumerate(self.method.over_network):
            found = None if files is None else files.load_network(index)
            if found is None:
                generator = torch.Generator()
                generator.manual_seed(self.seed * 1_000_003 + len(self.units) + index)
                work = NetworkWork(
                    *(self.model, self.calibration, self.finished, self.steps, self.images),
                    *(self.start.settings, generator, self.report, self.device),
                    saved=None if files is None else files.load_training(index),
                    save=None if files is None else partial(files.save_training, index),
                )
                result = refinement.refine(work)
                found = [state_of(unit) for unit in self.finished], result
                if files is not None:
                    files.save_network(index, *found)
            self.states, result = [*found[0]], found[1]
            for unit, state in zip(self.finished, self.states, strict=True):
                apply_state(unit, state)
            self.refined.append(result)
        return tuple(self.refined)

    def scaled_model(self) -> FloatModel:
        """The float network with its tensors as large as units have made them."""
        factors = {
            scale.family.makers[0]: scale.factor
            for unit in self.finished
            if unit.scales is not None
            for scale in unit.scales.scales.values()
        }
        if not factors:
            return self.model
        count = "1 tensor" if len(factors) == 1 else f"{len(factors)} tensors"
        return scale_further(self.model, factors, f"; {count} inside of units by learned steps")

    def plan(self, model: FloatModel) -> Plan:
        """The start with everything that was decided, complete; of the scaled network."""
        values, weights = dict(self.start.values), dict(self.start.weights)
        biases: dict[str, BiasPlan] = {}
        products: dict[str, ProductPlan | None] = {}
        together = "".join(
            f"; {done.name}: outputs {done.loss_before:.4g} -> {done.loss_after:.4g}"
            for done in self.refined
            if done.learned is not None and done.learned.accepted
        )
        for result, state, unit in zip(self.results, self.states, self.finished, strict=True):
            verdict = result.kept if result.accepted else "nearest, nothing else was better"
            nearest = result.candidates[0].loss
            numbers = f"held-out loss {nearest:.4g} -> {result.held_out_loss:.4g}{together}"
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
            model, self.start.settings, self.start.calibration, values, weights, biases
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
            *(unit, exact, self.cache, settings, loss, self.images, generator),
            self._told(index, 0),
            device=self.device,
        )
        work.correct_biases()
        kept, best = state_of(unit), Candidate(NEAREST, work.held_out_loss(), accepted=True)
        candidates, before = [best], 0
        if unit.scales is not None:
            unit.scales.start(self._free_steps(unit.scales.scales), settings)
            work.correct_biases()
            found = work.held_out_loss()
            candidates.append(Candidate(SCALED, found, accepted=found < best.loss))
            if candidates[-1].accepted:
                kept, best = state_of(unit), candidates[-1]
            else:
                apply_state(unit, kept)
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

    def _free_steps(self, values: Iterable[str]) -> dict[str, float]:
        """The best steps of values if they might be anything, where their codes stay the same."""
        settings, found = self.start.settings, {}
        free = settings.with_free_steps(settings.granularity)
        for name in values:
            value, seen = self.start.values[name], self.calibration.histograms[name]
            best = choose_codes(seen, value.bits, free, symmetric=value.zero_point == 0)
            if (best.zero_point, best.signed) == (value.zero_point, value.signed):
                found[name] = best.step
        return found

    def _told(self, index: int, before: int) -> Callable[[int, float], None]:
        def told(done: int, loss: float) -> None:
            words = f"unit {index + 1}/{len(self.units)}, loss {loss:.4g}"
            self._tell(self.iterations * index + before + done, words)

        return told

    def _tell(self, done: int, words: str) -> None:
        if self.report is not None:
            self.report(done, self.iterations * len(self.units), words)
