"""The quantization plan: every step, every integer that follows from it, and why.

A plan is complete: with the float network it determines each bit of the result. What a person
may change are the steps, zero points and bias corrections (``plan_file.py``); multipliers, shifts
and proofs follow from them (``complete_plan.py``), by the derivation that lowering uses, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from targets.arithmetic import INT32_MAX
from targets.rounding import HALF_UP, Rounding
from targets.scale import AddScale, Scale
from targets.sum_bounds import CodeRange
from tvmq.float_model import Equalization
from tvmq.settings import Settings


@dataclass(frozen=True)
class ValuePlan:
    """How a value is written in codes: ``step * (code - zero_point)``.

    Attributes:
        step: positive; exactly a power of two in "pot" mode.
        zero_point: code of 0.0, in [low, high].
        low: lowest code; a ReLU raises it to the zero point.
        high: highest code; a ReLU6 lowers it.
        signed: int8, otherwise uint8.
        bits: the codes are those of this many bits.
        reason: why this step, in one line.
        rounding: of what is written; borders begin at the lowest code of the bits.
    """

    step: float
    zero_point: int
    low: int
    high: int
    signed: bool
    bits: int
    reason: str
    rounding: Rounding = HALF_UP

    @property
    def codes(self) -> CodeRange:
        """Its codes, for proofs."""
        return CodeRange(self.low, self.high, self.zero_point)

    @property
    def dtype(self) -> str:
        """How a code is stored."""
        return "int8" if self.signed else "uint8"


@dataclass(frozen=True)
class WeightPlan:
    """Steps of a layer's weights; an average pooling has one weight, its factor.

    Attributes:
        steps: one, or one per output channel; adjusted by less than 2**-16 where free steps must
            give an exact multiplier.
        bits: codes are in [-(2**(bits-1) - 1), 2**(bits-1) - 1]; learned ones may be one lower.
        reason: why these steps, in one line.
        codes: learned codes, int8 in the order of the weight; empty: the weight, rounded.
    """

    steps: tuple[float, ...]
    bits: int
    reason: str
    codes: bytes = b""


@dataclass(frozen=True)
class BiasPlan:
    """What is added to a layer's float bias before it is rounded.

    Attributes:
        correction: per output channel; empty if none.
        reason: what held-out images said.
    """

    correction: tuple[float, ...]
    reason: str


@dataclass(frozen=True)
class AccumulatorProof:
    """Bounds that no input can exceed, from the layer's own weights and code ranges.

    Attributes:
        sums: largest magnitude of the products' sum, in any order of summation.
        smallest: of sum + bias, reached by some input.
        largest: of sum + bias, reached by some input.
        total: largest magnitude held in int32: shifted sums and, in "pot" mode, residual and
            rounding too.
        limit: what ``total`` must not exceed.
    """

    sums: int
    smallest: int
    largest: int
    total: int
    limit: int = INT32_MAX


@dataclass(frozen=True)
class Plan:
    """A complete quantization of one network.

    Attributes:
        settings: what was asked for.
        fingerprint: of the float network.
        calibration: where the ranges are from, in words.
        values: by name of value.
        weights: by name of layer, average pooling included.
        biases: by name of layer with weights.
        requantize: by name of layer; none where the sums leave the network.
        additions: by name of "add" layer.
        proofs: by name of layer.
        equalization: of the float network that the plan is of; None if it wasn't asked for.
    """

    settings: Settings
    fingerprint: str
    calibration: str
    values: Mapping[str, ValuePlan]
    weights: Mapping[str, WeightPlan]
    biases: Mapping[str, BiasPlan]
    requantize: Mapping[str, Scale]
    additions: Mapping[str, AddScale]
    proofs: Mapping[str, AccumulatorProof]
    equalization: Equalization | None = None

    def __repr__(self) -> str:
        """A line of what it is; its numbers, tens of thousands of them, are in plan.json."""
        return (
            f"<Plan {self.settings.precision}, {len(self.values)} values and {len(self.weights)} "
            f"layers with weights, ranges from {self.calibration}>"
        )
