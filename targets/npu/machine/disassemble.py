"""A program as text: one line per instruction, under the layer that it belongs to.

Layers that overlap take turns; each turn has its layer's line.

    ; conv2d_1  conv2d  589824 MACs  module layer1.first.0, train.py:52
        17  GEMM  pop LD  push VU  acc_init act_unsigned act_addr=0 wgt_addr=0 m0=16 ...

Fields that have their default value are left out, but for a rounding; memories, regions and
roundings are named.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from targets.npu.machine import isa
from targets.npu.machine.program import Program
from targets.rounding import RoundingMode

_MEMORIES = ("ACT", "WGT", "ACC", "PAR")
_REGIONS = ("constants", "arena", "inputs", "outputs")


def disassemble(program: Program) -> Iterator[str]:
    """The lines of a listing."""
    yield (
        f"; {len(program.instructions)} instructions for {program.machine}; "
        f"{len(program.constants)} bytes of constants, {program.arena_bytes} of arena, "
        f"{program.input_bytes} of inputs, {program.output_bytes} of outputs"
    )
    headings = {begin: span for span in program.layers for begin, _ in span.runs}
    for index, instruction in enumerate(program.instructions):
        if index in headings:
            span = headings[index]
            yield f"; {span.name}  {span.kind}  {span.macs} MACs  {span.source}".rstrip()
        yield f"{index:6}  {instruction_text(instruction)}"


def instruction_text(instruction: isa.Instruction) -> str:
    """One instruction: mnemonic, tokens, flags that are set, fields that are not the default."""
    words = [f"{instruction.mnemonic:<5}"]
    for way in ("pop", "push"):
        mask = getattr(instruction, way)
        units = [name for unit, name in enumerate(isa.UNIT_NAMES) if mask >> unit & 1]
        words += [f"{way} {','.join(units)} "] if units else []
    for item in fields(instruction):
        value = getattr(instruction, item.name)
        if item.name in ("pop", "push") or (value == item.default and item.name != "rounding"):
            continue
        words.append(_field(item.name, value, is_flag=item.metadata["width"] == 1))
    return " ".join(words).rstrip()


def _field(name: str, value: int, *, is_flag: bool) -> str:
    if name == "mem":
        return _MEMORIES[value]
    if name == "region":
        return _REGIONS[value]
    if name == "rounding":
        return f"rounding={RoundingMode(value).name}"
    if is_flag and value == 1:
        return name
    return f"{name}={value}"
