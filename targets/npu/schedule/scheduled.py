"""A layer in tensorized TIR, with the constants that its program reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
from tvm import s_tir, tirx


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
    plain: tirx.PrimFunc,
    intrinsics: Mapping[str, tuple[str, int]],
    constants: Mapping[str, npt.NDArray[Any]],
) -> Scheduled:
    """Replace each named block, with so many loops around it, by the intrinsic of that name."""
    schedule = s_tir.Schedule(plain)
    for block_name, (intrinsic, count) in intrinsics.items():
        block = schedule.get_sblock(block_name)
        schedule.tensorize(schedule.get_loops(block)[-count], intrinsic)
    return Scheduled(plain, schedule.mod["main"], constants)
