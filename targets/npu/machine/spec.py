"""One description of the machine: compiler, simulators, timing and tuning key all read it.

A description is a TOML file (``specs/*.toml``); ``load_spec`` takes a preset's name or a path.
Units are in the names or in the docstrings: bytes, cycles, hertz, picojoules.
"""

from __future__ import annotations

import hashlib
import json
import math
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from targets.errors import SpecError
from targets.npu.machine import isa
from targets.npu.machine.energy_tables import Energy
from targets.reading import read_text, reading, what_is
from targets.schema_errors import in_words
from targets.toml_file import parse_toml

MAX_ACC_ROWS = 1 + isa.largest(isa.Gemm, "acc_row")
"""What the field acc_row of an instruction can name."""
MAX_BYTES = 1 + isa.largest(isa.Load, "spm_addr")
"""What the byte addresses of an instruction can name."""
MAX_PAR_BYTES = min(
    1 + isa.largest(isa.Lut, "lut_addr"), 4 * (1 + isa.largest(isa.Requantize, "par_addr"))
)
"""What par_addr, which counts words, and lut_addr can name."""

Positive = Annotated[int, Field(gt=0, le=2**31 - 1)]
NotNegative = Annotated[int, Field(ge=0, le=2**31 - 1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Array(_Part):
    """The MAC array.

    Attributes:
        rows: reduction lanes (R), 2 to 128.
        cols: output channels (C), 2 to 64.
        kind: "systolic" (fill = rows + cols - 2 cycles) or "tree" (fill = ceil(log2 rows) + 3
            cycles).
        weight_buffers: 2 loads the next tile's weights under the current one, 1 does not.
        weight_rows_per_cycle: a tile's weights take rows / this cycles to load.
        min_rows: least cycles between two writes to one accumulator row.
        precisions: operand widths in bits; a lane takes 8 / max(widths) pairs per cycle.
        acc_bits: accumulator width; 32.
        dw: cycles per pixel of a depthwise kernel, "stream" (kh * kw) or "window" (kh).
    """

    rows: Annotated[int, Field(ge=2, le=128)]
    cols: Annotated[int, Field(ge=2, le=64)]
    kind: Literal["systolic", "tree"]
    weight_buffers: Literal[1, 2]
    weight_rows_per_cycle: Positive
    min_rows: Positive
    precisions: Annotated[list[Literal[2, 4, 8]], Field(min_length=1)]
    acc_bits: Literal[32]
    dw: Literal["stream", "window"]

    @model_validator(mode="after")
    def _packed_codes_fill_bytes(self) -> Array:
        per_byte = 8 // min(self.precisions)
        for name, lanes in (("rows", self.rows), ("cols", self.cols)):
            if lanes % per_byte:
                msg = (
                    f"array.{name} must be a multiple of {per_byte}, the codes in a byte at "
                    f"{min(self.precisions)} bits, which array.precisions lists"
                )
                raise ValueError(msg)
        return self

    def lanes(self, bits: int) -> int:
        """Products of a column in one cycle, if the wider operands have so many bits."""
        return self.rows * 8 // bits

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

    @property
    def overrun(self) -> int:
        """Bytes that it may read behind a tensor: whole rows, even where it has no weights."""
        return max(self.rows, self.cols)


class Bank(_Part):
    """A scratchpad.

    Attributes:
        bytes: capacity, at most 1 MiB.
        line: bytes that a fill writes per cycle.
    """

    bytes: Annotated[int, Field(gt=0, le=MAX_BYTES)]
    line: Positive = 16


class Sram(_Part):
    """The scratchpads.

    Attributes:
        act: activations.
        wgt: weights.
        acc: int32 sums, in rows of one sum per column of the array.
        par: parameter records of channels, and look-up tables.
    """

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
    """The unit that turns sums into codes, and codes into codes.

    Attributes:
        shift_lanes: sums requantized per cycle by shift alone.
        mult_lanes: sums requantized per cycle with a multiplier.
        elt_lanes: operands of an addition read per cycle.
        pool_lanes: elements compared or added per cycle.
        lut_lanes: bytes looked up per cycle.
        root_bits: bits of a row's reciprocal or root found per cycle.
        latency: cycles from the last element read to its result.
    """

    shift_lanes: Positive
    mult_lanes: Positive
    elt_lanes: Positive
    pool_lanes: Positive
    lut_lanes: Positive
    root_bits: Positive = 1
    latency: NotNegative


class Issue(_Part):
    """What comes before an instruction's work.

    Attributes:
        decode: cycles that each instruction costs its unit before it starts.
        queue_depth: instructions that a unit's queue holds, and that are fetched ahead.
        token_depth: tokens that a FIFO between two units holds.
        insn_bytes: bytes of an instruction; 32.
    """

    decode: NotNegative
    queue_depth: Positive
    token_depth: Positive
    insn_bytes: Literal[32]


class NpuSpec(_Part):
    """A machine.

    Attributes:
        name: the preset's, stored in every program.
        title: a few words for lists of machines.
        clock_hz: cycles per second; turns cycles into microseconds.
    """

    name: str
    title: str
    clock_hz: Annotated[int, Field(gt=0, le=10**12)]
    array: Array
    sram: Sram
    dma: Dma
    vu: VectorUnit
    issue: Issue
    energy: Energy

    @model_validator(mode="after")
    def _accumulators_hold_rows(self) -> NpuSpec:
        row = 4 * self.array.cols
        if self.sram.acc.bytes % row or not 2 <= self.acc_rows <= MAX_ACC_ROWS:
            msg = f"sram.acc.bytes must hold 2 to {MAX_ACC_ROWS} whole rows of sums ({row} bytes)"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _memories_hold_two_tiles(self) -> NpuSpec:
        array, sram = self.array, self.sram
        pixel = array.rows + array.overrun + array.cols
        for name, bank, tile, of_what in (
            ("act", sram.act, pixel, "pixels, of an input per row and an output per column"),
            ("wgt", sram.wgt, array.rows * array.cols, "tiles of weights"),
        ):
            if bank.bytes < 2 * tile:
                msg = (
                    f"sram.{name}.bytes is {bank.bytes}; give at least {2 * tile}, which is two "
                    f"{of_what}: one to work on, one on its way"
                )
                raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _records_can_be_named(self) -> NpuSpec:
        if self.sram.par.bytes > MAX_PAR_BYTES:
            msg = f"sram.par.bytes must be at most {MAX_PAR_BYTES}, what an instruction can name"
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

    def microseconds(self, cycles: int) -> float:
        """How long cycles take."""
        return cycles / self.clock_hz * 1e6

    @property
    def peak_macs_per_cycle(self) -> int:
        """8-bit multiply-accumulates per cycle."""
        return self.array.rows * self.array.cols


def presets() -> list[str]:
    """Names of the machines that come with tvmq; those for comparisons only are the last."""
    folder = resources.files("targets.npu") / "specs"
    names = [f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")]
    return sorted(names, key=lambda name: (name.startswith("conformance"), name))


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
        known = ", ".join(presets())
        if what_is(name) == "nothing":
            raise SpecError(
                f"no machine {name!r}: expected one of {known}, or the path of a TOML file"
            )
        text = read_text(Path(name), "a machine", f"Give one of {known}, or a TOML file.")
    return parse_spec(text, name)


def parse_spec(text: str, origin: str) -> NpuSpec:
    """Read a description from TOML text; ``origin`` is its name in errors."""
    with reading(origin, "valid TOML", kind=SpecError):
        content = parse_toml(text)
    try:
        return NpuSpec.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(in_words(e, NpuSpec) for e in error.errors())
        msg = f"{origin}: {problems}. docs/npu.md describes the fields."
        raise SpecError(msg) from error
