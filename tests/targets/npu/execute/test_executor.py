"""The compiled executor against the NumPy simulator: random and extreme operands, traps."""

from dataclasses import replace

import numpy as np
import pytest

from targets.errors import InputError, TrapError
from targets.npu.execute.compiled import Executor
from targets.npu.machine import isa
from targets.npu.machine.elements import pack, unpack
from targets.npu.machine.legality import code_range, parameter_bytes, record_bytes, rules
from targets.npu.machine.program import Program
from targets.npu.machine.spec import load_spec
from targets.npu.simulate.codes import RECORD
from targets.npu.simulate.simulator import Simulator
from targets.rounding import RoundingMode

MACHINES = ("e256", "m2048")
ACT, ACC_ROWS, OUT = 12000, 40, 16384
ARENA = 256


@pytest.fixture(scope="module", params=MACHINES)
def machine(request):
    spec = load_spec(request.param)
    return spec, Executor(spec), Simulator(spec)


def _program(spec, body, rng, extreme):
    """Fill ACT, WGT, ACC and PAR with noise, run ``body``, store ACT and ACC."""
    columns = spec.array.cols
    values = [0, 127, 128, 255] if extreme else np.arange(256)
    noise = rng.choice(values, 50000).astype(np.uint8)
    records = np.zeros(columns, RECORD)
    edge = [-(1 << 31), (1 << 31) - 1] if extreme else np.arange(-500, 500)
    records["bias"] = rng.choice(edge, columns)
    records["mult"] = rng.choice([0, 1, 65535] if extreme else np.arange(4), columns)
    records["shift"] = rng.choice([0, 0, 1, 15], columns)
    records["res_shl"] = rng.choice([0, 31] if extreme else np.arange(3), columns)
    # Borders stand behind a record, or behind all: what a REQ reads is loaded in front of it.
    parameters = records.tobytes()
    loaded = []
    for instruction in body:
        if isinstance(instruction, isa.Requantize):
            count, stride = instruction.nvalid, record_bytes(instruction)
            read = rng.choice(values, max(parameter_bytes(instruction), 1)).astype(np.uint8)
            rows = read[: count * stride].reshape(count, stride)
            rows[:, : RECORD.itemsize] = records.view(np.uint8).reshape(columns, -1)[:count]
            part = read.tobytes()[: spec.sram.par.bytes]
            at = 50000 + len(parameters)
            loaded.append(isa.Load(mem=3, region=0, dram_off=at, x_bytes=len(part)))
            parameters += part
        loaded.append(instruction)
    # Small sums, so that codes do not all saturate and exact ties occur.
    sums = rng.choice(edge, (ACC_ROWS, columns)).astype("<i4") * (1 if extreme else 4)
    constants = noise.tobytes() + parameters + sums.tobytes()
    acc = sums.nbytes
    load = [
        isa.Load(mem=0, region=2, x_bytes=ACT),
        isa.Load(mem=1, region=0, x_bytes=50000),
        isa.Load(mem=2, region=0, dram_off=50000 + len(parameters), x_bytes=acc),
        isa.Load(mem=3, region=0, x_bytes=4000),
        isa.Load(mem=3, region=0, dram_off=50000, x_bytes=records.nbytes),
    ]
    store = [
        isa.Store(mem=0, region=3, x_bytes=OUT),
        isa.Store(mem=2, region=3, dram_off=OUT, x_bytes=acc),
        isa.Halt(),
    ]
    code = (*load, *loaded, *store)
    return Program(spec.name, spec.digest, code, constants, ARENA, ACT, OUT + acc, ())


def _legal(rng, spec, make):
    """The first legal one of ``make(rng)``."""
    for _ in range(2000):
        instruction = make(rng, spec)
        if isa.fits(instruction) and all(
            m >= 0 for _, m in rules(type(instruction), instruction, spec)
        ):
            return instruction
    raise AssertionError("no legal instruction found")


def _gemm(rng, spec):
    r = lambda low, high: int(rng.integers(low, high + 1))  # noqa: E731
    act, wgt = r(0, 2), r(0, 2)
    lanes = spec.array.rows << min(act, wgt)
    frac = r(0, 15)
    return isa.Gemm(
        acc_init=r(0, 1),
        act_unsigned=r(0, 1),
        act_bits=act,
        wgt_bits=wgt,
        act_addr=r(0, 99),
        wgt_addr=r(0, 99),
        acc_row=r(0, 5),
        m0=r(1, 11),
        m1=r(1, 3),
        as_m0=r(0, 40),
        as_m1=r(0, 300),
        k0=r(1, 3),
        k1=r(1, 2),
        k2=r(1, 2),
        as_k0=r(0, 64),
        as_k1=r(0, 90),
        as_k2=r(0, 90),
        kvalid=r(1, min(lanes, 511)),
        nvalid=r(1, spec.array.cols),
        frac=frac,
        alpha_a=r(0, frac),
        alpha_b=r(0, frac),
        alpha_sign=r(0, 2),
    )


def _depthwise(rng, spec):
    r = lambda low, high: int(rng.integers(low, high + 1))  # noqa: E731
    return isa.Depthwise(
        acc_init=r(0, 1),
        act_unsigned=r(0, 1),
        act_bits=r(0, 2),
        wgt_bits=r(0, 2),
        act_addr=r(0, 99),
        wgt_addr=r(0, 99),
        acc_row=r(0, 5),
        m0=r(1, 11),
        m1=r(1, 3),
        as_m0=r(0, 40),
        as_m1=r(0, 300),
        kw=r(1, 5),
        kh=r(1, 3),
        as_kx=r(0, 64),
        as_ky=r(0, 90),
        nvalid=r(1, spec.array.cols),
        frac=r(0, 15),
    )


def _requantize(rng, spec):
    r = lambda low, high: int(rng.integers(low, high + 1))  # noqa: E731
    unsigned, bits = r(0, 1), r(0, 2)
    lowest, highest = code_range(bits, unsigned)
    low, high = sorted((r(lowest, highest), r(lowest, highest)))
    if r(0, 1):
        low, high = lowest, highest
    rounding = r(0, 4)
    return isa.Requantize(
        rounding=rounding,
        one_row=r(0, 1) if rounding == RoundingMode.BORDER else 0,
        multiply=r(0, 1),
        residual=r(0, 1),
        residual_unsigned=r(0, 1),
        out_unsigned=unsigned,
        out_bits=bits,
        acc_row=r(0, 5),
        m0=r(1, 11),
        m1=r(1, 3),
        dst_addr=r(6000, 7000),
        ds_m0=r(0, 40),
        ds_m1=r(0, 300),
        res_bits=r(0, 2),
        shift=r(0, 32) if r(0, 3) == 0 else r(0, 6),
        zp=r(0, 255),
        lo=low & 255,
        hi=high & 255,
        nvalid=r(1, spec.array.cols),
        res_addr=r(0, 999),
        rs_m0=r(0, 40),
        rs_m1=r(0, 300),
        res_zp=r(0, 255),
        res_mult=r(0, 65535) if r(0, 2) == 0 else r(0, 3),
    )


def _add(rng, spec):
    r = lambda low, high: int(rng.integers(low, high + 1))  # noqa: E731
    unsigned, bits = r(0, 1), r(0, 2)
    lowest, highest = code_range(bits, unsigned)
    low, high = sorted((r(lowest, highest), r(lowest, highest)))
    return isa.Add(
        elem_bits=bits,
        a_unsigned=r(0, 1),
        b_unsigned=r(0, 1),
        out_unsigned=unsigned,
        a_addr=r(0, 99),
        b_addr=r(3000, 3999),
        dst_addr=r(8000, 8999),
        len=r(1, 900),
        za=r(0, 255),
        zb=r(0, 255),
        zo=r(0, 255),
        sa=r(0, 31),
        sb=r(0, 31),
        shift=r(0, 47),
        lo=low & 255,
        hi=high & 255,
        ma=r(0, 65535),
        mb=r(0, 65535),
    )


def _multiply(rng, spec):
    r = lambda low, high: int(rng.integers(low, high + 1))  # noqa: E731
    unsigned = r(0, 1)
    lowest, highest = code_range(0, unsigned)
    low, high = sorted((r(lowest, highest), r(lowest, highest)))
    return isa.Multiply(
        a_unsigned=r(0, 1),
        b_unsigned=r(0, 1),
        out_unsigned=unsigned,
        b_one=r(0, 1),
        a_addr=r(0, 99),
        b_addr=r(3000, 3999),
        dst_addr=r(8000, 8999),
        len=r(1, 60),
        rows=r(1, 20),
        bs_row=r(0, 99),
        za=r(0, 255),
        zb=r(0, 255),
        zo=r(0, 255),
        left=r(0, 15),
        shift=r(0, 47) if r(0, 1) else r(5, 12),
        lo=low & 255,
        hi=high & 255,
        mult=r(0, 65535) if r(0, 1) else 1,
    )


def _pool(rng, spec):
    r = lambda low, high: int(rng.integers(low, high + 1))  # noqa: E731
    return isa.Pool(
        elem_bits=r(0, 2),
        average=r(0, 1),
        unsigned=r(0, 1),
        src_addr=r(0, 99),
        dst_addr=r(8000, 8999),
        c=r(1, 40),
        ox=r(1, 5),
        oy=r(1, 4),
        ss_x=r(0, 60),
        ss_y=r(0, 400),
        ds_x=r(0, 60),
        ds_y=r(0, 400),
        kw=r(1, 3),
        kh=r(1, 3),
        stride=r(1, 2),
        shift=r(0, 47),
        mult=r(0, 65535),
        zp=r(0, 255),
    )


def _lut(rng, spec):
    r = lambda low, high: int(rng.integers(low, high + 1))  # noqa: E731
    return isa.Lut(src_addr=r(0, 99), dst_addr=r(8000, 8999), len=r(1, 900), lut_addr=r(0, 3000))


def _load(rng, spec):
    r = lambda low, high: int(rng.integers(low, high + 1))  # noqa: E731
    return isa.Load(
        fill=r(0, 1),
        mem=r(0, 3),
        region=r(0, 3),
        padval=r(0, 255),
        spm_addr=r(0, 99),
        dram_off=r(0, 9),
        x_bytes=r(1, 70),
        y=r(1, 3),
        z=r(1, 2),
        dram_ystride=r(0, 40),
        dram_zstride=r(0, 40),
        spm_ystride=r(0, 99),
        spm_zstride=r(0, 400),
        pad_x0=r(0, 40),
        pad_x1=r(0, 40),
        pad_y0=r(0, 2),
        pad_y1=r(0, 2),
    )


def _transposed(rng, spec):
    r = lambda low, high: int(rng.integers(low, high + 1))  # noqa: E731
    return isa.Load(
        transpose=1,
        mem=r(0, 3),
        region=r(0, 3),
        spm_addr=r(0, 99),
        dram_off=r(0, 9),
        x_bytes=r(1, 20),
        y=r(1, 3),
        z=r(1, 9),
        dram_ystride=r(0, 20),
        dram_zstride=r(0, 20),
        spm_ystride=r(0, 40),
        spm_zstride=r(0, 400),
    )


def _store(rng, spec):
    r = lambda low, high: int(rng.integers(low, high + 1))  # noqa: E731
    return isa.Store(
        mem=r(0, 3),
        region=1,
        spm_addr=r(0, 99),
        dram_off=r(0, 9),
        x_bytes=r(1, 70),
        y=r(1, 3),
        z=r(1, 2),
        dram_ystride=r(0, 40),
        dram_zstride=r(0, 40),
        spm_ystride=r(0, 99),
        spm_zstride=r(0, 400),
    )


MAKERS = (_gemm, _depthwise, _requantize, _add, _pool, _lut, _load, _store, _transposed, _multiply)


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("make", MAKERS)
def test_random_instructions_equal_the_simulator(machine, make, extreme):
    spec, executor, simulator = machine
    rng = np.random.default_rng([MAKERS.index(make), extreme])
    read_back = isa.Load(mem=0, region=1, spm_addr=10000, x_bytes=ARENA)
    for trial in range(12):
        body = [_legal(rng, spec, make) for _ in range(4)] + [read_back]
        program = _program(spec, body, rng, extreme)
        images = rng.integers(0, 256, (2, ACT)).astype(np.uint8)
        got = executor.run(program, images)
        for image, outputs in zip(images, got, strict=True):
            np.testing.assert_array_equal(
                simulator.run(program, image), outputs, err_msg=f"{trial}: {body}"
            )


def test_held_weights_stay_when_their_memory_is_overwritten(machine):
    spec, executor, simulator = machine
    rng = np.random.default_rng(7)
    first = isa.Gemm(acc_init=1, m0=9, as_m0=8, k0=2, as_k0=8, kvalid=5, nvalid=spec.array.cols)
    held = isa.Gemm(acc_row=3, m0=9, as_m0=5, kvalid=spec.array.rows, nvalid=7, wgt_hold=1)
    body = [first, isa.Load(mem=1, fill=1, padval=77, x_bytes=50000), held]
    program = _program(spec, body, rng, extreme=False)
    image = rng.integers(0, 256, ACT).astype(np.uint8)
    expected = simulator.run(program, image)
    np.testing.assert_array_equal(executor.run(program, image[None])[0], expected)
    reloaded = _program(
        spec, [*body[:2], replace(held, wgt_hold=0)], np.random.default_rng(7), False
    )
    assert (simulator.run(reloaded, image) != expected).any()


ILLEGAL = {
    "rows": isa.Gemm(acc_row=8191, kvalid=1, nvalid=1),
    "columns": isa.Gemm(kvalid=1, nvalid=127),
    "lanes": isa.Gemm(kvalid=511, nvalid=1),
    "alpha": isa.Gemm(kvalid=1, nvalid=1, alpha_a=1),
    "act end": isa.Gemm(kvalid=1, nvalid=1, act_addr=(1 << 20) - 1),
    "width code": isa.Depthwise(nvalid=1, act_bits=3),
    "no channels": isa.Requantize(),
    "rounding": isa.Requantize(nvalid=1, rounding=5),
    "a row of nothing": isa.Requantize(nvalid=1, hi=5, one_row=1),
    "lo above hi": isa.Requantize(nvalid=1, lo=5, hi=4),
    "code too wide": isa.Requantize(nvalid=1, out_bits=2, hi=100),
    "shift and record": isa.Requantize(nvalid=1, shift=63),
    "overlap": isa.Add(len=10, b_addr=500, dst_addr=5),
    "add shift": isa.Add(len=1, b_addr=50, dst_addr=90, shift=48),
    "product overlap": isa.Multiply(len=10, rows=2, b_addr=500, dst_addr=19),
    "product end": isa.Multiply(len=1, b_addr=(1 << 20) - 1, dst_addr=90),
    "pool overlap": isa.Pool(dst_addr=0),
    "table end": isa.Lut(len=1, dst_addr=9, lut_addr=16383),
    "write inputs": isa.Store(region=2, x_bytes=1),
    "region": isa.Load(region=5, x_bytes=1),
    "region end": isa.Load(region=2, dram_off=ACT, x_bytes=1),
    "wide offset": isa.Load(region=2, dram_off=(1 << 32) - 1, x_bytes=1),
    "no bytes": isa.Load(region=2),
    "transposed border": isa.Load(region=2, x_bytes=1, transpose=1, pad_y0=1),
    "transposed fill": isa.Load(region=2, x_bytes=1, transpose=1, fill=1),
    "transposed end": isa.Load(region=2, mem=3, x_bytes=4, transpose=1, spm_ystride=8191),
    "own token": isa.Nop(on=2, push=1 << 2),
    "no token": isa.Nop(on=2, pop=1),
    "token left": isa.Nop(on=2, push=1),
    "nothing held": isa.Gemm(kvalid=1, nvalid=1, wgt_hold=1),
}


@pytest.mark.parametrize("name", ILLEGAL)
def test_illegal_instructions_trap_at_the_same_index(machine, name):
    spec, executor, simulator = machine
    program = _program(spec, [isa.Nop(), ILLEGAL[name]], np.random.default_rng(0), extreme=False)
    image = np.zeros(ACT, np.uint8)
    with pytest.raises(TrapError) as expected:
        simulator.run(program, image)
    with pytest.raises(TrapError) as got:
        executor.run(program, image[None])
    faulty = program.instructions.index(ILLEGAL[name])
    if name == "token left":
        faulty = len(program.instructions) - 1
    assert got.value.index == expected.value.index == faulty


def test_a_token_is_taken_once(machine):
    """Two from LD and one from MM wait for VU, which takes one of each, then LD's other one."""
    spec, executor, simulator = machine
    to_vu, from_ld, from_mm = 1 << isa.VU, 1 << isa.LD, 1 << isa.MM
    body = [
        isa.Nop(on=isa.LD, push=to_vu),
        isa.Nop(on=isa.MM, push=to_vu),
        isa.Nop(on=isa.LD, push=to_vu),
        isa.Nop(on=isa.VU, pop=from_ld | from_mm),
        isa.Nop(on=isa.VU, pop=from_ld),
    ]
    program = _program(spec, body, np.random.default_rng(0), extreme=False)
    image = np.zeros(ACT, np.uint8)
    expected = simulator.run(program, image)
    np.testing.assert_array_equal(executor.run(program, image[None])[0], expected)
    program = _program(spec, [*body, body[-1]], np.random.default_rng(0), extreme=False)
    for run in (lambda: simulator.run(program, image), lambda: executor.run(program, image[None])):
        with pytest.raises(TrapError) as trap:
            run()
        assert program.instructions[trap.value.index - 1] == program.instructions[trap.value.index]


def test_a_program_without_halt_traps_behind_its_end(machine):
    spec, executor, simulator = machine
    program = _program(spec, [], np.random.default_rng(0), extreme=False)
    program = replace(program, instructions=program.instructions[:-1])
    for run in (
        lambda: simulator.run(program, bytes(ACT)),
        lambda: executor.run(program, np.zeros((1, ACT), np.uint8)),
    ):
        with pytest.raises(TrapError, match="HALT") as trap:
            run()
        assert trap.value.index == len(program.instructions)


@pytest.mark.parametrize("bit", [7, 40, 255])
def test_unused_bits_and_unknown_opcodes_trap(machine, bit):
    _, executor, _ = machine
    words = np.zeros((2, 8), np.uint32)
    words[1, bit // 32] = 1 << (bit % 32)
    with pytest.raises(TrapError) as trap:
        executor.run_words(
            words.view(np.int32), np.zeros(1, np.int8), np.zeros((1, 4), np.int8), 0, 4
        )
    assert trap.value.index == 1


def test_another_machines_program_is_refused(machine):
    spec, executor, simulator = machine
    program = replace(_program(spec, [], np.random.default_rng(0), False), digest="0" * 64)
    with pytest.raises(InputError, match="program"):
        simulator.run(program, bytes(ACT))
    with pytest.raises(InputError, match="program"):
        executor.run(program, np.zeros((1, ACT), np.uint8))


@pytest.mark.parametrize("code", [0, 1, 2])
@pytest.mark.parametrize("unsigned", [False, True])
def test_packing_round_trips(code, unsigned):
    width = isa.WIDTHS[code]
    low, high = (0, 2**width) if unsigned else (-(2 ** (width - 1)), 2 ** (width - 1))
    values = np.random.default_rng(code).integers(low, high, (3, 13))
    np.testing.assert_array_equal(
        unpack(pack(values, width), width, unsigned=unsigned)[:, :13], values
    )
