"""Ranges of codes against NumPy's types, and against all codes of few bits."""

import numpy as np
import pytest

from targets.code_range import code_range, type_range


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_a_type_holds_what_numpy_says(dtype):
    assert type_range(dtype) == (np.iinfo(dtype).min, np.iinfo(dtype).max)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_so_many_bits_are_read_as_so_many_codes(bits):
    patterns = np.arange(1 << bits, dtype=np.uint8)
    signed = (patterns << (8 - bits)).view(np.int8) >> (8 - bits)
    assert code_range(bits, signed=False) == (patterns.min(), patterns.max())
    assert code_range(bits, signed=True) == (signed.min(), signed.max())
