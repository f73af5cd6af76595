"""The machine as one TVM function: it decodes and executes the very words that the NPU would load.

Compiled with the rest of a model it needs neither Python nor a C compiler at run time. It executes in program order;
that the units' tokens make any interleaving equal to that order is for ``tokens`` to derive and ``cycles`` to use.
Meaning: ``simulator``. Legality: ``check``, the same rules as the compiler's and the simulator's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T  # noqa: N812

from targets.cpu.host import CpuFeatures, host_target
from targets.errors import InputError, TrapError
from targets.npu import execute_matrix, execute_requantize, isa
from targets.npu.check import check, rules
from targets.npu.execute_base import (
    Buffer,
    Expr,
    Machine,
    decode_fields,
    i32,
    i64,
    load,
    memory_bytes,
    otherwise,
    pick,
    store,
    unused_bits,
    when,
)
from targets.npu.execute_dma import emit_load, emit_store, fill_row
from targets.npu.execute_vector import emit_add, emit_lut, emit_pool
from targets.npu.program import Program
from targets.npu.spec import NpuSpec

_PC, _RUNNING, _TRAPPED = range(3)
_TOKENS = 8
"""Where the token counts begin in the state: 4 x 4, from unit and to unit."""
_UNITS = 4

Emit = Callable[[Machine, Any], None]
_EMIT: dict[type[isa.Instruction], Emit] = {
    isa.Gemm: execute_matrix.emit_gemm,
    isa.Load: emit_load,
    isa.Requantize: lambda m, f: execute_requantize.emit_requantize(m, f, lambda: _trap(m)),
    isa.Depthwise: execute_matrix.emit_depthwise,
    isa.Store: emit_store,
    isa.Add: emit_add,
    isa.Pool: emit_pool,
    isa.Lut: emit_lut,
    isa.Nop: lambda _m, _f: None,
    isa.Halt: lambda m, _f: _halt(m),
}
"""What executes each kind; the order is that of the comparisons."""


def make_executor(
    spec: NpuSpec, arena_bytes: int, *, vnni: bool | None = None, name: str = "npu_execute"
) -> tirx.PrimFunc:
    """The machine's interpreter.

    Args:
        spec: the machine.
        arena_bytes: size of region 1, of which each image has its own.
        vnni: whether the target has 512-bit byte dot products; None asks the host.
        name: its global symbol.

    Returns:
        A function of (program int32[n, 8], constants int8[nc], inputs int8[batch, ni], outputs int8[batch, no],
        trap int32[batch, 2]). ``trap`` becomes (0, instructions executed) or (1, index of the illegal one).
    """
    if vnni is None:
        vnni = CpuFeatures.of(host_target()).vnni
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(name)
            T.func_attr({"global_symbol": name, "tirx.noalias": True})
            handles = [T.arg(p, T.handle()) for p in ("program", "constants", "inputs", "outputs", "trap")]
            length, constants, batch, ins, outs = (
                tirx.Var(v, "int64") for v in ("length", "constant_bytes", "batch", "ni", "no")
            )
            words = T.match_buffer(handles[0], (length, 8), "int32")
            blob = T.match_buffer(handles[1], (constants,), "int8")
            inputs = T.match_buffer(handles[2], (batch, ins), "int8")
            outputs = T.match_buffer(handles[3], (batch, outs), "int8")
            trap = T.match_buffer(handles[4], (batch, 2), "int32")
            with T.sblock("root"), T.parallel(0, batch) as image:
                mem = T.alloc_buffer((memory_bytes(spec) + execute_matrix.scratch_bytes(spec),), "int8")
                arena = T.alloc_buffer((max(arena_bytes, 1),), "int8")
                sizes = {**execute_matrix.table_sizes(spec), **execute_requantize.table_sizes(spec)}
                tables = {n: T.alloc_buffer((size,), "int64") for n, size in sizes.items()}
                state = T.alloc_buffer((_TOKENS + _UNITS * _UNITS,), "int64")
                machine = Machine(
                    spec=spec,
                    mem=mem,
                    regions=((blob, ()), (arena, ()), (inputs, (image,)), (outputs, (image,))),
                    region_bytes=(constants, arena_bytes, ins, outs),
                    tables=tables,
                    state=state,
                    vnni=vnni,
                )
                fill_row(machine, i64(0), tirx.IntImm("int8", 0), i64(memory_bytes(spec)))
                with T.serial(i64(0), i64(arena_bytes)) as n:
                    store(arena, n, tirx.IntImm("int8", 0), 1)
                with T.serial(i64(0), i64(_TOKENS + _UNITS * _UNITS)) as n:
                    store(state, n, i64(0), 1)
                store(state, i64(_RUNNING), i64(1), 1)
                with T.While(load(state, i64(_RUNNING), "int64", 1) > 0):
                    _step(machine, words, length)
                T.buffer_store(trap, tirx.Cast("int32", load(state, i64(_TRAPPED), "int64", 1)), [image, 0])
                T.buffer_store(trap, tirx.Cast("int32", load(state, i64(_PC), "int64", 1)), [image, 1])
        return builder.get()


def _step(machine: Machine, program: Buffer, length: Expr) -> None:
    """One instruction, or the trap of a program that ends without HALT."""
    pc = T.bind(load(machine.state, i64(_PC), "int64", 1))
    with T.If(pc >= length):
        with T.Then():
            _trap(machine)
        with otherwise():
            words = []
            for n in range(8):
                word = tirx.Cast("int64", program[pc, n])
                words.append(T.bind(word & i64(0xFFFFFFFF)))
            opcode = T.bind(words[0] & 0xFF)
            _dispatch(machine, words, opcode, list(_EMIT))
            with when(tirx.EQ(load(machine.state, i64(_TRAPPED), "int64", 1), 0)):
                store(machine.state, i64(_PC), pc + 1, 1)


def _dispatch(
    machine: Machine, words: list[Expr], opcode: Expr, kinds: list[type[isa.Instruction]]
) -> None:
    if not kinds:
        _trap(machine)
        return
    with T.If(tirx.EQ(opcode, kinds[0].opcode)):
        with T.Then():
            _execute(machine, words, kinds[0])
        with otherwise():
            _dispatch(machine, words, opcode, kinds[1:])


def _execute(machine: Machine, words: list[Expr], kind: type[isa.Instruction]) -> None:
    f = decode_fields(kind, words)
    checks = [holds for holds, _ in rules(kind, f, machine.spec, machine.region_bytes, pick)]
    unit = f.on if kind is isa.Nop else i64(int(kind.unit))  # type: ignore[call-overload]
    legal = tirx.all(tirx.EQ(unused_bits(kind, words), 0), *checks)
    with T.If(legal):
        with T.Then():
            _tokens(machine, f.pop, f.push, unit, taken=True)
            with when(tirx.EQ(load(machine.state, i64(_TRAPPED), "int64", 1), 0)):
                _tokens(machine, f.pop, f.push, unit, taken=False)
                _EMIT[kind](machine, f)
        with otherwise():
            _trap(machine)


def _tokens(machine: Machine, pop: Expr, push: Expr, unit: Expr, *, taken: bool) -> None:
    """Take the tokens that the instruction pops, trapping where there is none; or add those that it pushes."""
    for other in range(_UNITS):
        at = _TOKENS + (other * _UNITS + unit if taken else unit * _UNITS + other)
        old = load(machine.state, at, "int64", 1)
        if not taken:
            store(machine.state, at, old + ((push >> other) & 1), 1)
            continue
        store(machine.state, at, old - ((pop >> other) & 1), 1)
        with when(load(machine.state, at, "int64", 1) < 0):
            _trap(machine)


def _halt(machine: Machine) -> None:
    store(machine.state, i64(_RUNNING), i64(0), 1)
    for n in range(_UNITS * _UNITS):
        with when(load(machine.state, i64(_TOKENS + n), "int64", 1) > 0):
            _trap(machine)


def _trap(machine: Machine) -> None:
    store(machine.state, i64(_RUNNING), i64(0), 1)
    store(machine.state, i64(_TRAPPED), i64(1), 1)


class Executor:
    """A program ready to run on this machine."""

    def __init__(self, spec: NpuSpec, program: Program) -> None:
        self.program, self.spec = program, spec
        module = tvm.IRModule({"npu_execute": make_executor(spec, program.arena_bytes)})
        self._run = tvm.compile(module, target=host_target())["npu_execute"]
        self._words = tvm.runtime.tensor(np.ascontiguousarray(program.words(), np.int32))
        self._constants = tvm.runtime.tensor(np.frombuffer(program.constants or bytes(1), np.int8))

    def run(self, inputs: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Execute the program on a batch.

        Args:
            inputs: uint8 [batch, input_bytes], one row per image.

        Returns:
            uint8 [batch, output_bytes].

        Raises:
            InputError: the input has another shape.
            TrapError: an instruction is illegal.
        """
        program = self.program
        if inputs.ndim != 2 or inputs.shape[1] != program.input_bytes:
            msg = f"inputs: expected [batch, {program.input_bytes}] bytes, got shape {inputs.shape}"
            raise InputError(msg)
        batch = len(inputs)
        codes = tvm.runtime.tensor(np.ascontiguousarray(inputs, np.uint8).view(np.int8))
        outputs = tvm.runtime.tensor(np.zeros((batch, program.output_bytes), np.int8))
        trap = tvm.runtime.tensor(np.zeros((batch, 2), np.int32))
        self._run(self._words, self._constants, codes, outputs, trap)
        for trapped, index in trap.numpy():
            if trapped:
                raise TrapError(int(index), self._reason(int(index)))
        return outputs.numpy().view(np.uint8)

    def _reason(self, index: int) -> str:
        """Why an instruction trapped; tokens and records are not visible from outside."""
        program = self.program
        if index >= len(program.instructions):
            return "the program ends without HALT"
        regions = (
            max(len(program.constants), 1),
            program.arena_bytes,
            program.input_bytes,
            program.output_bytes,
        )
        reason = check(program.instructions[index], self.spec, regions)
        return reason or "a token or a parameter record is illegal"
