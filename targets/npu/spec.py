"""One description of the machine: compiler, simulators, timing and tuning key all read it.

A description is a TOML file (``specs/*.toml``); ``load_spec`` takes a preset's name or a path.
Units are in the names or in the docstrings: bytes, cycles, hertz, picojoules.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from targets.errors import SpecError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Array(_Part):
    """The MAC array.

    Attributes:
        rows: reduction lanes (R), at most 128.
        cols: output channels (C), at most 64.
        kind: "systolic" (fill = rows + cols - 2 cycles) or "tree" (fill = ceil(log2 rows) + 3
            cycles).
        weight_buffers: 2 loads the next tile's weights under the current one, 1 does not.
        weight_rows_per_cycle: a tile's weights take rows / this cycles to load.
        min_rows: least cycles between two writes to one accumulator row.
        precisions: operand widths in bits; a lane takes 8 / max(widths) pairs per cycle.
        acc_bits: accumulator width; 32.
        dw: depthwise rate, "stream" (kh * kw cycles per row) or "window" (kh * min(kw, stride)).
    """

    rows: Annotated[int, Field(gt=0, le=128)]
    cols: Annotated[int, Field(gt=0, le=64)]
    kind: Literal["systolic", "tree"]
    weight_buffers: Literal[1, 2]
    weight_rows_per_cycle: Positive
    min_rows: Positive
    precisions: list[Literal[2, 4, 8]]
    acc_bits: Literal[32]
    dw: Literal["stream", "window"]

    @property
    def fill_cycles(self) -> int:
        """Cycles between the last input row and the last sum."""
        if self.kind == "tree":
            return math.ceil(math.log2(self.rows)) + 3
        return self.rows + self.cols - 2

    @property
    def weight_cycles(self) -> int:
        """Cycles that loading one tile's weights takes."""
        return -(-self.rows // self.weight_rows_per_cycle)


class Bank(_Part):
    """A scratchpad in bytes, with the bytes of a line and the number of banks."""

    bytes: Annotated[int, Field(gt=0, le=1 << 20)]
    line: Positive = 16
    banks: Positive = 1


class Sram(_Part):
    """Activations, weights, int32 sums, and parameter records and tables."""

    act: Bank
    wgt: Bank
    acc: Bank
    par: Bank


class Dma(_Part):
    """The bus to DRAM.

    Attributes:
        bytes_per_cycle: effective bandwidth.
        burst: bytes; a partial burst costs a whole one.
        read_latency: cycles from issue to the first byte.
        write_latency: cycles from the last byte to completion.
        outstanding: transfers in flight, of LD and of ST each.
        arbiter: "fcfs" (one bus, first come first served) or "private" (LD, ST and the fetch of
            instructions have one each).
    """

    bytes_per_cycle: Positive
    burst: Positive
    read_latency: NotNegative
    write_latency: NotNegative
    outstanding: Positive
    arbiter: Literal["fcfs", "private"]


class VectorUnit(_Part):
    """Elements per cycle of each kind of work, and the pipeline's latency in cycles."""

    shift_lanes: Positive
    mult_lanes: Positive
    elt_lanes: Positive
    pool_lanes: Positive
    lut_lanes: Positive
    latency: NotNegative


class Issue(_Part):
    """What comes before an instruction's work.

    Attributes:
        decode: cycles.
        queue_depth: instructions that a unit's queue holds, and that are fetched ahead.
        token_depth: tokens that a FIFO between two units holds.
        insn_bytes: of an instruction.
    """

    decode: NotNegative
    queue_depth: Positive
    token_depth: Positive
    insn_bytes: Literal[32]


class EnergyTable(_Part):
    """Picojoules per event.

    Attributes:
        multiply8: of two 8-bit operands; narrower ones scale with both widths.
        accumulate: adding a product to a sum.
        sram_byte: one byte read from or written to a scratchpad.
        dram_byte: one byte read from or written to DRAM.
        requantize_shift: one code of the vector unit without a multiplier.
        requantize_multiply: with one.
        source: where the numbers come from.
    """

    multiply8: float
    accumulate: float
    sram_byte: float
    dram_byte: float
    requantize_shift: float
    requantize_multiply: float
    source: str


class Energy(_Part):
    """Relative energy: named tables, and which of them is used unless another one is asked for."""

    table: str
    tables: dict[str, EnergyTable]

    @model_validator(mode="after")
    def _table_exists(self) -> Energy:
        self.named(self.table)
        return self

    def named(self, name: str = "") -> EnergyTable:
        """A table, by default the description's choice.

        Raises:
            SpecError: there is none of that name.
        """
        chosen = name or self.table
        if chosen not in self.tables:
            known = ", ".join(self.tables) or "none"
            msg = f"no energy table {chosen!r}: the description has {known}"
            raise SpecError(msg)
        return self.tables[chosen]


class NpuSpec(_Part):
    """A machine."""

    name: str
    title: str
    clock_hz: Positive
    array: Array
    sram: Sram
    dma: Dma
    vu: VectorUnit
    issue: Issue
    energy: Energy

    @model_validator(mode="after")
    def _accumulators_hold_rows(self) -> NpuSpec:
        row = 4 * self.array.cols
        if self.sram.acc.bytes < 2 * row or self.sram.acc.bytes % row:
            msg = (
                f"sram.acc.bytes must hold two or more whole rows of int32 sums ({row} bytes each)"
            )
            raise ValueError(msg)
        return self

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything above, in canonical form."""
        canonical = json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def acc_rows(self) -> int:
        """Rows of C sums that ACC holds."""
        return self.sram.acc.bytes // (4 * self.array.cols)

    @property
    def peak_macs_per_cycle(self) -> int:
        """8-bit multiply-accumulates per cycle."""
        return self.array.rows * self.array.cols


def presets() -> list[str]:
    """Names of the machines that come with tvmq."""
    folder = resources.files("targets.npu") / "specs"
    return sorted(
        f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")
    )


def load_spec(name: str) -> NpuSpec:
    """Read a machine description.

    Args:
        name: a preset such as "e256", or the path of a TOML file.

    Raises:
        SpecError: no such preset or file, or a field is unknown, missing or out of range; names
            the field.
    """
    if name in presets():
        text = (resources.files("targets.npu") / "specs" / f"{name}.toml").read_text()
    else:
        path = Path(name)
        if not path.is_file():
            known = ", ".join(presets())
            msg = f"no machine {name!r}: expected one of {known}, or the path of a TOML file"
            raise SpecError(msg)
        text = path.read_text()
    return parse_spec(text, name)


def parse_spec(text: str, origin: str) -> NpuSpec:
    """Read a description from TOML text; ``origin`` is its name in errors."""
    try:
        content: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        msg = f"{origin}: not valid TOML: {error}"
        raise SpecError(msg) from error
    try:
        return NpuSpec.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(p) for p in e['loc']) or 'machine'}: {e['msg']}" for e in error.errors()
        )
        msg = f"{origin}: {problems}. The fields are described in targets/npu/spec.py."
        raise SpecError(msg) from error
