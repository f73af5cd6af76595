"""LD and ST in the compiled executor."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

from tvm import tirx
from tvm.tirx.script import builder as T

from targets.npu.execute.memory import Expr, State, each, i32, i64, when

_ACT, _WGT, _ACC, _PAR = range(4)
_CONSTANTS, _ARENA, _INPUTS, _OUTPUTS = range(4)
_Put = Callable[[Expr, Expr], None]
_Get = Callable[[Expr], Expr]


def load(state: State, i: SimpleNamespace) -> None:
    """LD: rows with their borders, one after the other; or planes that become columns."""
    base = T.bind(_base(state, i.mem))
    for is_acc, put in ((0, _put_byte(state, base)), (1, _put_acc(state))):
        there = tirx.Cast("int32", i.mem == _ACC) == is_acc
        with (
            when(tirx.all(there, i.transpose == 0)),
            T.serial(0, i.z) as plane,
            T.serial(0, i.pad_y0 + i.y + i.pad_y1) as row,
        ):
            _load_row(state, i, is_acc, put, plane, row)
        with (
            when(tirx.all(there, i.transpose == 1)),
            T.serial(0, i.z) as plane,
            T.serial(0, i.y) as y,
        ):
            _load_column(state, i, put, plane, y)


def _load_column(state: State, i: SimpleNamespace, put: _Put, plane: Expr, y: Expr) -> None:
    target = T.bind(i.spm_addr + y * i.spm_zstride + plane)
    source = T.bind(_dram(i, plane, y))
    for region, get in enumerate(_readers(state)):
        with when(i.region == region), T.serial(0, i.x_bytes) as x:
            put(target + x * i.spm_ystride, get(source + x))


def _load_row(
    state: State, i: SimpleNamespace, is_acc: int, put: _Put, plane: Expr, row: Expr
) -> None:
    pad = T.bind(tirx.Cast("int8", i.padval))
    target = T.bind(i.spm_addr + plane * i.spm_zstride + row * i.spm_ystride)
    y = T.bind(row - i.pad_y0)

    def border(count: Expr, start: Expr) -> None:
        _run(is_acc, count, lambda n: put(start + n, pad))

    def copy(get: _Get, start: Expr, source: Expr) -> None:
        _run(is_acc, i.x_bytes, lambda n: put(start + n, get(source + n)))

    with T.If(tirx.any(i.fill == 1, y < 0, y >= i.y)):
        with T.Then():
            border(i.pad_x0 + i.x_bytes + i.pad_x1, target)
        with T.Else():
            border(i.pad_x0, target)
            begin = T.bind(target + i.pad_x0)
            source = T.bind(_dram(i, plane, y))
            for region, get in enumerate(_readers(state)):
                with when(i.region == region):
                    copy(get, begin, source)
            border(i.pad_x1, T.bind(begin + i.x_bytes))


def store(state: State, i: SimpleNamespace) -> None:
    """ST: rows from a memory to DRAM."""
    base = T.bind(_base(state, i.mem))

    def from_bytes(at: Expr) -> Expr:
        return state.mem[base + at]

    for is_acc, get in ((0, from_bytes), (1, _get_acc(state))):
        for region, put in ((_ARENA, _put_arena(state)), (_OUTPUTS, _put_output(state))):
            chosen = tirx.all(tirx.Cast("int32", i.mem == _ACC) == is_acc, i.region == region)
            with when(chosen), T.serial(0, i.z) as plane, T.serial(0, i.y) as y:
                _store_row(i, is_acc, get, put, plane, y)


def _store_row(i: SimpleNamespace, is_acc: int, get: _Get, put: _Put, plane: Expr, y: Expr) -> None:
    source = T.bind(i.spm_addr + plane * i.spm_zstride + y * i.spm_ystride)
    target = T.bind(_dram(i, plane, y))
    _run(is_acc, i.x_bytes, lambda n: put(target + n, get(source + n)))


def _run(is_acc: int, count: Expr, body: Callable[[Expr], None]) -> None:
    """Bytes in vectors; bytes of ACC one by one, since four share a word."""
    if is_acc:
        with T.serial(0, count) as n:
            body(n)
    else:
        each(count, body)


def _base(state: State, mem: Expr) -> Expr:
    par = tirx.Select(mem == _PAR, i32(state.areas.par), i32(0))
    return tirx.Select(mem == _WGT, i32(state.areas.wgt), par)


def _dram(i: SimpleNamespace, plane: Expr, y: Expr) -> Expr:
    # Legal transfers end inside their region, and a region's size fits 31 bits.
    offset = i.dram_off + i64(plane) * i64(i.dram_zstride) + i64(y) * i64(i.dram_ystride)
    return tirx.Cast("int32", offset)


def _readers(state: State) -> list[_Get]:
    return [
        lambda at: state.constants[i64(at)],
        lambda at: state.mem[state.areas.arena + at],
        lambda at: state.inputs[state.image, i64(at)],
        lambda at: state.outputs[state.image, i64(at)],
    ]


def _put_byte(state: State, base: Expr) -> _Put:
    return lambda at, value: T.buffer_store(state.mem, value, [base + at])


def _put_arena(state: State) -> _Put:
    return lambda at, value: T.buffer_store(state.mem, value, [state.areas.arena + at])


def _put_output(state: State) -> _Put:
    return lambda at, value: T.buffer_store(state.outputs, value, [state.image, i64(at)])


def _put_acc(state: State) -> _Put:
    def put(at: Expr, value: Expr) -> None:
        word, shift = at >> 2, (at & 3) * 8
        cleared = state.acc[word] & ~(i32(255) << shift)
        T.buffer_store(state.acc, cleared | ((i32(value) & 255) << shift), [word])

    return put


def _get_acc(state: State) -> _Get:
    return lambda at: tirx.Cast("int8", state.acc[at >> 2] >> ((at & 3) * 8))
