"""What kernels that work element by element share: tensors as arguments, tasks and vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm import s_tir, te, tirx

from targets.cpu.requantize import Expr
from targets.layers import Value

VECTOR = 64  # bytes
TASK_BYTES = 16 * 1024


def placeholder(n: Expr, value: Value, name: str) -> te.Tensor:
    """A tensor of ``n`` images."""
    return te.placeholder((n, *value.shape), value.dtype, name=name)


def function(tensors: list[te.Tensor]) -> tirx.PrimFunc:
    """The function of tensor expressions, the output last."""
    return te.create_prim_func(tensors, index_dtype_override="int64")


def schedule_elements(func: tirx.PrimFunc, shape: Sequence[int], *, vectors: bool) -> tirx.PrimFunc:
    """One image as a row of elements, cut into tasks of about ``TASK_BYTES``, cut into vectors."""
    size = math.prod(shape)
    lanes = math.gcd(size, VECTOR)
    blocks = size // lanes
    per_task = max(d for d in range(1, blocks + 1) if blocks % d == 0 and d * lanes <= TASK_BYTES)
    sch = s_tir.Schedule(func)
    image, *element = sch.get_loops(sch.get_sblock("out"))
    task, _, lane = sch.split(sch.fuse(*element), [None, per_task, lanes])
    sch.parallel(sch.fuse(image, task))
    if vectors:
        sch.vectorize(lane)
    return sch.mod["main"].without_attr("global_symbol")
