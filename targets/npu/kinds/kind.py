"""What the compiler asks about a layer, answered by one object per kind of layer.

refusal   the rules of the machine that the layer breaks
choices   the ways in which it can be cut; ``choose`` is the one that the compiler takes
cost      the estimated cycles of a choice, and what bounds it; no program is made for that
schedule  tensorized TIR of a choice
storage   which tensors can't be packed, and which may stay in ACT with which border

A job is a layer with its tensors as they lie and what is left of ACT (``schedule/job.py``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Generic, TypeVar

from targets.arithmetic import (
    INT32_MAX,
    MAX_FRACTION,
    MAX_MULTIPLIER,
    MAX_RESIDUAL_SHIFT,
    MAX_SHIFT,
    MAX_SHIFT_SPREAD,
)
from targets.errors import CapacityError
from targets.layers import Layer, Requantize, Value
from targets.npu.kinds.cost import Cost
from targets.npu.machine import isa
from targets.npu.machine.spec import NpuSpec
from targets.npu.schedule.job import Job
from targets.npu.schedule.scheduled import Scheduled
from targets.npu.schedule.storage import NO_BORDER, Border
from targets.rounding import FLOOR, HALF_UP, MAX_BORDER_BITS, RoundingMode
from targets.rows import LONGEST_ROW, ROOT_BITS
from targets.sum_bounds import SumBounds

L = TypeVar("L", bound=Layer)
C = TypeVar("C")

MOST_BORDERS = 2**MAX_BORDER_BITS - 1
"""Of a channel, each a byte behind its record."""


class Rule(Enum):
    """The manual's sentences; one of them, with the fact that broke it, is a layer's refusal.

    Attributes:
        advice: what to do so that the machine takes the layer.
    """

    advice: str

    def __new__(cls, sentence: str, advice: str) -> Rule:
        """A member, whose value is the sentence alone."""
        rule = object.__new__(cls)
        rule._value_ = sentence
        rule.advice = advice
        return rule

    BYTES = (
        "Tensors are int8 or uint8; only the output of a convolution or dense layer may be int32.",
        "Let no other layer read the sums of a last layer.",
    )
    WEIGHTS = (
        "The array multiplies by constants, or by a tensor of int8 codes whose zero point is 0; "
        "then the zero point of the tensor that it multiplies is 0, too.",
        "Plan zero points of 0 for the operands of matrix products, and a signed right one.",
    )
    PRECISION = (
        "The array multiplies 8-bit operands; codes at the edges of a program lie in bytes.",
        "Add 8 to array.precisions in the machine's description.",
    )
    SUMS = (
        "No sum, shifted left by the layer's fraction bits, exceeds 32 bits.",
        "Quantize the layer to fewer bits, or split its input channels.",
    )
    ROWS = (
        f"Softmax and layer norm are of rows of at most {LONGEST_ROW} codes, at most "
        f"{isa.largest(isa.Rows, 'm0')} to a pixel, with one multiplier and one shift; "
        f"exponentials and factors have 16 bits, the root of a variance {ROOT_BITS // 2}.",
        "Split the rows, or let the CPU compute them.",
    )
    SHIFTS = (
        f"Right shifts lie in [0, {MAX_SHIFT}], at most {MAX_SHIFT_SPREAD} apart between channels; "
        f"left shifts in [0, {MAX_RESIDUAL_SHIFT}], those of sums in [0, {MAX_FRACTION}].",
        "Plan steps per tensor, or equalize the channels of the layer and the one before it.",
    )
    MULTIPLIERS = (
        f"Multipliers lie in [1, {MAX_MULTIPLIER}].",
        "Plan power-of-two steps, which need none.",
    )
    ROUNDING = (
        "Convolutions, dense layers, products of matrices, softmax and layer norm round half up or "
        f"to the floor, the first three also by at most {MOST_BORDERS} borders; additions and "
        "products of elements round half up.",
        "Leave the value's rounding out of the plan, which is half up.",
    )
    ELEMENTS = (
        "Of a product element by element nothing but the product is rounded, by one multiplier and "
        "shift.",
        "Add to the product in a layer of its own.",
    )
    WINDOW = (
        f"A max pooling's window has at most {isa.largest(isa.Pool, 'kh')} rows and "
        f"{isa.largest(isa.Pool, 'kw')} columns.",
        "Pool twice, by smaller windows.",
    )
    CAPACITY = (
        "One row of output, with what it needs at a time, fits the machine's memories.",
        "Give the layer a smaller image, kernel or number of channels, or the machine a larger "
        "memory.",
    )


@dataclass(frozen=True)
class Padding:
    """What a reader wants around a tensor in ACT: pixels, and the code in them."""

    border: Border = NO_BORDER
    code: int = 0


class Kind(ABC, Generic[L, C]):
    """One kind of layer on the machine; ``C`` is what a choice is."""

    makes_near: ClassVar[bool] = False
    """Whether its output may stay in ACT."""

    @abstractmethod
    def broken_rules(self, layer: L, spec: NpuSpec) -> Iterator[tuple[Rule, str]]:
        """Rules that the layer breaks, with the facts, but for CAPACITY: ``choose`` tells that."""

    @abstractmethod
    def choices(self, job: Job[L]) -> Iterable[C]:
        """All that the scratchpads hold of the ways to cut the layer that are worth a try."""

    @abstractmethod
    def too_large(self, job: Job[L]) -> str:
        """Why there are no choices: what is needed, and what the machine has."""

    def choose(self, job: Job[L]) -> C:
        """The choice that the compiler takes: the first, which moves fewest bytes.

        Raises:
            CapacityError: there is none; says which memory is too small by how much.
        """
        for choice in self.choices(job):
            return choice
        raise CapacityError(self.too_large(job))

    def space(self, job: Job[L]) -> list[C]:
        """All ways to cut the layer that a search may try; no fewer than ``choices``."""
        return list(self.choices(job))

    def misfit(self, job: Job[L], choice: C) -> str:
        """Why a choice from elsewhere can't be made here; "" where it can."""
        return "" if choice in self.space(job) else f"{job.layer.name}: can't be cut by {choice}"

    def price(self, job: Job[L], choice: C) -> int:
        """Estimated cycles that a choice costs its program: to say which are worth a try."""
        return self.cost(job, choice).cycles

    def form(self, job: Job[L]) -> Hashable:
        """Equal for layers that take as long wherever they are cut alike; its ``repr`` is stable.

        All but names and numbers in arrays.
        """
        layer = {k: v for k, v in vars(job.layer).items() if k not in ("name", "source")}
        stored = (*job.inputs, job.output)
        return (
            *(type(job.layer).__name__, *(each.form for each in stored)),
            *((k, v) for k, v in sorted(layer.items()) if isinstance(v, int | str | tuple)),
            *(job.act_bytes, job.stripe, job.sharing, job.spec.digest),
        )

    @abstractmethod
    def cost(self, job: Job[L], choice: C) -> Cost:
        """The estimated cost of a choice."""

    @abstractmethod
    def schedule(self, job: Job[L], choice: C) -> Scheduled:
        """The layer in tensorized TIR."""

    @abstractmethod
    def bytewise(self, layer: L, bits: Mapping[str, int]) -> Iterable[str]:
        """Names of the layer's tensors that must be stored as bytes, were ``bits`` the widths."""

    def padding(self, layer: L, read: Value, bits: int) -> Padding | None:
        """What it wants around a tensor that it reads from ACT; None if it can't read there.

        Args:
            layer: the reader.
            read: one of its inputs.
            bits: at which that is stored.
        """
        return None

    def same_bytes(self, layer: L) -> Value | None:
        """The input whose bytes its output has, so that there is nothing to do; None for most."""
        return None


def wide(values: Iterable[Value]) -> Iterator[tuple[Rule, str]]:
    """The rule about bytes, of tensors that must not be sums."""
    names = [f"{value.name} is {value.dtype}" for value in values if value.dtype == "int32"]
    if names:
        yield Rule.BYTES, ", ".join(names)


def broken_requantization(
    requantize: Requantize, *, borders: bool = False
) -> Iterator[tuple[Rule, str]]:
    """What does not fit the fields of REQ and of its records, or is not compiled for it.

    Args:
        requantize: of the layer.
        borders: whether it may round by borders.
    """
    shift, residual = requantize.shift, requantize.residual
    low, high = int(shift.min()), int(shift.max())
    if low < 0 or high > MAX_SHIFT or high - low > MAX_SHIFT_SPREAD:
        yield Rule.SHIFTS, f"right shifts run from {low} to {high}"
    if requantize.fraction > MAX_FRACTION:
        yield Rule.SHIFTS, f"{requantize.fraction} fraction bits"
    multipliers = [int(requantize.multiplier.min()), int(requantize.multiplier.max())]
    if residual is not None:
        low, high = int(residual.shift.min()), int(residual.shift.max())
        if low < 0 or high > MAX_RESIDUAL_SHIFT:
            yield Rule.SHIFTS, f"the residual's shifts run from {low} to {high}"
        multipliers.append(residual.multiplier)
    wide_ones = [m for m in multipliers if not 1 <= m <= MAX_MULTIPLIER]
    if wide_ones:
        yield Rule.MULTIPLIERS, f"multipliers of {wide_ones}"
    if requantize.rounding.mode is RoundingMode.BORDER and borders:
        if (levels := requantize.high - requantize.low) > MOST_BORDERS:
            yield Rule.ROUNDING, f"it has {levels} borders"
    elif requantize.rounding not in (HALF_UP, FLOOR):
        yield Rule.ROUNDING, f"it rounds by {requantize.rounding.mode.name}"


def broken_rows(
    length: int, bounds: SumBounds, requantize: Requantize
) -> Iterator[tuple[Rule, str]]:
    """What SOFTMAX and NORM can't do with a row of ``length`` codes and with its sums."""
    if length > LONGEST_ROW:
        yield Rule.ROWS, f"rows of {length} codes"
    for name in ("multiplier", "shift"):
        values = getattr(requantize, name)
        if values.min() != values.max():
            yield Rule.ROWS, f"{name}s from {values.min()} to {values.max()}"
    worst = bounds.reach << requantize.fraction
    if worst > INT32_MAX:
        yield Rule.SUMS, f"a sum can reach {worst}"
    yield from broken_requantization(requantize)


def same_width(values: Iterable[Value], bits: Mapping[str, int]) -> list[str]:
    """What must be bytes where all tensors are packed alike, whole pixels in whole bytes."""
    values = list(values)
    if len({bits[value.name] for value in values}) > 1:
        return [value.name for value in values]
    return [value.name for value in values if value.shape[2] * bits[value.name] % 8]
