"""The settings of a quantization, and the code ranges that follow from them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from targets.code_range import code_range
from targets.errors import InputError
from tvmq.reconstruct.methods import METHODS, learning, refusal

CALIBRATION_BATCH = 16
"""Images calibrated at a time, unless one says otherwise."""

MOST = 10**9
"""Of images and steps, whatever is asked for."""

Scales: TypeAlias = Literal["pot", "free"]
Granularity: TypeAlias = Literal["tensor", "channel"]
RangeMethod: TypeAlias = Literal["minmax", "percentile", "mse", "lp"]
ResidualReads: TypeAlias = Literal["rounded", "whole"]

CHOICES: dict[str, tuple[str, ...]] = {
    "scales": ("pot", "free"),
    "granularity": ("tensor", "channel"),
    "residual_reads": ("rounded", "whole"),
    "calib_method": ("minmax", "percentile", "mse", "lp"),
}


@dataclass(frozen=True)
class Settings:
    """How a network is quantized; weights are always symmetric, activations per tensor.

    Attributes:
        weight_bits: in [2, 8].
        activation_bits: in [2, 8].
        scales: "pot": every step is a power of two; "free": any step, with 16-bit multipliers.
        granularity: one weight step per layer ("tensor") or per output channel ("channel").
        first_last_bits: at least this many bits, in [2, 8], for the input of the network, the
            weights of the first and last layer and the input of the last one.
        residual_bits: of what residual additions add and make, more than ``activation_bits``; 0: as
            all activations.
        residual_reads: "rounded": convolutions read residuals rounded to ``activation_bits``;
            "whole": they read all bits of them.
        calib_method: how a range is chosen: the extremes, a percentile, or the range with the
            smallest mean of |error|^2 ("mse") or |error|^2.4 ("lp").
        percentile: of |x|, in (50, 100], for "percentile".
        bias_correction: subtract the mean error that quantization adds to each channel.
        exclude: globs of layer or module names that keep 8-bit weights.
        method: names in the table of ``tvmq/reconstruct/methods.py``, applied in this order.
        iterations: steps of the optimizer per unit, for methods that learn.
        learn_batch: images in each of these steps.
        distill_iterations: of "distill", for all units together; 0: as many as ``iterations``.
        kappa: in [0, 1], how far "rapq" may move the exponent of a unit's loss above 1.
        product_budget: of "waps": shifts and additions for factors of products, at most so many
            percent of all multiply-adds, and of the NPU's cycles.
        product_channels: instead of a budget, how many input channels have a factor in common; 0
            with a budget.
        product_outputs: how many output channels have their factors in common; 0: all of a layer.
        product_unit: what groups by a budget are multiples of, in input channels.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    scales: Scales = "pot"
    granularity: Granularity = "tensor"
    first_last_bits: int = 8
    residual_bits: int = 0
    residual_reads: ResidualReads = "rounded"
    calib_method: RangeMethod = "mse"
    percentile: float = 99.99
    bias_correction: bool = True
    exclude: tuple[str, ...] = ()
    method: tuple[str, ...] = ("rtn",)
    iterations: int = 2000
    learn_batch: int = 32
    distill_iterations: int = 0
    kappa: float = 0.9
    product_budget: float = 1.5
    product_channels: int = 0
    product_outputs: int = 0
    product_unit: int = 8

    def __post_init__(self) -> None:
        for name in ("weight_bits", "activation_bits", "first_last_bits"):
            bits = getattr(self, name)
            if not isinstance(bits, int) or not 2 <= bits <= 8:
                raise InputError(f"{name} is {bits!r}; give a whole number from 2 to 8.")
        self._check_residual_bits()
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(
                    f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}."
                )
        if words := refusal(self):
            raise InputError(words)
        for name in ("iterations", "learn_batch"):
            number = getattr(self, name)
            if not isinstance(number, int) or not 1 <= number <= MOST:
                raise InputError(f"{name} is {number!r:.40}; give a whole number from 1 to {MOST}.")
        if not 0 <= self.kappa <= 1:
            raise InputError(f"kappa is {self.kappa}; give a number in [0, 1].")
        if not 0 < self.product_budget <= 100:
            raise InputError(f"product_budget is {self.product_budget}; give a percentage above 0.")
        for name, least in (
            *(("distill_iterations", 0), ("product_channels", 0), ("product_outputs", 0)),
            ("product_unit", 1),
        ):
            number = getattr(self, name)
            if not isinstance(number, int) or not least <= number <= MOST:
                raise InputError(
                    f"{name} is {number!r:.40}; give a whole number from {least} to {MOST}."
                )
        if not 50 < self.percentile <= 100:
            raise InputError(f"percentile is {self.percentile}; give a number in (50, 100].")

    def _check_residual_bits(self) -> None:
        bits, least = self.residual_bits, self.activation_bits + 1
        if not isinstance(bits, int) or (bits and not least <= bits <= 8):
            numbers = f"a whole number from {least} to 8" if least < 8 else "8"
            advice = f"give {numbers}, or leave it out" if least <= 8 else "leave it out"
            raise InputError(
                f"residual_bits is {bits!r:.40}, and activations have {self.activation_bits} bits; "
                f"{advice}."
            )

    @property
    def learned_method(self) -> str:
        """Those of the methods that learn from images, joined by commas; "" without one."""
        return ",".join(learning(self.method))

    @property
    def trained_method(self) -> str:
        """Those of the methods that take steps of an optimizer, as ``learned_method``."""
        return ",".join(name for name in self.method if METHODS[name].trains(self))

    def with_free_steps(self, granularity: Granularity) -> Settings:
        """The same ranges and bits with any step: what powers of two are compared with.

        Learned codes reach one further down than others, so a method that learns stays one.
        """
        method = "qdrop" if self.learned_method else "rtn"
        return replace(self, scales="free", granularity=granularity, method=(method,))

    @property
    def pot(self) -> bool:
        """Whether every step is a power of two."""
        return self.scales == "pot"

    @property
    def precision(self) -> str:
        """Such as ``w4a8``."""
        return f"w{self.weight_bits}a{self.activation_bits}"


def parse_methods(text: str) -> tuple[str, ...]:
    """The names in a comma list such as ``wess,rapq``; Settings refuses those it does not know."""
    return tuple(name for name in (part.strip().lower() for part in text.split(",")) if name)


def parse_precision(text: str) -> tuple[int, int]:
    """Bits of weights and activations in ``w4a8``.

    Raises:
        InputError: not of this form, or not in [2, 8].
    """
    match = re.fullmatch(r"[wW]([2-8])[aA]([2-8])", text.strip())
    if match is None:
        raise InputError(
            f"precision {text!r} is not of the form w8a8; give the bits of weights and "
            "activations, each from 2 to 8, such as w4a8."
        )
    return int(match[1]), int(match[2])


def weight_limit(bits: int) -> int:
    """Largest weight code; codes are in [-limit, limit], so that -w is a code where w is."""
    return 2 ** (bits - 1) - 1


def learned_range(bits: int) -> tuple[int, int]:
    """Lowest and highest code of a learned weight: all that the bits can hold."""
    return code_range(bits, signed=True)
