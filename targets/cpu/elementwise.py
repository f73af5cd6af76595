"""Additions, maximum pools and tables: bound by memory, so nothing but vectors and tasks."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from tvm import s_tir, te, tirx

from targets.cpu.requantize import CODE_RANGE, Expr, round_and_clamp
from targets.layers import Add, Lut, MaxPool2d, Operand, Value
from targets.scale import AddScale
from targets.sum_bounds import CodeRange, add_needs_int64

VECTOR = 64  # bytes
TASK_BYTES = 16 * 1024

Built = tuple[tirx.PrimFunc, tuple[npt.NDArray[np.generic], ...]]


def build_add(layer: Add) -> Built:
    """``clamp(half_up(a + b, shift) + zero_point)``, in int32 where the operands provably allow."""
    sides = (layer.a, layer.b)
    scale = AddScale(
        (layer.a.multiplier, layer.b.multiplier), (layer.a.shift, layer.b.shift), layer.shift
    )
    a_codes, b_codes = (CodeRange(*CODE_RANGE[x.value.dtype], x.zero_point) for x in sides)
    # the zero point is added after the clamp, where it can't overflow
    kind = "int64" if add_needs_int64(scale, a_codes, b_codes, zero_point=0) else "int32"
    n = tirx.Var("n", "int64")
    a, b = _placeholder(n, layer.a.value, "a"), _placeholder(n, layer.b.value, "b")

    def term(operand: Operand, code: Expr) -> Expr:
        centred = code.astype(kind) - tirx.const(operand.zero_point, kind)
        scaled = centred * tirx.const(operand.multiplier, kind)
        return scaled << tirx.const(operand.shift, kind)

    def added(*at: Expr) -> Expr:
        total = term(layer.a, a[at]) + term(layer.b, b[at])
        shift, limits = tirx.const(layer.shift, kind), (layer.low, layer.high)
        return round_and_clamp(total, kind, shift, layer.zero_point, limits, layer.output.dtype)

    out = te.compute((n, *layer.output.shape), added, name="out")
    return _schedule_elements(_function([a, b, out]), layer.output, vectors=True), ()


def build_lut(layer: Lut) -> Built:
    """A byte for every byte."""
    n = tirx.Var("n", "int64")
    x = _placeholder(n, layer.input, "x")
    table = te.placeholder((256,), layer.output.dtype, name="table")
    out = te.compute(
        (n, *layer.output.shape),
        lambda *at: table[x[at].astype("uint8").astype("int32")],
        name="out",
    )
    constant = np.frombuffer(layer.table, np.dtype(layer.output.dtype)).copy()
    # No vectors: there is no instruction that looks up 256 bytes.
    return _schedule_elements(_function([x, table, out]), layer.output, vectors=False), (constant,)


def build_max_pool2d(layer: MaxPool2d) -> Built:
    """The maximum of a window; outside of the image is the lowest code of the type."""
    n = tirx.Var("n", "int64")
    x = _placeholder(n, layer.input, "x")
    h, w, _ = layer.input.shape
    ho, wo, _ = layer.output.shape
    (sy, sx), (dy, dx), (top, left, _, _) = layer.strides, layer.dilation, layer.padding
    r = te.reduce_axis((0, layer.kernel[0]), name="r")
    s = te.reduce_axis((0, layer.kernel[1]), name="s")
    bottom = (ho - 1) * sy + (layer.kernel[0] - 1) * dy - top
    right = (wo - 1) * sx + (layer.kernel[1] - 1) * dx - left

    def pooled(b: Expr, y: Expr, p: Expr, c: Expr) -> Expr:
        at_y, at_x = y * sy + r * dy - top, p * sx + s * dx - left
        inside = [at_y >= 0] if top else []
        inside += [at_y < h] if bottom >= h else []
        inside += [at_x >= 0] if left else []
        inside += [at_x < w] if right >= w else []
        code = x[b, at_y, at_x, c]
        if inside:
            lowest = tirx.const(CODE_RANGE[layer.input.dtype][0], layer.input.dtype)
            code = tirx.if_then_else(tirx.all(*inside), code, lowest)
        return te.max(code, axis=[r, s])

    out = te.compute((n, *layer.output.shape), pooled, name="out")
    sch = s_tir.Schedule(_function([x, out]))
    block = sch.get_sblock("out")
    b, y, p, c, kr, ks = sch.get_loops(block)
    c, lane = sch.split(c, [None, math.gcd(layer.output.shape[2], VECTOR)])
    sch.reorder(b, y, p, c, kr, ks, lane)
    sch.parallel(sch.fuse(b, y))
    sch.vectorize(lane)
    sch.decompose_reduction(block, kr)
    return sch.mod["main"].without_attr("global_symbol"), ()


def _placeholder(n: Expr, value: Value, name: str) -> te.Tensor:
    return te.placeholder((n, *value.shape), value.dtype, name=name)


def _function(tensors: list[te.Tensor]) -> tirx.PrimFunc:
    return te.create_prim_func(tensors, index_dtype_override="int64")


def _schedule_elements(func: tirx.PrimFunc, output: Value, *, vectors: bool) -> tirx.PrimFunc:
    """One image as a row of elements, cut into tasks of about ``TASK_BYTES``, cut into vectors."""
    size = math.prod(output.shape)
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
