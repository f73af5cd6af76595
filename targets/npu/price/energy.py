"""Energy of instructions, relative: counts of events times the picojoules of a named table.

Good for comparing layers, precisions and schedules with each other; not the milliwatts of a chip.
Leakage, clocks and the decoding of instructions are left out.
"""

from __future__ import annotations

from targets.npu.machine import isa
from targets.npu.machine.energy_tables import EnergyTable
from targets.npu.machine.spec import NpuSpec
from targets.npu.price.accesses import accesses
from targets.rounding import RoundingMode


def picojoules(instruction: isa.Instruction, spec: NpuSpec, table: EnergyTable) -> float:
    """Energy of one instruction; its own bytes come over DRAM too."""
    count = accesses(instruction, spec)
    return (
        count.macs * mac_picojoules(instruction, table)
        + (count.spm_bytes + count.acc_bytes) * table.sram_byte
        + (count.dram_bytes + spec.issue.insn_bytes) * table.dram_byte
        + count.outputs * _output_picojoules(instruction, table)
    )


def mac_picojoules(instruction: isa.Instruction, table: EnergyTable) -> float:
    """Of one product and its addition; a multiplier's energy goes with both operand widths."""
    if not isinstance(instruction, isa.Gemm | isa.Depthwise):
        return 0.0
    widths = isa.WIDTHS[instruction.act_bits] * isa.WIDTHS[instruction.wgt_bits]
    return table.multiply8 * widths / 64 + table.accumulate


def _output_picojoules(instruction: isa.Instruction, table: EnergyTable) -> float:
    if isinstance(instruction, isa.Requantize):
        compared = instruction.rounding == RoundingMode.BORDER
        rounding = table.requantize_multiply if instruction.multiply else table.requantize_shift
        return rounding + compared * table.accumulate
    if isinstance(instruction, isa.Multiply):
        scaled = instruction.mult != 1
        rounding = table.requantize_multiply if scaled else table.requantize_shift
        return table.multiply8 + rounding
    if isinstance(instruction, isa.Add) and (instruction.ma != 1 or instruction.mb != 1):
        return table.requantize_multiply
    if isinstance(instruction, isa.Softmax):
        products = 1 + (instruction.mult != 1)
        return table.accumulate + products * table.requantize_multiply
    if isinstance(instruction, isa.Norm):
        # All codes of a row are added up for each part of it that is written.
        squares = (instruction.cuts + 1) * (table.multiply8 + 2 * table.accumulate)
        products = 2 + (instruction.mult != 1)
        return squares + products * table.requantize_multiply
    return table.requantize_shift
