"""The kinds of layers that the NPU takes, by the type that describes a layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from targets.errors import CapacityError
from targets.layers import (
    Add,
    Constant,
    Conv2d,
    Factor,
    Layer,
    Lut,
    MaxPool2d,
    Move,
    Norm,
    Pairing,
    Softmax,
)
from targets.npu.emit.loop_tree import Lowered, read_function
from targets.npu.kinds.addition import Addition
from targets.npu.kinds.constant import ConstantTensor
from targets.npu.kinds.convolution import Convolution
from targets.npu.kinds.cost import NOTHING, Cost
from targets.npu.kinds.element_product import ElementProduct
from targets.npu.kinds.kind import Kind
from targets.npu.kinds.lookup import Lookup
from targets.npu.kinds.move import Moving
from targets.npu.kinds.norm import NormOfRows
from targets.npu.kinds.pool import MaxPool
from targets.npu.kinds.softmax import SoftmaxOfRows
from targets.npu.schedule.job import Job
from targets.npu.schedule.scheduled import Scheduled
from targets.npu.target import lower

KINDS: dict[type[Layer], Kind[Any, Any]] = {
    Conv2d: Convolution(),
    Add: Addition(),
    MaxPool2d: MaxPool(),
    Lut: Lookup(),
    Softmax: SoftmaxOfRows(),
    Norm: NormOfRows(),
    Move: Moving(),
    Constant: ConstantTensor(),
}


BY_ELEMENT = ElementProduct()
"""Of products that a layer describes as convolutions, and that the vector unit computes."""


def kind_of(layer: Layer) -> Kind[Any, Any]:
    """What knows about the layer."""
    right = layer.right if isinstance(layer, Conv2d) else None
    if isinstance(right, Factor) and right.pairing is Pairing.ELEMENTS:
        return BY_ELEMENT
    return KINDS[type(layer)]


@dataclass(frozen=True)
class Planned:
    """A layer and how it will be done.

    Attributes:
        job: the layer, where the machine finds it.
        choice: that its kind took; None where there is nothing to do.
        cost: estimated.
    """

    job: Job[Layer]
    choice: Any
    cost: Cost

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do: the output's bytes are there."""
        return self.choice is None

    @cached_property
    def scheduled(self) -> Scheduled:
        """The layer in tensorized TIR."""
        return kind_of(self.job.layer).schedule(self.job, self.choice)

    @cached_property
    def lowered(self) -> Lowered:
        """The same as loops that are walked with numbers."""
        return read_function(lower(self.scheduled.func))


def plan(job: Job[Layer]) -> Planned:
    """The job with its kind's choice.

    Raises:
        CapacityError: the layer doesn't fit.
    """
    kind = kind_of(job.layer)
    if kind.same_bytes(job.layer) is not None:
        return Planned(job, None, NOTHING)
    choice = kind.choose(job)
    return Planned(job, choice, kind.cost(job, choice))


def replan(planned: Planned, choice: Any) -> Planned:
    """The layer with a choice from elsewhere.

    Raises:
        CapacityError: it can't be made there; says why.
    """
    kind = kind_of(planned.job.layer)
    why_not = "there is nothing to do" if planned.idle else kind.misfit(planned.job, choice)
    if why_not:
        raise CapacityError(why_not)
    return Planned(planned.job, choice, kind.cost(planned.job, choice))
