"""The machine as one TIR function that decodes and executes the words of a program.

Compiled by TVM it is what an artifact runs: no Python, the very binary that the NPU would load.
``targets/npu/simulate`` says what each instruction means; the files of this room say it
again for speed, and tests hold the two together.

    for each image, in parallel
        while running
            decode -> unused bits and rules (legality.py) -> pop tokens -> execute -> push tokens

A bad instruction stops its image and leaves a trap code (``TRAPS``) and the instruction's index.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from targets.cpu.host import CpuFeatures, host_target
from targets.errors import InputError, TrapError
from targets.npu.execute import codes as executor_codes
from targets.npu.execute import dma as executor_dma
from targets.npu.execute import sums as executor_sums
from targets.npu.execute.memory import (
    BAD_RECORD,
    HALTED,
    ILLEGAL,
    NO_HALT,
    NO_TOKEN,
    NOT_HELD,
    Areas,
    Expr,
    State,
    i32,
    i64,
    read_fields,
    unused_bits,
    when,
    widened,
)
from targets.npu.machine import isa
from targets.npu.machine.legality import rules
from targets.npu.machine.program import Program
from targets.npu.machine.spec import NpuSpec

TRAPS = {
    ILLEGAL: "illegal instruction",
    NO_TOKEN: "a token that was never pushed, or tokens left at HALT",
    BAD_RECORD: "REQ with an illegal parameter record",
    NOT_HELD: "GEMM on held weights, and the array holds none of these widths",
    NO_HALT: "the program ends without HALT",
}
"""Trap code -> what it means; 0 is no trap."""


def make_executor(spec: NpuSpec, arena_bytes: int, *, vnni: bool | None = None) -> tirx.PrimFunc:
    """The machine's interpreter, as a function that ``relax.call_tir`` can call.

    Args:
        spec: the machine.
        arena_bytes: size of region 1, at least the program's.
        vnni: whether the target has 512-bit dot products of bytes; None asks the host.

    Returns:
        A function of (program int32[n, 8], constants int8[nc], inputs int8[batch, ni], outputs
        int8[batch, no], trap int32[batch, 2]); the last two are written. A row of ``trap`` is
        (code, index), zeros where all went well.
    """
    if vnni is None:
        vnni = CpuFeatures.of(host_target()).vnni
    areas = Areas.of(spec, arena_bytes, executor_sums.block_pixels(spec))
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
            with T.sblock("root"), T.parallel(0, batch) as b, T.sblock("image"):
                image = T.axis.spatial(batch, b)
                T.reads(program[0:n, 0:8], constants[0:nc], inputs[image, 0:ni])
                T.writes(outputs[image, 0:no], trap[image, 0:2])
                state = State(
                    spec=spec,
                    areas=areas,
                    program=program,
                    constants=constants,
                    inputs=inputs,
                    outputs=outputs,
                    image=image,
                    vnni=vnni,
                    mem=T.sblock_alloc_buffer((areas.size,), "int8"),
                    acc=T.sblock_alloc_buffer((spec.sram.acc.bytes // 4,), "int32"),
                    rows=T.sblock_alloc_buffer((spec.acc_rows,), "int32"),
                    registers=T.sblock_alloc_buffer((4,), "int32"),
                    tokens=T.sblock_alloc_buffer((16,), "int32"),
                )
                _reset(state, no)
                with T.While(state.code == 0):
                    _step(state, n, [nc, i64(arena_bytes), ni, no])
                trapped = state.code > 0
                T.buffer_store(trap, tirx.Select(trapped, state.code, i32(0)), [image, 0])
                T.buffer_store(trap, tirx.Select(trapped, state.pc, i32(0)), [image, 1])
        return builder.get()


def _reset(state: State, output_bytes: Expr) -> None:
    """Memories, tokens and registers zero."""
    for buffer in (state.mem, state.acc, state.registers, state.tokens):
        with T.serial(0, int(buffer.shape[0])) as at:
            T.buffer_store(buffer, tirx.IntImm(buffer.dtype, 0), [at])
    with T.serial(0, output_bytes) as at:
        T.buffer_store(state.outputs, tirx.IntImm("int8", 0), [state.image, at])


def _step(state: State, length: Expr, region_bytes: list[Expr]) -> None:
    """One instruction; where it does not trap, on to the next."""
    pc = T.bind(state.pc)
    with T.If(i64(pc) >= length):
        with T.Then():
            state.stop(NO_HALT)
        with T.Else():
            opcode = T.bind(state.program[pc, 0] & 255)
            state.set_known(0)
            for kind in isa.KINDS:
                with when(opcode == kind.opcode):
                    state.set_known(1)
                    _execute(kind, state, pc, region_bytes)
            with when(state.known == 0):
                state.stop(ILLEGAL)
            with when(state.code == 0):
                state.go_to(pc + 1)


def _execute(kind: type[isa.Instruction], state: State, pc: Expr, region_bytes: list[Expr]) -> None:
    fields = read_fields(kind, state, pc)
    illegal: Expr = unused_bits(kind, state, pc) != 0
    for _, margin in rules(kind, widened(fields), state.spec, region_bytes):
        illegal = tirx.any(illegal, margin < 0)
    with when(illegal):
        state.stop(ILLEGAL)
    unit: Any = fields.on if kind is isa.Nop else kind.unit
    with when(state.code == 0):
        _pop(state, fields, unit)
    if kind in _STEPS:
        with when(state.code == 0):
            _STEPS[kind](state, fields)
    with when(state.code == 0):
        _push(state, fields, unit)
        if kind is isa.Halt:
            state.stop(HALTED)
            with T.serial(0, 16) as pair, when(state.tokens[pair] != 0):
                state.stop(NO_TOKEN)


def _pop(state: State, fields: SimpleNamespace, unit: Expr) -> None:
    for source in range(4):
        pair = source * 4 + unit
        with when((fields.pop >> source) & 1 == 1):
            with when(state.tokens[pair] == 0):
                state.stop(NO_TOKEN)
            T.buffer_store(state.tokens, state.tokens[pair] - 1, [pair])


def _push(state: State, fields: SimpleNamespace, unit: Expr) -> None:
    for target in range(4):
        pair = unit * 4 + target
        T.buffer_store(state.tokens, state.tokens[pair] + ((fields.push >> target) & 1), [pair])


_STEPS: dict[type[isa.Instruction], Callable[[State, SimpleNamespace], None]] = {
    isa.Load: executor_dma.load,
    isa.Store: executor_dma.store,
    isa.Gemm: executor_sums.gemm,
    isa.Depthwise: executor_sums.depthwise,
    isa.Requantize: executor_codes.requantize,
    isa.Add: executor_codes.add,
    isa.Pool: executor_codes.pool,
    isa.Lut: executor_codes.lookup,
}


class Executor:
    """The compiled machine, callable from Python."""

    def __init__(self, spec: NpuSpec, arena_bytes: int = 0) -> None:
        self.spec, self.arena_bytes = spec, arena_bytes

    @cached_property
    def _function(self) -> Any:
        return tvm.compile(make_executor(self.spec, self.arena_bytes), target=host_target())

    def run(self, program: Program, inputs: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
        """Execute a program on a batch of images.

        Args:
            program: compiled for this machine, with no larger arena.
            inputs: int8 or uint8[batch, input_bytes].

        Returns:
            uint8[batch, output_bytes].

        Raises:
            InputError: another machine's program, or too large an arena.
            TrapError: with the instruction's index, of the first image that trapped.
        """
        if program.digest != self.spec.digest or program.arena_bytes > self.arena_bytes:
            msg = (
                f"the executor is of {self.spec.name} with {self.arena_bytes} bytes of arena, the "
                f"program of {program.machine} with {program.arena_bytes}. Make one for it."
            )
            raise InputError(msg)
        constants = np.frombuffer(program.constants or bytes(1), np.int8)
        return self.run_words(program.words(), constants, inputs, program.output_bytes)

    def run_words(
        self,
        words: npt.NDArray[np.int32],
        constants: npt.NDArray[np.int8],
        inputs: npt.NDArray[np.generic],
        output_bytes: int,
    ) -> npt.NDArray[np.uint8]:
        """The same for encoded instructions, int32[n, 8]."""
        batch = inputs.shape[0]
        outputs = tvm.runtime.tensor(np.zeros((batch, output_bytes), np.int8))
        trap = tvm.runtime.tensor(np.zeros((batch, 2), np.int32))
        arguments = [tvm.runtime.tensor(x) for x in (words, constants, inputs.view(np.int8))]
        self._function(*arguments, outputs, trap)
        for code, index in trap.numpy():
            if code:
                raise TrapError(int(index), TRAPS[int(code)])
        return outputs.numpy().view(np.uint8)
