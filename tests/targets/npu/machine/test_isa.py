"""Instruction words: round trips, and what decoding refuses."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.errors import InputError
from targets.npu.machine import isa


@st.composite
def instructions(draw):
    kind = draw(st.sampled_from(isa.KINDS))
    fields = {n: draw(st.integers(0, (1 << w) - 1)) for n, _, w in isa.LAYOUTS[kind]}
    return kind(**fields)


@given(instructions())
def test_decode_reverses_encode(instruction):
    assert isa.fits(instruction)
    assert isa.decode(isa.encode(instruction)) == instruction


@pytest.mark.parametrize("kind", isa.KINDS)
def test_fields_do_not_overlap(kind):
    used = 0xFF
    for name, first, width in isa.LAYOUTS[kind]:
        mask = ((1 << width) - 1) << first
        assert used & mask == 0, name
        used |= mask
    assert used < 1 << 256


@pytest.mark.parametrize("kind", isa.KINDS)
def test_every_unused_bit_is_refused_with_the_index(kind):
    word = int.from_bytes(isa.encode(kind()), "little")
    used = 0xFF
    for _, first, width in isa.LAYOUTS[kind]:
        used |= ((1 << width) - 1) << first
    for bit in range(256):
        if not used >> bit & 1:
            with pytest.raises(InputError, match=r"instruction 17: .*unused"):
                isa.decode((word | 1 << bit).to_bytes(32, "little"), 17)


def test_a_word_is_what_the_table_says():
    nop = isa.Nop(pop=0b0001, push=0b1000, on=2)
    assert int.from_bytes(isa.encode(nop), "little") == 2 << 32 | 0b1000 << 12 | 0b0001 << 8


def test_unknown_opcode_is_refused_with_the_index():
    with pytest.raises(InputError, match="instruction 3: unknown opcode 0x7f"):
        isa.decode(bytes([0x7F]) + bytes(31), 3)


@pytest.mark.parametrize("value", [-1, 8192])
def test_a_value_too_wide_is_refused_by_name(value):
    with pytest.raises(
        InputError, match=re.escape(f"GEMM.acc_row: expected 0 to 8191, got {value}")
    ):
        isa.encode(isa.Gemm(acc_row=value))


def test_what_is_negative_or_too_large_fits_no_field():
    assert isa.fits(isa.Load(x_bytes=(1 << 16) - 1))
    assert not isa.fits(isa.Load(x_bytes=1 << 16))
    assert not isa.fits(isa.Load(x_bytes=-1))
