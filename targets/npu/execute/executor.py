"""The machine as one TIR function that decodes and executes the words of a program.

Compiled by TVM it is what an artifact runs: no Python, the very binary that the NPU would load. It
depends on the machine and on nothing of the network, so it is compiled once per machine
(``compiled.py``). ``targets/npu/simulate`` says what each instruction means; the files of this room
say it again for speed, and tests hold the two together.

    for each image, in parallel
        while running
            decode -> unused bits and rules (legality.py) -> pop tokens -> execute -> push tokens
    where an image trapped: fail, naming program, instruction and reason

A bad instruction stops its image and leaves a trap code (``TRAPS``) and the instruction's index.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from targets.npu.execute import codes as executor_codes
from targets.npu.execute import dma as executor_dma
from targets.npu.execute import rows as executor_rows
from targets.npu.execute import sums as executor_sums
from targets.npu.execute.memory import (
    HALTED,
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
from targets.npu.execute.traps import (
    ILLEGAL,
    NO_HALT,
    NO_TOKEN,
    SET_ERROR,
    TRAPPED,
    TRAPS,
)
from targets.npu.machine import isa
from targets.npu.machine.legality import rules
from targets.npu.machine.spec import NpuSpec


def make_executor(spec: NpuSpec, name: str, *, vnni: bool) -> tirx.PrimFunc:
    """The machine's interpreter, as a function that writes its last argument.

    Args:
        spec: the machine.
        name: of the function.
        vnni: whether the target has 512-bit dot products of bytes.

    Returns:
        A function of (number, program int32[n, 8], constants int8[nc], arena_bytes, inputs
        int8[batch, ni], outputs int8[batch, no]), which raises a RuntimeError, a ``Trap`` in words
        with the number that it was given, where an image trapped.
    """
    areas = Areas.of(spec, executor_sums.block_pixels(spec))
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(name)
            T.func_attr({"global_symbol": name})
            number = T.arg("number", tirx.Var("number", "int64"))
            handles = [T.arg(x, T.handle()) for x in ("program", "constants")]
            arena_bytes = T.arg("arena_bytes", tirx.Var("arena_bytes", "int64"))
            handles += [T.arg(x, T.handle()) for x in ("inputs", "outputs")]
            n, nc, batch, ni, no = (tirx.Var(x, "int64") for x in ("n", "nc", "batch", "ni", "no"))
            program = T.match_buffer(handles[0], (n, 8), "int32")
            constants = T.match_buffer(handles[1], (nc,), "int8")
            inputs = T.match_buffer(handles[2], (batch, ni), "int8")
            outputs = T.match_buffer(handles[3], (batch, no), "int8")
            with T.sblock("root"):
                trap = T.sblock_alloc_buffer((batch, 2), "int32")
                with T.parallel(0, batch) as b, T.sblock("image"):
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
                        mem=T.sblock_alloc_buffer((areas.arena + arena_bytes,), "int8"),
                        acc=T.sblock_alloc_buffer((spec.sram.acc.bytes // 4,), "int32"),
                        rows=T.sblock_alloc_buffer((spec.acc_rows,), "int32"),
                        registers=T.sblock_alloc_buffer((4,), "int32"),
                        tokens=T.sblock_alloc_buffer((16,), "int32"),
                    )
                    _reset(state, no)
                    with T.While(state.code == 0):
                        _step(state, n, [nc, arena_bytes, ni, no])
                    trapped = state.code > 0
                    T.buffer_store(trap, tirx.Select(trapped, state.code, i32(0)), [image, 0])
                    T.buffer_store(trap, tirx.Select(trapped, state.pc, i32(0)), [image, 1])
                with T.sblock("trap"):
                    T.reads(trap[0:batch, 0:2])
                    T.writes()
                    text = T.sblock_alloc_buffer((256,), "int8")
                    with T.serial(0, batch) as at:
                        _raise_trap(number, trap[at, 0], trap[at, 1], text)
        return builder.get()


def _raise_trap(number: Expr, code: Expr, index: Expr, text: tirx.Buffer) -> None:
    """Return with a RuntimeError if ``code`` is one of ``TRAPS``.

    A TIR assertion's message can't hold numbers, so the C library writes it into ``text``.
    """
    for trap, reason in TRAPS.items():
        with when(code == trap):
            told = (TRAPPED + reason, tirx.Cast("int32", number), index)
            T.evaluate(tirx.call_extern("int32", "snprintf", text.data, i64(256), *told))
            T.evaluate(tirx.call_extern("int32", SET_ERROR, "RuntimeError", text.data))
            T.evaluate(tirx.tvm_throw_last_error())


def _reset(state: State, output_bytes: Expr) -> None:
    """Memories, tokens and registers zero."""
    for buffer in (state.mem, state.acc, state.registers, state.tokens):
        with T.serial(0, buffer.shape[0]) as at:
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
    isa.Multiply: executor_codes.multiply,
    isa.Softmax: executor_rows.softmax,
    isa.Norm: executor_rows.norm,
}
