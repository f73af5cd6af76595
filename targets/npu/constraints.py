"""What the machine accepts: why a layer goes to the CPU, in words."""

from __future__ import annotations

from targets.layers import Layer
from targets.npu.kinds.kind import Rule
from targets.npu.kinds.table import KINDS, kind_of
from targets.npu.machine.spec import NpuSpec
from targets.npu.schedule.job import Job


def refusal(layer: Layer, spec: NpuSpec) -> str | None:
    """Why the NPU does not take a layer: the rule and the fact; None where it does."""
    if type(layer) not in KINDS:
        return f"{Rule.CONSTANTS.value} Here: {layer.kind}."
    kind = kind_of(layer)
    for rule, fact in kind.broken_rules(layer, spec):
        return f"{rule.value} Here: {fact}."
    job = Job.alone(layer, spec)  # packed tensors take less
    if any(True for _ in kind.choices(job)):
        return None
    return f"{Rule.CAPACITY.value} Here: {kind.too_large(job)}."
