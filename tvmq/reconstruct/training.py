"""The training loop of one unit, the same for all methods."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tvmq.reconstruct.learn_device import trained_on
from tvmq.reconstruct.learned_steps import DropMasks
from tvmq.reconstruct.losses import MSE, Loss
from tvmq.reconstruct.refinements.learned import Phase
from tvmq.reconstruct.soft_rounding import annealed_beta
from tvmq.reconstruct.unit_cache import UnitCache
from tvmq.reconstruct.unit_graph import QuantizedUnit

WARM_UP = 0.2
CHECK_EVERY = 100
CPU = torch.device("cpu")

Report = Callable[[int, float], None]
"""Called with the iterations done and the current loss."""


@dataclass(frozen=True)
class Training:
    """Numbers of the loop.

    Attributes:
        iterations: of the optimizer.
        batch: images per iteration.
        loss: of the unit.
        weight_rate: Adam's learning rate of the rounding decisions.
        bias_rate: of what is added to biases.
        step_rate: of log2 of activation steps; decays to 0 as a cosine.
        border_rate: of the coefficients of borders; likewise.
        regularization: weight of the rounding regularizer.
        correct_biases: whether biases may change.
        device: on which the loop runs; the unit comes from the CPU and goes back there.
    """

    iterations: int
    batch: int
    loss: Loss = MSE
    weight_rate: float = 1e-2
    bias_rate: float = 1e-3
    step_rate: float = 1e-3
    border_rate: float = 3e-3
    regularization: float = 0.01
    correct_biases: bool = True
    device: torch.device = CPU


def train_unit(
    unit: QuantizedUnit,
    cache: UnitCache,
    phase: Phase,
    training: Training,
    images: int,
    generator: torch.Generator,
    report: Report | None = None,
) -> int:
    """Learn what a phase says and harden it.

    Args:
        unit: changed in place.
        cache: with the unit's inputs in both streams and its outputs in the float one.
        phase: what is learned.
        training: how.
        images: the first of the cache are trained on.
        generator: of images and masks.
        report: told now and then.

    Returns:
        The iterations that were done: fewer than asked for once every decision has been made.
    """
    with trained_on(unit.graph_module, training.device):
        done = _loop(unit, cache, phase, training, images, generator, report)
    _harden(unit, phase)
    return done


def _loop(
    unit: QuantizedUnit,
    cache: UnitCache,
    phase: Phase,
    training: Training,
    images: int,
    generator: torch.Generator,
    report: Report | None,
) -> int:
    iterations, device = phase.iterations(training.iterations), training.device
    masks = DropMasks(phase.drop, generator, device=device) if 0 < phase.drop < 1 else None
    optimizer, schedule = _prepare(unit, cache, phase, training, masks, iterations)
    names, outputs = unit.unit.inputs, unit.unit.outputs
    for i in range(iterations):
        which = torch.randint(images, (training.batch,), generator=generator)
        inputs = [mixed_inputs(cache, name, which, masks, device) for name in names]
        loss = torch.zeros((), device=device)
        for name, output in zip(outputs, unit(*inputs), strict=True):
            loss = loss + training.loss(output - cache.exact.rows(name, which).to(device))
        found = loss.detach()
        beta = annealed_beta(i / iterations, WARM_UP) if phase.weights else None
        if beta is not None:
            undecided = torch.stack([w.regularizer(beta) for w in unit.weights.values()]).sum()
            loss = loss + training.regularization * undecided
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if (i + 1) % CHECK_EVERY == 0 or i + 1 == iterations:
            if report is not None:
                report(i + 1, float(found))
            may_end = beta is not None and not phase.steps and i + 1 < iterations
            if may_end and float(undecided.detach()) == 0.0:
                break  # every decision is at its end, where its gradient is zero
    return i + 1


def _prepare(
    unit: QuantizedUnit,
    cache: UnitCache,
    phase: Phase,
    training: Training,
    masks: DropMasks | None,
    iterations: int,
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Switch on what is learned, and its optimizer."""
    own = unit.own_steps(cache.steps) if phase.steps else []
    scales = unit.scales if phase.steps else None
    drifts = [] if scales is None else scales.learn()
    for step in unit.steps.values():
        step.drop, step.off = masks, phase.drop == 1.0
    own = [step for step in own if step.drift is None]
    for step in own:
        step.learn()
    borders = [step.borders for step in unit.steps.values() if step.borders is not None]
    curves = [] if phase.borders is None else [b.learn(phase.borders) for b in borders]
    thetas = [*(step.theta for step in own), *drifts]
    groups = [
        {"params": thetas, "lr": training.step_rate, "decays": True},
        {"params": curves, "lr": training.border_rate, "decays": True},
    ]
    for weight in unit.weights.values():
        weight.soft = phase.weights
    if phase.weights:
        alphas = [weight.alpha for weight in unit.weights.values()]
        groups.append({"params": alphas, "lr": training.weight_rate, "decays": False})
    if training.correct_biases and (phase.weights or curves):
        corrections = [bias.correction.requires_grad_(True) for bias in unit.biases.values()]
        group = {"params": corrections, "lr": training.bias_rate, "decays": bool(curves)}
        groups.append(group)
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.Adam(groups, fused=training.device.type in ("cpu", "cuda"))
    decays = [
        (lambda i: (1 + math.cos(math.pi * i / iterations)) / 2)
        if group["decays"]
        else (lambda i: 1.0)
        for group in groups
    ]
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, decays)


def mixed_inputs(
    cache: UnitCache,
    name: str,
    which: torch.Tensor,
    masks: DropMasks | None,
    device: torch.device = CPU,
) -> torch.Tensor:
    """A unit's input: quantized, with some elements from the float network."""
    quantized = cache.quantized.rows(name, which).to(device)
    if masks is None:
        return quantized
    return quantized.lerp_(cache.exact.rows(name, which).to(device), masks.take(quantized))


def _harden(unit: QuantizedUnit, phase: Phase) -> None:
    for step in unit.steps.values():
        step.drop, step.off = None, False
        step.harden()
        if step.borders is not None:
            step.borders.harden()
    if phase.weights:
        for weight in unit.weights.values():
            weight.freeze(weight.hard_codes())
    for bias in unit.biases.values():
        bias.correction.requires_grad_(False)
    if phase.steps and unit.scales is not None:
        unit.scales.harden()
