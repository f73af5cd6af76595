"""Fields of instructions and their place in the 256-bit word; encoding reads the same table."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, ClassVar, TypeAlias

from targets.errors import InputError

WORD_BYTES = 32
_FLAGS_AT = 16
_FIELDS_AT = 32
Layout: TypeAlias = tuple[tuple[str, int, int], ...]


def flag(bit: int, width: int = 1) -> Any:
    """A field in the flags, at ``bit`` of bits 31:16."""
    return field(default=0, metadata={"bit": _FLAGS_AT + bit, "width": width, "signed": False})


def bits(width: int, *, signed: bool = False, default: int = 0) -> Any:
    """A field behind the flags, in the order of declaration."""
    return field(default=default, metadata={"width": width, "signed": signed})


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """What all instructions have: dependency tokens, and a layout from their fields."""

    opcode: ClassVar[int]
    mnemonic: ClassVar[str]
    unit: ClassVar[int]
    pop: int = field(default=0, metadata={"bit": 8, "width": 4, "signed": False})
    push: int = field(default=0, metadata={"bit": 12, "width": 4, "signed": False})

    @classmethod
    @cache
    def layout(cls) -> Layout:
        """(name, first bit, width) of each field."""
        position, table = _FIELDS_AT, []
        for f in fields(cls):
            width = f.metadata["width"]
            first = f.metadata.get("bit")
            if first is None:
                first, position = position, position + width
            table.append((f.name, first, width))
        if position > 8 * WORD_BYTES:
            msg = f"{cls.mnemonic} takes {position} bits"
            raise AssertionError(msg)
        return tuple(table)


def largest(kind: type[Instruction], *names: str) -> int:
    """The largest value that each of these fields of an instruction can hold."""
    return min((1 << width) - 1 for name, _, width in kind.layout() if name in names)


def fits(instruction: Instruction) -> bool:
    """Whether every field's value fits its width; a field may have many, in an array."""
    values = vars(instruction)
    # Of a number that is negative or too large something is left beyond the field.
    beyond = [values[name] >> width for name, _, width in instruction.layout()]
    return not any(each if isinstance(each, int) else each.any() for each in beyond)


def encode(instruction: Instruction) -> bytes:
    """The 32 bytes of an instruction.

    Raises:
        InputError: a value does not fit its field.
    """
    word = instruction.opcode
    for name, first, width in instruction.layout():
        value = int(getattr(instruction, name))
        if not 0 <= value < 1 << width:
            msg = f"{instruction.mnemonic}.{name}: expected 0 to {(1 << width) - 1}, got {value}"
            raise InputError(msg)
        word |= value << first
    return word.to_bytes(WORD_BYTES, "little")
