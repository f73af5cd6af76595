"""What the machine accepts: why a layer goes to the CPU, in words."""

from __future__ import annotations

from targets.layers import Layer
from targets.npu.kinds.kind import Rule
from targets.npu.kinds.table import KINDS, kind_of
from targets.npu.machine.spec import NpuSpec
from targets.npu.schedule.job import Job
from targets.refusal import Refusal


def refusal(layer: Layer, spec: NpuSpec) -> Refusal | None:
    """Why the NPU does not take a layer: the rule, the fact and advice; None where it does."""
    if type(layer) not in KINDS:
        return Refusal(Rule.ROWS.value, Rule.ROWS.advice, layer.kind)
    kind = kind_of(layer)
    for rule, fact in kind.broken_rules(layer, spec):
        return Refusal(rule.value, rule.advice, fact)
    job = Job.alone(layer, spec)  # packed tensors take less
    if any(True for _ in kind.choices(job)):
        return None
    return Refusal(Rule.CAPACITY.value, Rule.CAPACITY.advice, kind.too_large(job))
