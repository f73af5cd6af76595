"""What instructions on rows and on pairs of tensors keep, whatever the operands."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targets.npu.machine import isa
from targets.npu.machine.program import Program
from targets.npu.machine.spec import load_spec
from targets.npu.simulate.simulator import Simulator
from targets.rows import exponentials

E256 = load_spec("e256")
BESIDE, MADE = 1000, 2000
"""Where in ACT a second operand and the result lie."""
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 60), st.integers(0, 2**32 - 1))
"""Rows, their length, and a seed."""
LAW = settings(max_examples=40, deadline=None)


def run(body: isa.Instruction, *operands: np.ndarray, par: bytes = b"") -> np.ndarray:
    """The bytes from ``MADE`` on, as many as the first operand has."""
    size = operands[0].size
    loads = [isa.Load(region=2, x_bytes=size)]
    if operands[1:]:
        loads.append(isa.Load(region=2, dram_off=size, spm_addr=BESIDE, x_bytes=operands[1].size))
    if par:
        loads.append(isa.Load(mem=3, region=0, x_bytes=len(par)))
    code = (*loads, body, isa.Store(region=3, spm_addr=MADE, x_bytes=size), isa.Halt())
    image = np.concatenate([codes.ravel() for codes in operands])
    program = Program(E256.name, E256.digest, code, par, 0, image.size, size, ())
    return Simulator(E256).run(program, image)


def draw(shape: tuple[int, int, int]) -> tuple[np.random.Generator, np.ndarray]:
    rows, length, seed = shape
    rng = np.random.default_rng(seed)
    kind = rng.choice(["any", "ends", "near"])
    choices = {"any": np.arange(256), "ends": [0, 127, 128, 255], "near": [99, 100, 101]}[kind]
    return rng, rng.choice(choices, (rows, length)).astype(np.uint8)


def softmax(codes: np.ndarray, step: float, **fields: int) -> np.ndarray:
    rows, length = codes.shape
    usual = {"in_unsigned": 1, "out_unsigned": 1, "shift": 22, "hi": 255, "dst_addr": MADE}
    made = isa.Softmax(len=length, m0=rows, ss_m0=length, ds_m0=length, **(usual | fields))
    par = exponentials(step).astype("<u2").tobytes()
    return run(made, codes, par=par).reshape(codes.shape)


def norm(codes: np.ndarray, bias: np.ndarray, gain: np.ndarray) -> np.ndarray:
    rows, length = codes.shape
    made = isa.Norm(
        in_unsigned=1, rounding=1, shift=12, fraction=8, lo=128, hi=127, dst_addr=MADE,
        len=length, m0=rows, ss_m0=length, ds_m0=length,
    )  # fmt: skip
    parts = np.array([1], "<i8"), bias.astype("<i4"), gain.astype("<i2")
    par = b"".join(part.tobytes() for part in parts)
    return run(made, codes, par=par).reshape(codes.shape).view(np.int8)


@LAW
@given(SHAPES, st.sampled_from([0.001, 0.05, 1.0, 30.0]))
def test_a_softmax_follows_its_codes_and_is_at_most_one(shape, step):
    rng, codes = draw(shape)
    made = softmax(codes, step)
    order = rng.permutation(codes.shape[1])
    np.testing.assert_array_equal(softmax(codes[:, order], step), made[:, order])
    assert made.astype(int).sum(1).max() <= 256
    for row, x in zip(made, codes, strict=True):
        assert (np.diff(row[np.argsort(x, kind="stable")].astype(int)) >= 0).all()
    up = softmax(codes, step, rounding=1).astype(int) - made
    assert set(np.unique(up)) <= {0, 1}


@LAW
@given(SHAPES)
def test_a_row_is_none_of_the_others_business(shape):
    rng, codes = draw(shape)
    bias, gain = rng.integers(-9999, 9999, codes.shape[1]), rng.integers(-999, 999, codes.shape[1])
    for instruction in (lambda x: softmax(x, 0.05), lambda x: norm(x, bias, gain)):
        alone = [instruction(row[None]) for row in codes]
        np.testing.assert_array_equal(instruction(codes), np.concatenate(alone))


@LAW
@given(SHAPES)
def test_a_layer_norm_follows_its_codes_and_knows_differences_only(shape):
    rng, codes = draw(shape)
    bias, gain = rng.integers(-9999, 9999, codes.shape[1]), rng.integers(-999, 999, codes.shape[1])
    made = norm(codes, bias, gain)
    order = rng.permutation(codes.shape[1])
    np.testing.assert_array_equal(norm(codes[:, order], bias[order], gain[order]), made[:, order])
    narrow = codes // 2
    np.testing.assert_array_equal(
        norm(narrow + np.uint8(100), bias, gain), norm(narrow, bias, gain)
    )
    np.testing.assert_array_equal(
        norm(0 * codes, bias, gain),
        np.broadcast_to(np.clip(bias + 2048 >> 12, -128, 127), made.shape),
    )


@LAW
@given(SHAPES, st.integers(0, 255), st.integers(0, 255), st.sampled_from([1, 40001, 65535]))
def test_a_product_is_the_same_either_way_and_what_is_nothing_gives_the_zero_point(
    shape, za, zb, mult
):
    rng, codes = draw(shape)
    beside = rng.permutation(codes.ravel()).reshape(codes.shape)
    rows, length = codes.shape
    usual = isa.Multiply(
        a_unsigned=1, b_unsigned=1, out_unsigned=1, b_addr=BESIDE, dst_addr=MADE, len=length,
        rows=rows, bs_row=length, za=za, zb=zb, zo=77, shift=9, hi=255, mult=mult,
    )  # fmt: skip
    turned = replace(usual, za=zb, zb=za)
    np.testing.assert_array_equal(run(usual, codes, beside), run(turned, beside, codes))
    nothing = np.full_like(codes, zb)
    np.testing.assert_array_equal(run(usual, codes, nothing), 77)
    first = beside[:, :1]
    one = replace(usual, b_one=1, bs_row=1)
    spread = np.broadcast_to(first, codes.shape)
    np.testing.assert_array_equal(run(one, codes, first), run(usual, codes, spread))


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (3, 7), (20, 5), (255, 2), (2, 60)])
def test_what_is_turned_twice_is_as_before(rows, length):
    codes = np.arange(rows * length).astype(np.uint8).reshape(rows, length)
    assert codes.size < BESIDE

    def turned(x: np.ndarray) -> np.ndarray:
        deep, wide = x.shape
        load = isa.Load(
            transpose=1, region=2, spm_addr=MADE, x_bytes=wide, z=deep, dram_zstride=wide,
            spm_ystride=deep,
        )  # fmt: skip
        return run(load, x).reshape(wide, deep)

    np.testing.assert_array_equal(turned(codes), codes.T)
    np.testing.assert_array_equal(turned(turned(codes)), codes)
