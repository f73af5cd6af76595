"""Why the compiled executor stops at an instruction, in numbers and in words."""

from __future__ import annotations

import re
from dataclasses import dataclass

ILLEGAL, NO_TOKEN, BAD_RECORD, NOT_HELD, NO_HALT, BAD_ROWS = range(1, 7)

TRAPS = {
    ILLEGAL: "illegal instruction",
    NO_TOKEN: "a token that was never pushed, or tokens left at HALT",
    BAD_RECORD: "REQ with an illegal parameter record",
    NOT_HELD: "GEMM on held weights, and the array holds none of these widths",
    NO_HALT: "the program ends without HALT",
    BAD_ROWS: "SOFTMAX or NORM with illegal parameters",
}
"""Trap code -> what it means; 0 is no trap."""

TRAPPED = "the NPU trapped in program %d at instruction %d: "
"""What the executor writes before the reason; numbers as the C library writes them."""
SET_ERROR = "TVMFFIErrorSetRaisedFromCStr"
"""Of TVM's runtime, which every process that loads a module has."""


@dataclass(frozen=True)
class Trap:
    """What a failed execution says.

    Attributes:
        program: the number that the caller gave the program.
        index: of the instruction, in program order.
        reason: of ``TRAPS``.
    """

    program: int
    index: int
    reason: str

    @staticmethod
    def of(message: str) -> Trap | None:
        """The trap that an error's message tells of; None if it tells of something else."""
        pattern = re.escape(TRAPPED).replace("%d", r"(\d+)") + "(.*)"
        match = re.search(pattern, message)
        return None if match is None else Trap(int(match[1]), int(match[2]), match[3])
