"""What a plan file holds: all that can be said of its entries without the network."""

from __future__ import annotations

import re
import zlib
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Base64Bytes,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from targets.code_range import code_range
from targets.product_factors import FACTORS
from targets.rounding import Rounding, RoundingMode
from tvmq.settings import Settings

FORMAT = "tvmq-plan-1"

SMALLEST, LARGEST = -126, 127
"""Exponents of a step: those of a float32."""


def _number(given: Any) -> Any:
    """A number, also where it is written as a power of two such as ``2^-5``."""
    power = re.fullmatch(r"2\^([+-]?\d{1,4})", given) if isinstance(given, str) else None
    return 2.0 ** min(int(power[1]), LARGEST + 1) if power else given


def _in_range(step: float) -> float:
    if not 2.0**SMALLEST <= step <= 2.0**LARGEST:
        raise ValueError(f"{step:.6g} is no step; give one from 2^{SMALLEST} to 2^{LARGEST}")
    return step


def _mode(given: Any) -> Any:
    if isinstance(given, RoundingMode):
        return given
    modes = RoundingMode.__members__
    if not isinstance(given, str) or given not in modes:
        raise ValueError(f"{given} is no rounding; give one of {', '.join(modes)}")
    return modes[given]


def inflate(packed: bytes, most: int) -> bytes:
    """Learned codes, one byte each; one more than ``most`` stands for any number of them.

    Raises:
        ValueError: they are not whole, or something follows them.
    """
    stream = zlib.decompressobj()
    try:
        codes = stream.decompress(packed, most + 1)
    except zlib.error as error:
        raise ValueError(f"not zlib in base64 ({error})") from None
    if len(codes) <= most and (not stream.eof or stream.unused_data):
        raise ValueError("not zlib in base64 (incomplete, or followed by something else)")
    return codes


Number = Annotated[float, Field(allow_inf_nan=False)]
Step = Annotated[Number, BeforeValidator(_number), AfterValidator(_in_range)]
Bits = Annotated[int, Field(ge=2, le=8)]
Mode = Annotated[RoundingMode, BeforeValidator(_mode)]
Border = Annotated[int, Field(ge=1, le=255)]


class _Entry(BaseModel):
    """``derived`` shows what followed from an entry; it is worked out anew."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    reason: str = ""
    derived: Any = None


class ValueEntry(_Entry):
    """A tensor of codes; ``rounding`` and ``borders`` are left out where it is rounded half up."""

    step: Step
    zero_point: int
    type: Literal["int8", "uint8"]
    bits: Bits
    rounding: Mode = RoundingMode.HALF_UP
    borders: tuple[tuple[Border, ...], ...] = ()

    @property
    def codes(self) -> tuple[int, int]:
        """The lowest and the highest."""
        return code_range(self.bits, self.type == "int8")

    @property
    def rounds(self) -> Rounding:
        """How it is rounded, by its own borders."""
        first = self.codes[0] if self.borders else 0
        return Rounding(self.rounding, tuple(map(bytes, self.borders)), first)

    @model_validator(mode="after")
    def _zero_point_is_a_code(self) -> ValueEntry:
        low, high = self.codes
        if not low <= self.zero_point <= high:
            raise ValueError(f"zero_point is {self.zero_point}; give one of [{low}, {high}]")
        return self

    @model_validator(mode="after")
    def _borders_fit(self) -> ValueEntry:
        low, high = self.codes
        for row in self.borders:
            if len(row) != high - low:
                wanted = f"{high - low}, one between each two codes"
                raise ValueError(f"a row of borders has {len(row)} numbers; give {wanted}")
        _ = self.rounds  # whose mode wants borders, or none
        return self


class BiasEntry(_Entry):
    """What is added to the bias of each channel; nothing if it is empty."""

    add: tuple[Number, ...]


def _factor(factor: float) -> float:
    if factor not in FACTORS:
        wanted = ", ".join(f"{known:g}" for known in FACTORS)
        raise ValueError(f"{factor:g} is no factor of products; give one of {wanted}")
    return factor


Factor = Annotated[Number, AfterValidator(_factor)]


class ProductEntry(_Entry):
    """Factors of products: a row for so many outputs, a number for so many input channels."""

    channels: Annotated[int, Field(ge=1)]
    outputs: Annotated[int, Field(ge=1)]
    factors: tuple[tuple[Factor, ...], ...]


class LayerEntry(_Entry):
    """A layer with weights; an average pooling has those of a mean."""

    weight_steps: tuple[Step, ...]
    weight_bits: Bits
    bias_correction: BiasEntry | None = None
    products: ProductEntry | None = None


class EqualizationEntry(_Entry):
    """How often each channel of a layer was halved in the float network, by name of layer."""

    exponents: dict[str, tuple[int, ...]]


class MixingEntry(_Entry):
    """Which channel of a layer takes each place in the float network, by name of layer."""

    orders: dict[str, tuple[int, ...]]


class ScalingEntry(_Entry):
    """What tensors of the float network were multiplied by, by name of the first layer of them."""

    factors: dict[str, Step]
    left_out: bool = False


class PlanFile(BaseModel):
    """The whole document."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    format: Literal["tvmq-plan-1"]
    model: str
    calibration: str = ""
    settings: Settings
    values: dict[str, ValueEntry]
    layers: dict[str, LayerEntry]
    additions: Any = None
    equalization: EqualizationEntry | None = None
    mixing: MixingEntry | None = None
    scaling: ScalingEntry | None = None
    learned_codes: dict[str, Base64Bytes] = {}
    """Deflated: how many there must be is known with the network only; see ``inflate``."""
