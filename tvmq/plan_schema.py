"""What a plan file holds: all that can be said of its entries without the network."""

from __future__ import annotations

import math
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

from tvmq.scheme import Settings, code_range

FORMAT = "tvmq-plan-1"


def _step(given: Any) -> Any:
    """A number, also where it is written as a power of two such as ``2^-5``."""
    if not isinstance(given, str):
        return given
    match = re.fullmatch(r"2\^(-?\d{1,3})", given)
    if match is None:
        raise ValueError(f'{given!r} is no step; give a number or a power of two such as "2^-5"')
    return math.ldexp(1.0, int(match[1]))


def _inflated(packed: bytes) -> bytes:
    try:
        return zlib.decompress(packed)
    except zlib.error as error:
        raise ValueError(f"not zlib in base64 ({error})") from None


Number = Annotated[float, Field(allow_inf_nan=False)]
Step = Annotated[Number, Field(gt=0), BeforeValidator(_step)]
Bits = Annotated[int, Field(ge=2, le=8)]
Codes = Annotated[Base64Bytes, AfterValidator(_inflated)]


class _Entry(BaseModel):
    """``derived`` shows what followed from an entry; it is worked out anew."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    reason: str = ""
    derived: Any = None


class ValueEntry(_Entry):
    """A tensor of codes."""

    step: Step
    zero_point: int
    type: Literal["int8", "uint8"]
    bits: Bits

    @property
    def codes(self) -> tuple[int, int]:
        """The lowest and the highest."""
        return code_range(self.bits, self.type == "int8")

    @model_validator(mode="after")
    def _zero_point_is_a_code(self) -> ValueEntry:
        low, high = self.codes
        if not low <= self.zero_point <= high:
            raise ValueError(f"zero_point is {self.zero_point}; give one of [{low}, {high}]")
        return self


class BiasEntry(_Entry):
    """What is added to the bias of each channel; nothing if it is empty."""

    add: tuple[Number, ...]


class LayerEntry(_Entry):
    """A layer with weights; an average pooling has those of a mean."""

    weight_steps: tuple[Step, ...]
    weight_bits: Bits
    bias_correction: BiasEntry | None = None


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
    learned_codes: dict[str, Codes] = {}
