"""The lowest and the highest code, of so many bits and of a type."""

from __future__ import annotations


def code_range(bits: int, signed: bool) -> tuple[int, int]:
    """Lowest and highest code of so many bits, in two's complement or unsigned."""
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


def type_range(dtype: str) -> tuple[int, int]:
    """Lowest and highest code that int8 or uint8 can hold."""
    return code_range(8, dtype == "int8")
