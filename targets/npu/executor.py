"""The machine as a TVM function: it decodes and executes the very binary that the artifact stores.

Compiled into ``model.so`` it needs nothing but the TVM runtime. Images run in parallel, each with
scratchpads and arena of its own. The readable definition of every instruction is ``simulator.py``;
tests hold the two against each other. An illegal instruction stops its image and leaves its index.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from targets.cpu.host import host_target
from targets.errors import TrapError
from targets.npu import executor_units as units
from targets.npu import isa
from targets.npu.executor_state import Fields, Machine, field
from targets.npu.program import Program
from targets.npu.spec import NpuSpec

RUNNING, HALTED, TRAPPED = range(3)
"""First word of ``trap`` while an image runs, after HALT, after an illegal instruction."""

_UNITS = (
    (isa.Load, units.load),
    (isa.Store, units.store),
    (isa.Gemm, units.gemm),
    (isa.Depthwise, units.depthwise),
    (isa.Requantize, units.requantize),
    (isa.Add, units.add),
    (isa.Pool, units.pool),
    (isa.Lut, units.lut),
)


def make_executor(spec: NpuSpec, arena_bytes: int) -> tirx.PrimFunc:
    """Build the function that executes a program.

    Args:
        spec: the machine; its sizes are compiled in.
        arena_bytes: size of region 1.

    Returns:
        A function of (program int32[n, 8], constants int8[nc], inputs int8[batch, ni],
        outputs int8[batch, no], trap int32[batch, 2]); it writes the last two. ``trap`` is
        (HALTED, instructions executed) or (TRAPPED, index of the illegal one).
    """
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("npu_execute")
            names = ("program", "constants", "inputs", "outputs", "trap")
            handles = [T.arg(name, T.handle()) for name in names]
            n, nc, batch, ni, no = (tirx.Var(x, "int64") for x in ("n", "nc", "batch", "ni", "no"))
            program = T.match_buffer(handles[0], (n, 8), "int32")
            constants = T.match_buffer(handles[1], (nc,), "int8")
            inputs = T.match_buffer(handles[2], (batch, ni), "int8")
            outputs = T.match_buffer(handles[3], (batch, no), "int8")
            trap = T.match_buffer(handles[4], (batch, 2), "int32")
            with T.sblock("root"), T.parallel(0, batch) as image, T.sblock("image"):
                at = T.axis.spatial((0, batch), image)
                T.reads(program[0:n, 0:8], constants[0:nc], inputs[at : at + 1, 0:ni])
                T.writes(outputs[at : at + 1, 0:no], trap[at : at + 1, 0:2])
                machine = Machine(spec, arena_bytes, constants, inputs, outputs, at)
                T.buffer_store(trap, RUNNING, [at, 0])
                with T.serial(0, n) as i, T.If(trap[at, 0] == RUNNING), T.Then():
                    _step(machine, program, trap, at, i)
        return builder.get()


def _step(machine: Machine, program: Any, trap: Any, image: Any, i: Any) -> None:
    """Execute instruction ``i``, or trap."""
    opcode = T.Bind(field(program, i, 0, 8))
    T.buffer_store(trap, TRAPPED, [image, 0])  # until a unit takes the instruction
    T.buffer_store(trap, tirx.Cast("int32", i), [image, 1])
    for kind, execute in _UNITS:
        with T.If(opcode == kind.opcode), T.Then():
            fields = Fields(program, i, kind)
            with T.If(units.legal(machine, kind, fields)), T.Then():
                T.buffer_store(trap, RUNNING, [image, 0])
                execute(machine, fields)
    with T.If(opcode == isa.Nop.opcode), T.Then():
        T.buffer_store(trap, RUNNING, [image, 0])
    with T.If(opcode == isa.Halt.opcode), T.Then():
        T.buffer_store(trap, HALTED, [image, 0])


class Executor:
    """A program on this host, outside of any network; what tests and tools use."""

    def __init__(self, spec: NpuSpec, program: Program) -> None:
        self._run = tvm.compile(make_executor(spec, program.arena_bytes), target=host_target())
        self._program = program

    def run(self, inputs: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Execute the program on a batch.

        Args:
            inputs: uint8[batch, input_bytes].

        Returns:
            uint8[batch, output_bytes].

        Raises:
            TrapError: an instruction is illegal.
        """
        batch = len(inputs)
        outputs = tvm.runtime.tensor(np.zeros((batch, self._program.output_bytes), np.int8))
        trap = tvm.runtime.tensor(np.zeros((batch, 2), np.int32))
        constants = np.frombuffer(self._program.constants or bytes(1), np.int8)
        arguments = (self._program.words(), constants, np.ascontiguousarray(inputs).view(np.int8))
        self._run(*[tvm.runtime.tensor(a) for a in arguments], outputs, trap)
        for state, index in trap.numpy():
            if state != HALTED:
                raise TrapError(int(index), "illegal instruction, or no HALT")
        return np.asarray(outputs.numpy()).view(np.uint8)
