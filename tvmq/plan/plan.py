"""The quantization plan: every step, every integer that follows from it, and why.

A plan is complete: with the float network it determines each bit of the result. What a person
may change are the steps, zero points and bias corrections (``plan_file.py``); multipliers, shifts
and proofs follow from them (``complete_plan.py``), by the derivation that lowering uses, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from targets.arithmetic import INT32_MAX
from targets.product_factors import integer_factors
from targets.rounding import HALF_UP, Rounding
from targets.scale import AddScale, Scale
from targets.sum_bounds import CodeRange
from tvmq.float_model import Equalization, Mixing, TensorScaling
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
class ProductPlan:
    """Factors of a layer's products: what a group of input channels adds to a sum counts so often.

    Attributes:
        channels: input channels of a group; the last group may have fewer. Groups of a grouped
            convolution are cut each by itself.
        outputs: output channels that have their factors in common; likewise.
        factors: rows, one per ``outputs``, of numbers in ``targets.product_factors.FACTORS``, one
            per group of input channels.
        reason: why these, in one line.
    """

    channels: int
    outputs: int
    factors: tuple[tuple[float, ...], ...]
    reason: str

    @staticmethod
    def sizes(
        weight: Sequence[int], channels: int, outputs: int, groups: int
    ) -> tuple[int, tuple[int, int]]:
        """How many output channels share a row of factors, and the shape of all factors.

        Args:
            weight: its shape, [K, C / groups, ...].
            channels: input channels of a group of products.
            outputs: that are to share a row, at most those of a group of the convolution; 0: these.
            groups: of the convolution.
        """
        each = weight[0] // groups
        together = min(outputs or each, each)
        return together, (groups * math.ceil(each / together), math.ceil(weight[1] / channels))

    def spread(self, outputs: int, inputs: int, groups: int = 1) -> npt.NDArray[np.float64]:
        """float64[K, C / groups]: the factor of each input channel that each output reads.

        Args:
            outputs: K.
            inputs: C / groups.
            groups: of the convolution.
        """
        rows = np.array(self.factors, np.float64).reshape(groups, -1, len(self.factors[0]))
        each = np.repeat(rows, self.outputs, axis=1)[:, : outputs // groups]
        return np.repeat(each, self.channels, axis=2)[..., :inputs].reshape(outputs, inputs)

    @property
    def fraction(self) -> int:
        """Bits by which a sum's unit is finer for the factors."""
        return integer_factors(np.array(self.factors))[1]


@dataclass(frozen=True)
class WeightPlan:
    """Steps of a layer's weights; an average pooling has one weight, its factor.

    Attributes:
        steps: one, or one per output channel; adjusted by less than 2**-16 where free steps must
            give an exact multiplier.
        bits: codes are in [-(2**(bits-1) - 1), 2**(bits-1) - 1]; learned ones may be one lower.
        reason: why these steps, in one line.
        codes: learned codes, int8 in the order of the weight; empty: the weight, rounded.
        products: factors of the products with them; None if all are 1.
    """

    steps: tuple[float, ...]
    bits: int
    reason: str
    codes: bytes = b""
    products: ProductPlan | None = None

    @property
    def units(self) -> tuple[float, ...]:
        """What a sum counts, in steps of what is multiplied: the steps, finer for factors."""
        if self.products is None:
            return self.steps
        return tuple(math.ldexp(step, -self.products.fraction) for step in self.steps)


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
        mixing: of its channels; likewise.
        scaling: of its tensors; likewise.
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
    mixing: Mixing | None = None
    scaling: TensorScaling | None = None

    def __repr__(self) -> str:
        """A line of what it is; its numbers, tens of thousands of them, are in plan.json."""
        return (
            f"<Plan {self.settings.precision}, {len(self.values)} values and {len(self.weights)} "
            f"layers with weights, ranges from {self.calibration}>"
        )
