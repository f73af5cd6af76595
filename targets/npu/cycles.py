"""Cycles that instructions occupy their units, and what layers cost: time only, no values.

    LD, ST  decode + bursts / bytes_per_cycle, and the latency where DRAM is touched
    GEMM    decode + weights of the first tile + tiles * max(pixels, weights, min_rows) + fill
    DWC     decode + pixels * taps + fill
    REQ     decode + pixels * ceil(channels / lanes) + latency
    others  decode + ceil(elements * reads / lanes) + latency

A layer costs what its busiest unit is occupied: the four units overlap perfectly within a layer and
not at all between layers. This is a first count, not a schedule: waiting for tokens is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from targets.npu import isa
from targets.npu.program import Program
from targets.npu.spec import NpuSpec

_BOUNDS = ("dma read", "mac array", "vector unit", "dma write")


@dataclass(frozen=True)
class LayerCycles:
    """What a layer costs for one image.

    Attributes:
        name: of the layer.
        cycles: of its busiest unit.
        unit_cycles: occupied cycles of LD, MM, VU, ST.
        dram_bytes: read and written, the border that LD fills left out.
        bound: the busiest unit, in words.
    """

    name: str
    cycles: int
    unit_cycles: tuple[int, int, int, int]
    dram_bytes: int
    bound: str


def layer_cycles(program: Program, spec: NpuSpec) -> list[LayerCycles]:
    """Cost of each layer of a program, in order; a reshape, which has no instruction, costs 0."""
    costs = []
    for span in program.layers:
        units = [0, 0, 0, 0]
        moved = 0
        for instruction in program.instructions[span.begin : span.end]:
            units[instruction.unit] += instruction_cycles(instruction, spec)
            moved += dram_bytes(instruction)
        busiest = max(range(4), key=units.__getitem__)
        bound = _BOUNDS[busiest] if units[busiest] else ""
        ld, mm, vu, st = units
        costs.append(LayerCycles(span.name, units[busiest], (ld, mm, vu, st), moved, bound))
    return costs


def instruction_cycles(instruction: isa.Instruction, spec: NpuSpec) -> int:
    """Cycles that an instruction occupies its unit."""
    return spec.issue.decode + _work(instruction, spec)


def dram_bytes(instruction: isa.Instruction) -> int:
    """Bytes that an instruction moves between DRAM and a memory."""
    if isinstance(instruction, isa.Load) and not instruction.fill:
        return instruction.x_bytes * instruction.y * instruction.z
    if isinstance(instruction, isa.Store):
        return instruction.x_bytes * instruction.y * instruction.z
    return 0


def _work(instruction: isa.Instruction, spec: NpuSpec) -> int:
    vu = spec.vu
    match instruction:
        case isa.Load(fill=1) | isa.Nop() | isa.Halt():
            return 0
        case isa.Load():
            return _transfer(instruction, spec) + spec.dma.read_latency
        case isa.Store():
            return _transfer(instruction, spec) + spec.dma.write_latency
        case isa.Gemm():
            return _gemm(instruction, spec)
        case isa.Depthwise(kw=kw, kh=kh):
            taps = kh * kw  # "window" reuses columns across a row of pixels, at best
            pixels = instruction.m0 * instruction.m1
            return pixels * (taps if spec.array.dw == "stream" else kh) + spec.array.fill_cycles
        case isa.Requantize():
            lanes = vu.mult_lanes if instruction.multiply else vu.shift_lanes
            pixels = instruction.m0 * instruction.m1
            return pixels * _ceil(instruction.nvalid, lanes) + vu.latency
        case isa.Add():
            return _ceil(2 * instruction.len, vu.elt_lanes) + vu.latency
        case isa.Pool(kw=kw, kh=kh):
            elements = instruction.c * instruction.ox * instruction.oy
            return _ceil(elements * kh * kw, vu.pool_lanes) + vu.latency
        case isa.Lut():
            return _ceil(instruction.len, vu.lut_lanes) + vu.latency
    raise AssertionError(instruction)


def _gemm(instruction: isa.Gemm, spec: NpuSpec) -> int:
    array = spec.array
    pixels = instruction.m0 * instruction.m1
    tiles = instruction.k0 * instruction.k1 * instruction.k2
    weights = array.weight_cycles
    if array.weight_buffers == 1:
        return tiles * (weights + pixels + array.fill_cycles)
    return weights + tiles * max(pixels, weights, array.min_rows) + array.fill_cycles


def _transfer(instruction: isa.Load | isa.Store, spec: NpuSpec) -> int:
    """Bus cycles; rows that touch are one transfer, and a partial burst costs a whole one."""
    rows, row_bytes = instruction.y * instruction.z, instruction.x_bytes
    if instruction.y > 1 and instruction.dram_ystride == row_bytes:
        rows, row_bytes = instruction.z, row_bytes * instruction.y
    bursts = rows * _ceil(row_bytes, spec.dma.burst)
    return _ceil(bursts * spec.dma.burst, spec.dma.bytes_per_cycle)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
