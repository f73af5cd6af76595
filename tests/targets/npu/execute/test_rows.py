"""SOFTMAX and NORM: the compiled executor against the simulator, and both against plain Python."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest

from targets.errors import TrapError
from targets.npu.execute.compiled import Executor
from targets.npu.machine import isa
from targets.npu.machine.legality import check
from targets.npu.machine.program import Program
from targets.npu.machine.spec import load_spec
from targets.npu.simulate.simulator import Simulator
from targets.rows import exponentials

ACT, OUT = 12000, 16384
TABLE_AT, NORM_AT = 64, 640
"""Bytes of PAR at which a program's table and factors lie."""
BYTES = {"any": np.arange(256), "extreme": np.array([0, 127, 128, 255]), "one": np.array([200])}


@pytest.fixture(scope="module", params=("e256", "m2048"))
def machine(request):
    spec = load_spec(request.param)
    return spec, Executor(spec), Simulator(spec)


def softmax_block(table) -> bytes:
    return np.asarray(table).astype("<u2").tobytes()


def norm_block(epsilon: int, bias, gain) -> bytes:
    parts = (np.array([epsilon], "<u8"), np.asarray(bias, "<i4"), np.asarray(gain, "<i2"))
    return b"".join(part.tobytes() for part in parts)


def program(spec, body, table: bytes, factors: bytes = b"") -> Program:
    """Load ACT and the parameters, run ``body``, store ACT."""
    constants = table + factors
    loads = [isa.Load(mem=0, region=2, x_bytes=ACT)]
    if table:
        loads.append(isa.Load(mem=3, region=0, spm_addr=TABLE_AT, x_bytes=len(table)))
    if factors:
        place = {"spm_addr": NORM_AT, "dram_off": len(table), "x_bytes": len(factors)}
        loads.append(isa.Load(mem=3, region=0, **place))
    code = (*loads, *body, isa.Store(mem=0, region=3, x_bytes=OUT), isa.Halt())
    return Program(spec.name, spec.digest, code, constants, 0, ACT, OUT, ())


def rows(kind, rng, **fields):
    """A legal instruction on rows anywhere in the first half of what was loaded."""
    r = lambda low, high: int(rng.integers(low, high + 1))  # noqa: E731
    unsigned, shift = r(0, 1), r(0, 47)
    limits = (0, 255) if unsigned else (-128, 127)
    low, high = limits if r(0, 1) else sorted((r(*limits), r(*limits)))
    place = {"par_addr": (TABLE_AT if kind is isa.Softmax else NORM_AT) // 4}
    made = kind(
        in_unsigned=r(0, 1),
        out_unsigned=unsigned,
        rounding=r(0, 1),
        src_addr=r(0, 99),
        dst_addr=r(8000, 8999),
        m0=r(1, 4),
        m1=r(1, 3),
        ss_m0=r(0, 200),
        ss_m1=r(0, 900),
        ds_m0=r(0, 200),
        ds_m1=r(0, 900),
        frac=r(0, 15) if r(0, 1) else 0,
        mult=r(0, 65535) if r(0, 1) else 1,
        shift=shift,
        zp=r(0, 255),
        lo=low & 255,
        hi=high & 255,
        **place,
        **fields,
    )
    assert isa.fits(made)
    return made


def sums_of_softmax(codes: list[int], table: list[int]) -> list[int]:
    """Division and shifts in Python's integers, which have no width."""
    top = max(codes)
    e = [table[top - x] for x in codes]
    bits = sum(e).bit_length()
    reciprocal = (2 ** (15 + bits) - 1) // sum(e)
    return [(x * reciprocal) >> (bits - 15) for x in e]


def sums_of_norm(codes, epsilon, lift, fraction, written, bias, gain, whole, zero) -> list[int]:
    codes = [x - zero for x in codes]
    count, total = len(codes), 0 if whole else sum(codes)
    root = math.isqrt((count * sum(x * x for x in codes) - total**2 << 2 * lift) + epsilon)
    bits = root.bit_length()
    reciprocal = (2 ** (15 + bits) - 1) // root
    shift = 15 + bits - lift - fraction
    half = 1 << (shift - 1)
    normed = [((count * x - total) * reciprocal + half) >> shift for x in codes[written]]
    return [n * g + b for n, g, b in zip(normed, gain, bias, strict=True)]


def expected(i: isa.Rows, act: np.ndarray, sums_of) -> np.ndarray:
    """ACT after the instruction, row by row."""
    act = act.copy()
    signed = lambda byte, unsigned: byte - 256 * (byte > 127 and not unsigned)  # noqa: E731
    low, high, zero = (signed(x, i.out_unsigned) for x in (i.lo, i.hi, i.zp))
    for m1, m0 in np.ndindex(i.m1, i.m0):
        at = i.src_addr + m1 * i.ss_m1 + m0 * i.ss_m0
        codes = [signed(int(x), i.in_unsigned) for x in act[at : at + i.len]]
        to = i.dst_addr + m1 * i.ds_m1 + m0 * i.ds_m0
        for n, total in enumerate(sums_of(codes)):
            held = (total << i.frac) + (1 << 31) & 0xFFFFFFFF
            t = (held - (1 << 31)) * i.mult + ((1 << i.shift) // 2 if i.rounding else 0)
            act[to + n] = min(max((t >> i.shift) + zero, low), high) & 255
    return act


def run_both(machine, made: Program, image: np.ndarray) -> np.ndarray:
    _, executor, simulator = machine
    want = simulator.run(made, image)
    np.testing.assert_array_equal(executor.run(made, image[None])[0], want)
    return want


@pytest.mark.parametrize("codes", BYTES)
@pytest.mark.parametrize("kind", [isa.Softmax, isa.Norm])
def test_random_rows_equal_python_and_each_other(machine, kind, codes):
    spec = machine[0]
    rng = np.random.default_rng([kind.opcode, len(BYTES[codes])])
    for trial in range(25):
        length = int(rng.choice([1, 2, 3, 31, 32, 33, 100, 300]))
        image = rng.choice(BYTES[codes], ACT).astype(np.uint8)
        if kind is isa.Softmax:
            table = exponentials(float(rng.choice([0.001, 0.03, 0.7, 30])))
            if trial % 5 == 0:
                table = rng.integers(0, 65536, 256)
                table[0] = rng.integers(1 << 15, 1 << 16)
            made = rows(kind, rng, len=length)
            blocks = (softmax_block(table),)
            sums_of = lambda x, table=table: sums_of_softmax(x, table.tolist())  # noqa: E731
        else:
            lift, fraction = int(rng.integers(0, 10)), int(rng.integers(0, 16))
            edge = [-(1 << 31), (1 << 31) - 1] if trial % 3 == 0 else np.arange(-9999, 9999)
            parts = int(rng.choice([p for p in range(1, min(length, 64) + 1) if length % p == 0]))
            size, part = length // parts, int(rng.integers(parts))
            written = slice(part * size, (part + 1) * size)
            bias = rng.choice(edge, size)
            gain = rng.choice([-(1 << 15), (1 << 15) - 1, 0, 1, 12345], size)
            least = 4 ** max(0, lift + fraction - 15)
            whole, zero = int(rng.integers(2)), int(rng.choice([0, 1, 127, 128, 255]))
            variance = length * length * (255 * 255 if whole else 16257)
            most = (1 << 52) - 1 - (variance << 2 * lift)
            epsilon = int(rng.choice([least, most, max(least, most // 99999)]))
            own = {"lift": lift, "fraction": fraction, "whole": whole}
            own |= {"cuts": parts - 1, "part": part}
            made = rows(kind, rng, len=length, **own)
            zero -= 256 * (zero > 127 and not made.in_unsigned)
            blocks = (b"", norm_block(epsilon | (zero & 255) << 56, bias, gain))
            factors = (written, bias.tolist(), gain.tolist())
            scale = (epsilon, lift, fraction, *factors, whole, zero)
            sums_of = lambda x, scale=scale: sums_of_norm(x, *scale)  # noqa: E731
        check(made, spec)
        got = run_both(machine, program(spec, [made], *blocks), image)
        act = np.concatenate([image, np.zeros(OUT - ACT, np.uint8)])
        np.testing.assert_array_equal(got, expected(made, act, sums_of), err_msg=f"{made}")


def test_the_longest_rows_do_not_overflow(machine):
    """2^15 codes, all at one end: the largest sums of exponentials and of squares."""
    spec = machine[0]
    length = 1 << 15
    codes = {"in_unsigned": 1, "out_unsigned": 1, "rounding": 1, "shift": 15, "zp": 7, "hi": 255}
    made = isa.Softmax(len=length, dst_addr=length, par_addr=TABLE_AT // 4, **codes)
    code = (
        isa.Load(mem=0, fill=1, padval=255, x_bytes=length),
        isa.Load(mem=3, region=0, spm_addr=TABLE_AT, x_bytes=512),
        made,
        isa.Store(mem=0, region=3, spm_addr=length, x_bytes=length),
        isa.Halt(),
    )
    table = softmax_block([65535] * 256)
    whole = Program(spec.name, spec.digest, code, table, 0, 1, length, ())
    got = run_both(machine, whole, np.zeros(1, np.uint8))
    want = sums_of_softmax([255] * length, [65535] * 256)[0] + (1 << 14) >> 15
    np.testing.assert_array_equal(got, min(255, want + 7))


ILLEGAL = {
    "no codes": (isa.Softmax, {"len": 0}),
    "too many codes": (isa.Softmax, {"len": (1 << 15) + 1}),
    "no rows": (isa.Norm, {"m0": 0}),
    "lo above hi": (isa.Norm, {"lo": 5, "hi": 4}),
    "shift": (isa.Softmax, {"shift": 48}),
    "overlap": (isa.Softmax, {"dst_addr": 5}),
    "input end": (isa.Softmax, {"src_addr": (1 << 20) - 1}),
    "output end": (isa.Norm, {"dst_addr": (1 << 20) - 1}),
    "table end": (isa.Softmax, {"par_addr": 4095}),
    "factors end": (isa.Norm, {"par_addr": 4095}),
    "unequal parts": (isa.Norm, {"cuts": 2}),
    "no such part": (isa.Norm, {"cuts": 1, "part": 2}),
    "lift": (isa.Norm, {"lift": 27}),
    "lifted variance": (isa.Norm, {"lift": 20}),
    "a table of nothing": (isa.Softmax, {"par_addr": 2000 // 4}),
    "no epsilon": (isa.Norm, {"par_addr": 2000 // 4}),
}


@pytest.mark.parametrize("name", ILLEGAL)
def test_illegal_rows_trap_at_the_same_index(machine, name):
    spec, executor, simulator = machine
    kind, fields = ILLEGAL[name]
    place = TABLE_AT if kind is isa.Softmax else NORM_AT
    usual = kind(len=10, dst_addr=8000, par_addr=place // 4, lo=0, hi=100)
    blocks = softmax_block(exponentials(0.1)), norm_block(1, [0] * 10, [1] * 10)
    image = np.zeros(ACT, np.uint8)
    run_both(machine, program(spec, [usual], *blocks), image)
    bad = program(spec, [isa.Nop(), replace(usual, **fields)], *blocks)
    with pytest.raises(TrapError) as want:
        simulator.run(bad, image)
    with pytest.raises(TrapError) as got:
        executor.run(bad, image[None])
    assert got.value.index == want.value.index == 4


@pytest.mark.parametrize(
    ("lift", "fraction", "last", "step"),
    [
        (0, 15, 1, -1),
        (0, 0, (1 << 52) - 1 - 16257, 1),
        (5, 12, 16, -1),
        (15, 0, (1 << 52) - 1 - (16257 << 30), 1),
        (18, 0, 64, -1),
        (0, 0, (1 << 52) - 1 - 16257, 1 << 53),
    ],
)
def test_a_root_that_could_be_inexact_or_too_small_traps(machine, lift, fraction, last, step):
    spec, executor, simulator = machine
    made = isa.Norm(len=1, dst_addr=8000, par_addr=NORM_AT // 4, lift=lift, fraction=fraction)
    for epsilon, bad in ((last, False), (last + step, True)):
        one = program(spec, [made], b"", norm_block(epsilon, [0], [1]))
        for run in (simulator.run, lambda p, x: executor.run(p, x[None])):
            with pytest.raises(TrapError) if bad else nullcontext():
                run(one, np.zeros(ACT, np.uint8))
