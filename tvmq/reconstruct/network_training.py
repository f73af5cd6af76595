"""All units learned together, behind everything that was decided about each: by the outputs alone.

A unit is learned for its own output, and does not see what its errors do to the network's. So in
the end codes of weights, biases, and steps that may be any number follow the gradient of how far
the network's outputs are from the float ones, the float network being the teacher on images that
are mixed anew each time. What is rounded is rounded in training too: a number for each weight
starts at the code that there is and moves with the code's gradient (straight through the rounding).
Nothing has to be hardened, so the network that is trained is at each moment the one that is kept.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule
from torch.utils.checkpoint import checkpoint

from tvmq.reconstruct.learn_device import trained_on
from tvmq.reconstruct.mixed_images import mixed
from tvmq.reconstruct.network_work import (
    NetworkOutputs,
    NetworkPass,
    NetworkWork,
    TogetherFacts,
    distance,
    images_to_compare,
    is_logits,
    surely_smaller,
)
from tvmq.reconstruct.unit_cache import Stream
from tvmq.reconstruct.unit_graph import QuantizedUnit, float_unit
from tvmq.reconstruct.unit_state import apply_state, state_of
from tvmq.regions import shape_of

CODE_RATE = 5e-3
"""Adam's learning rate of weights, in codes."""

WITHIN = 2.0
"""What the relative squared errors of what units make weigh, beside the outputs' distance."""

BIAS_RATE = 1e-3
STEP_RATE = 1e-3
"""Of log2 of steps."""

SURE = 2.0
"""Standard errors, over held-out images, by which the outputs must have come closer."""

TOLD_EVERY = 10

SAVED_EVERY = 60.0
"""Seconds after which training is written down, to go on from there."""

MOST_BYTES = 2**30
"""Tensors that a training step keeps for its gradients; with more, each unit is run once again."""

KEPT = 3
"""Tensors of the size of a node's that are kept for gradients."""


def learn_together(work: NetworkWork, name: str, iterations: int) -> NetworkPass:
    """Learn all units together, in place; everything stays as it was if the outputs don't gain.

    Args:
        work: the network.
        name: of the refinement.
        iterations: of the optimizer, ``settings.learn_batch`` images each.
    """
    began = time.perf_counter() - (0.0 if work.saved is None else work.saved["seconds"])
    _, held_out = images_to_compare(work.model, work.calibration, work.units, work.images)
    before = NetworkOutputs(work.model, work.units, work.steps, held_out).losses()
    states = [state_of(unit) for unit in work.units]
    codes = [w.codes.clone() for unit in work.units for w in unit.weights.values()]
    with tempfile.TemporaryDirectory(prefix="tvmq-network-") as folder:
        images = Stream(Path(folder))
        _read_images(work, images)
        _start(work)
        teacher = [float_unit(work.model, unit.unit) for unit in work.units]
        with ExitStack() as stack:
            for module in (*teacher, *(unit.graph_module for unit in work.units)):
                stack.enter_context(trained_on(module, work.device))
            _loop(work, teacher, images, iterations, began)
        _harden(work)
        images.drop([*images.tensors])
    after = NetworkOutputs(work.model, work.units, work.steps, held_out).losses()
    learned = [w.codes for unit in work.units for w in unit.weights.values()]
    changed = sum(int((a != b).sum()) for a, b in zip(codes, learned, strict=True))
    accepted = surely_smaller(after, before, SURE)
    if not accepted:
        for unit, state in zip(work.units, states, strict=True):
            apply_state(unit, state)
    facts = TogetherFacts(
        *(accepted, float(after.mean()), iterations, changed, sum(c.numel() for c in codes)),
        round(time.perf_counter() - began, 2),
    )
    used = after if accepted else before
    return NetworkPass(name, float(before.mean()), float(used.mean()), learned=facts)


def _read_images(work: NetworkWork, images: Stream) -> None:
    first = 0
    for part in work.calibration.batches():
        for name, tensor in zip(_inputs(work), part, strict=True):
            images.put(name, first, work.calibration.samples, tensor)
        first += len(part[0])


def _inputs(work: NetworkWork) -> list[str]:
    graph = work.model.graph_module.graph
    return [node.name for node in graph.find_nodes(op="placeholder")]


def _loop(
    work: NetworkWork,
    teacher: Sequence[GraphModule],
    images: Stream,
    iterations: int,
    began: float,
) -> None:
    optimizer = torch.optim.Adam(_groups(work), fused=work.device.type in ("cpu", "cuda"))
    rates = [group["lr"] for group in optimizer.param_groups]
    names, again = _inputs(work), _kept_bytes(work) > MOST_BYTES
    saved = time.perf_counter()
    for i in range(_go_on(work, optimizer), iterations):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 + math.cos(math.pi * i / iterations)) / 2
        which = torch.randint(work.images, (work.settings.learn_batch,), generator=work.generator)
        rows = mixed([images.rows(name, which) for name in names], work.generator)
        exact, tensors = {}, {}
        for name, x in zip(names, rows, strict=True):
            step = work.steps[name]  # of a unit, too, where what that makes is tied to the input
            exact[name] = x.to(work.device)
            tensors[name] = step(x.to(step.theta.device)).to(work.device)
        for unit, float_one in zip(work.units, teacher, strict=True):
            with torch.no_grad():
                _pass(unit, float_one, exact)
            _pass(unit, partial(checkpoint, unit, use_reentrant=False) if again else unit, tensors)
        loss = _loss(work, tensors, exact)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if work.save is not None and (now := time.perf_counter()) >= saved + SAVED_EVERY:
            work.save(_where(work, optimizer, i + 1, now - began))
            saved = now
        if work.report is not None and ((i + 1) % TOLD_EVERY == 0 or i + 1 == iterations):
            words = f"all units together, loss {float(loss.detach()):.4g}"
            work.report(i + 1, iterations, words)


def _where(
    work: NetworkWork, optimizer: torch.optim.Optimizer, iterations: int, seconds: float
) -> dict[str, Any]:
    """What training goes on from, after so many iterations and seconds."""
    return {
        "iterations": iterations,
        "seconds": seconds,
        "numbers": [number.detach() for number in _learned(optimizer)],
        "optimizer": optimizer.state_dict(),
        "generator": work.generator.get_state(),
    }


def _go_on(work: NetworkWork, optimizer: torch.optim.Optimizer) -> int:
    """Be where training was interrupted; the iterations that were done."""
    if work.saved is None:
        return 0
    for number, held in zip(_learned(optimizer), work.saved["numbers"], strict=True):
        number.data.copy_(held)
    optimizer.load_state_dict(work.saved["optimizer"])
    work.generator.set_state(work.saved["generator"])
    return int(work.saved["iterations"])


def _learned(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [number for group in optimizer.param_groups for number in group["params"]]


def _pass(
    unit: QuantizedUnit,
    run: Callable[..., tuple[torch.Tensor, ...]],
    tensors: dict[str, torch.Tensor],
) -> None:
    """Add what a unit makes to the tensors between units."""
    made = run(*(tensors[name] for name in unit.unit.inputs))
    tensors |= dict(zip(unit.unit.outputs, made, strict=True))


def _loss(
    work: NetworkWork, tensors: Mapping[str, torch.Tensor], exact: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Distance of the outputs, and the squared error of what each unit makes, relative to its own.

    The latter keeps what the few images would not: without it the outputs come closer on these and
    fewer classes are right on others.
    """
    (end,) = work.model.graph_module.graph.find_nodes(op="output")
    outputs = {node.name for node in end.all_input_nodes}
    parts = []
    for name in dict.fromkeys(name for unit in work.units for name in unit.unit.outputs):
        found, wanted = tensors[name], exact[name]
        if name in outputs and is_logits(wanted):
            parts.append(distance(found, wanted).mean())
        else:
            error = (found - wanted).square().mean() / _size(wanted)
            parts.append(error if name in outputs else WITHIN * error)
    return torch.stack(parts).sum()


def _size(wanted: torch.Tensor) -> torch.Tensor:
    """What squared errors are relative to: the variance, where it isn't next to nothing."""
    least = 0.01 * wanted.square().mean() + 1e-12
    return torch.maximum(wanted.var(correction=0), least)


def _start(work: NetworkWork) -> None:
    """Let weights move, from where they are."""
    for unit in work.units:
        for name, weight in unit.weights.items():
            weight.move(unit.spread(name))
            if not work.settings.pot:
                weight.resize(alike="wess" in work.settings.method)


def _groups(work: NetworkWork) -> list[dict[str, Any]]:
    """What is learned, for the optimizer."""
    weights = [weight for unit in work.units for weight in unit.weights.values()]
    sizes = [weight.size for weight in weights if weight.size is not None]
    for unit in work.units:
        if unit.scales is not None:
            sizes += unit.scales.learn()
    if not work.settings.pot:
        inputs = {work.steps[name] for name in _inputs(work)}
        for step in dict.fromkeys(work.steps.values()):
            if step not in inputs:
                step.learn()
                sizes.append(step.theta)
    groups = [
        {"params": [weight.numbers for weight in weights], "lr": CODE_RATE},
        {"params": sizes, "lr": STEP_RATE},
    ]
    if work.settings.bias_correction:
        biases = [bias.correction for unit in work.units for bias in unit.biases.values()]
        groups.append({"params": [b.requires_grad_(True) for b in biases], "lr": BIAS_RATE})
    return [group for group in groups if group["params"]]


def _harden(work: NetworkWork) -> None:
    for step in dict.fromkeys(work.steps.values()):
        step.harden()
    for unit in work.units:
        for weight in unit.weights.values():
            weight.settle()
        for bias in unit.biases.values():
            bias.correction.requires_grad_(False)
        if unit.scales is not None:
            unit.scales.harden()


def _kept_bytes(work: NetworkWork) -> int:
    nodes = (work.model.nodes[name] for unit in work.units for name in unit.unit.nodes)
    elements = sum(math.prod(shape_of(node)[1:]) for node in nodes)
    return 4 * KEPT * elements * work.settings.learn_batch
