"""A layer in tensorized TIR, with the constants that its program reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
from tvm import s_tir, tirx

_LOOPS_OF = {"gemm": 2}
"""Innermost loops that an intrinsic stands for; one where not listed."""


@dataclass(frozen=True)
class Scheduled:
    """One layer, lowered to loops around intrinsics.

    Attributes:
        plain: the function before tensorization; ordinary TIR with the same meaning.
        func: the function whose compute is calls of ``npu.*``.
        constants: parameter name -> array, for the parameters that are neither inputs nor output.
    """

    plain: tirx.PrimFunc
    func: tirx.PrimFunc
    constants: Mapping[str, npt.NDArray[Any]]


def tensorize(
    plain: tirx.PrimFunc, intrinsics: Mapping[str, str], constants: Mapping[str, npt.NDArray[Any]]
) -> Scheduled:
    """Replace each block named in ``intrinsics`` by the intrinsic of that name."""
    schedule = s_tir.Schedule(plain)
    for block_name, intrinsic in intrinsics.items():
        block = schedule.get_sblock(block_name)
        loops = schedule.get_loops(block)
        schedule.tensorize(loops[-_LOOPS_OF.get(block_name, 1)], intrinsic)
    return Scheduled(plain, schedule.mod["main"], constants)
