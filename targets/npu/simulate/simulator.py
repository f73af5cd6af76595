"""What every instruction does, in NumPy: the readable definition of the machine.

    outputs = Simulator(spec).run(program, inputs)

One image, instructions in program order, memories zero at the start. ``executor.py`` is the same
machine compiled by TVM; tests hold the two against each other. Nothing of time is here: see
``timing.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from targets.errors import InputError, TrapError
from targets.npu.machine import isa
from targets.npu.machine.legality import check
from targets.npu.machine.program import Program
from targets.npu.machine.spec import NpuSpec
from targets.npu.simulate.codes import add, lookup, multiply, pool, requantize
from targets.npu.simulate.rows import norm, softmax
from targets.npu.simulate.state import Bytes, Counters, Machine
from targets.npu.simulate.sums import depthwise, gemm

Order: TypeAlias = Callable[[Program, Machine], Iterable[int]]
"""Positions of a program's instructions as they are to be executed; looks at the state as it is."""


def program_order(program: Program, _: Machine) -> Iterable[int]:
    """One after the other, as compiled; ``interleave.py`` has others."""
    return range(len(program.instructions))


class Simulator:
    """The machine of a description.

    Attributes:
        counters: of the last run.
        machine: state at the end of the last run; None before the first.
    """

    def __init__(self, spec: NpuSpec) -> None:
        self.spec = spec
        self.counters = Counters()
        self.machine: Machine | None = None

    def run(
        self,
        program: Program,
        inputs: bytes | npt.NDArray[np.generic],
        order: Order = program_order,
    ) -> Bytes:
        """Execute a program on one image.

        Args:
            program: compiled for this machine.
            inputs: the bytes of region 2.
            order: of the instructions.

        Returns:
            The bytes of region 3.

        Raises:
            InputError: the program is another machine's, or the inputs have the wrong size.
            TrapError: an illegal instruction, a token that never comes, or no HALT.
        """
        if program.digest != self.spec.digest:
            msg = (
                f"the program was compiled for {program.machine} ({program.digest[:12]}), this "
                f"machine is {self.spec.name} ({self.spec.digest[:12]}). Rebuild it for this one."
            )
            raise InputError(msg)
        image = np.frombuffer(inputs if isinstance(inputs, bytes) else inputs.tobytes(), np.uint8)
        if image.size != program.input_bytes:
            msg = f"the program reads {program.input_bytes} input bytes, got {image.size}"
            raise InputError(msg)
        machine = Machine.start(self.spec, program, image)
        self.machine, self.counters = machine, machine.counters
        for index in order(program, machine):
            instruction = program.instructions[index]
            machine.index = index
            check(instruction, self.spec, index, [region.size for region in machine.dram])
            _pop(machine, instruction)
            machine.counters.instructions += 1
            execute(machine, instruction)
            _push(machine, instruction)
            if isinstance(instruction, isa.Halt):
                _check_tokens(machine)
                return machine.dram[3]
        raise TrapError(len(program.instructions), "the program ends without HALT")


def execute(machine: Machine, instruction: isa.Instruction) -> None:
    """Do what an instruction says, tokens left aside; it is legal."""
    _STEPS[type(instruction)](machine, instruction)


def _pop(m: Machine, i: isa.Instruction) -> None:
    for source in range(4):
        if i.pop >> source & 1:
            if m.tokens[source, i.unit] == 0:
                names = isa.UNIT_NAMES[source], isa.UNIT_NAMES[i.unit]
                msg = "no token from {} to {} has been pushed".format(*names)
                raise TrapError(m.index, msg)
            m.tokens[source, i.unit] -= 1


def _push(m: Machine, i: isa.Instruction) -> None:
    for target in range(4):
        m.tokens[i.unit, target] += i.push >> target & 1


def _check_tokens(m: Machine) -> None:
    if m.tokens.any():
        source, target = np.argwhere(m.tokens)[0]
        names = isa.UNIT_NAMES[source], isa.UNIT_NAMES[target]
        msg = "HALT with tokens left from {} to {}".format(*names)
        raise TrapError(m.index, msg)


def _load(m: Machine, i: isa.Load) -> None:
    """LD: rows with their borders, one after the other; or planes that become columns."""
    memory, region = m.memories[i.mem], m.dram[i.region]
    m.counters.loaded += 0 if i.fill else i.z * i.y * i.x_bytes
    if i.transpose:
        for plane, y in np.ndindex(i.z, i.y):
            source = i.dram_off + plane * i.dram_zstride + y * i.dram_ystride
            target = i.spm_addr + y * i.spm_zstride + plane
            rows = np.arange(i.x_bytes) * i.spm_ystride
            memory[target + rows] = region[source : source + i.x_bytes]
        return
    width = i.pad_x0 + i.x_bytes + i.pad_x1
    for plane in range(i.z):
        for row in range(i.pad_y0 + i.y + i.pad_y1):
            target = i.spm_addr + plane * i.spm_zstride + row * i.spm_ystride
            memory[target : target + width] = i.padval
            y = row - i.pad_y0
            if not i.fill and 0 <= y < i.y:
                source = i.dram_off + plane * i.dram_zstride + y * i.dram_ystride
                begin = target + i.pad_x0
                memory[begin : begin + i.x_bytes] = region[source : source + i.x_bytes]


def _store(m: Machine, i: isa.Store) -> None:
    """ST: rows from a memory to DRAM."""
    memory, region = m.memories[i.mem], m.dram[i.region]
    for plane in range(i.z):
        for y in range(i.y):
            source = i.spm_addr + plane * i.spm_zstride + y * i.spm_ystride
            target = i.dram_off + plane * i.dram_zstride + y * i.dram_ystride
            region[target : target + i.x_bytes] = memory[source : source + i.x_bytes]
    m.counters.stored += i.z * i.y * i.x_bytes


def _nothing(_machine: Machine, _instruction: isa.Instruction) -> None:
    """NOP and HALT: tokens only."""


_STEPS: dict[type[isa.Instruction], Callable[[Machine, Any], None]] = {
    isa.Load: _load,
    isa.Store: _store,
    isa.Gemm: gemm,
    isa.Depthwise: depthwise,
    isa.Requantize: requantize,
    isa.Add: add,
    isa.Pool: pool,
    isa.Lut: lookup,
    isa.Multiply: multiply,
    isa.Softmax: softmax,
    isa.Norm: norm,
    isa.Nop: _nothing,
    isa.Halt: _nothing,
}
