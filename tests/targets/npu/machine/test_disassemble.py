"""A listing names layers, tokens, memories and what differs from the default."""

import pytest

from targets.npu.machine import isa
from targets.npu.machine.disassemble import disassemble, instruction_text
from targets.npu.machine.program import LayerSpan, Program


@pytest.mark.parametrize(
    ("instruction", "text"),
    [
        (
            isa.Load(mem=1, region=3, x_bytes=64, spm_addr=16, push=0b10, fill=1),
            "LD    push MM  fill WGT outputs spm_addr=16 x_bytes=64",
        ),
        (
            isa.Gemm(pop=0b1001, acc_init=1, act_bits=2, m0=7, frac=3),
            "GEMM  pop LD,ST  acc_init act_bits=2 m0=7 frac=3",
        ),
        (isa.Requantize(nvalid=4), "REQ   rounding=FLOOR nvalid=4"),
        (isa.Requantize(rounding=4, nvalid=4), "REQ   rounding=BORDER nvalid=4"),
        (
            isa.Requantize(rounding=4, one_row=1, nvalid=4),
            "REQ   rounding=BORDER one_row nvalid=4",
        ),
        (isa.Halt(), "HALT"),
    ],
    ids=["load", "gemm", "floor", "border", "row", "halt"],
)
def test_instruction(instruction, text):
    assert instruction_text(instruction) == text


def test_layers_head_their_instructions():
    program = Program(
        machine="e256",
        digest="",
        instructions=(isa.Load(x_bytes=1), isa.Gemm(), isa.Halt()),
        constants=b"abc",
        arena_bytes=5,
        input_bytes=6,
        output_bytes=7,
        layers=(
            LayerSpan(((0, 1),), "a", "net.py:3", "move", 0),
            LayerSpan((), "b", "", "move", 0),
            LayerSpan(((1, 2),), "c", "", "conv2d", 9),
        ),
    )
    assert list(disassemble(program)) == [
        "; 3 instructions for e256; 3 bytes of constants, 5 of arena, 6 of inputs, 7 of outputs",
        "; a  move  0 MACs  net.py:3",
        "     0  LD    x_bytes=1",
        "; c  conv2d  9 MACs",
        "     1  GEMM",
        "     2  HALT",
    ]
