"""Program files: round trips, and clear errors on damage."""

import pytest

from targets.errors import InputError
from targets.npu.machine import isa
from targets.npu.machine.program import LayerSpan, Program

PROGRAM = Program(
    machine="e256",
    digest="ab" * 32,
    instructions=(isa.Load(x_bytes=5, dram_off=1 << 31), isa.Halt()),
    constants=b"some constants",
    arena_bytes=640,
    input_bytes=5,
    output_bytes=7,
    layers=(LayerSpan(((0, 1),), "conv", "features.0, net.py:12", "conv2d", 99),),
)


def test_from_bytes_reverses_to_bytes():
    assert Program.from_bytes(PROGRAM.to_bytes()) == PROGRAM


def test_words_are_the_encoded_instructions():
    words = PROGRAM.words()
    assert words.shape == (2, 8)
    assert words.tobytes() == b"".join(isa.encode(i) for i in PROGRAM.instructions)


@pytest.mark.parametrize("at", [60, 300, -1])
def test_any_changed_byte_is_found(at):
    data = bytearray(PROGRAM.to_bytes())
    data[at] ^= 1
    with pytest.raises(InputError, match=r"a\.bin: damaged"):
        Program.from_bytes(bytes(data), "a.bin")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an NPU program"),
        (b"ELF?" + bytes(80), "not an NPU program"),
        (PROGRAM.to_bytes()[:-3], "damaged"),
        (PROGRAM.to_bytes()[:4] + b"\x09" + PROGRAM.to_bytes()[5:], "version 9"),
    ],
)
def test_other_files_are_refused(data, message):
    with pytest.raises(InputError, match=message):
        Program.from_bytes(data)
