"""Softmax and norms of the channels of each pixel, as ``targets/rows.py`` defines them.

Numbers of a row are computed once: its largest code or its sums, then reciprocal and bits of what
it is divided by. The elements follow in vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from tvm import s_tir, te, tirx

from targets.cpu.elements import VECTOR, function, placeholder
from targets.cpu.host import CpuFeatures
from targets.cpu.kernel import Kernel
from targets.cpu.requantize import Expr, round_and_clamp
from targets.layers import Norm, Softmax
from targets.rows import DIVISOR_BITS, EXPONENTIAL_BITS, LONGEST_ROW, RECIPROCAL_BITS
from targets.sum_bounds import needs_int64


def build_softmax(layer: Softmax, _host: CpuFeatures) -> Kernel:
    """Softmax of each head's channels."""
    n = tirx.Var("n", "int64")
    x = placeholder(n, layer.input, "x")
    table = te.placeholder((256,), "int32", name="table")
    height, width, channels = layer.input.shape
    count = channels // layer.heads
    rows = (n, height, width, layer.heads)

    def code(*at: Expr) -> Expr:
        *pixel, head, c = at
        return x[(*pixel, head * count + c)].astype("int32")

    axis = te.reduce_axis((0, count), "c")
    top = te.compute(rows, lambda *row: te.max(code(*row, axis), axis=axis), name="top")
    e = te.compute((*rows, count), lambda *at: table[top[at[:-1]] - code(*at)], name="exponentials")
    each = te.reduce_axis((0, count), "c")
    total = te.compute(rows, lambda *row: te.sum(e[(*row, each)], axis=each), name="total")
    bits = te.compute(rows, lambda *row: _bits(total[row]), name="bits")
    reciprocal = te.compute(
        rows, lambda *row: _reciprocal(total[row].astype("int64"), bits[row]), name="reciprocal"
    )

    def result(*at: Expr) -> Expr:
        *pixel, channel = at
        row = (*pixel, channel // count)
        product = e[(*row, channel % count)] * reciprocal[row]
        places = bits[row] - tirx.const(EXPONENTIAL_BITS, "int32")
        return _code(product >> _places(places), layer)

    out = te.compute((n, *layer.output.shape), result, name="out")
    func = _schedule(
        function([x, table, out]), ["top", "exponentials", "total", "bits", "reciprocal"]
    )
    return Kernel(func, (layer.table,))


def build_norm(layer: Norm, _host: CpuFeatures) -> Kernel:
    """Norm of each pixel's channels."""
    n = tirx.Var("n", "int64")
    x = placeholder(n, layer.input, "x")
    height, width, channels = layer.input.shape
    gain, bias = (te.placeholder((channels,), "int32", name=name) for name in ("gain", "bias"))
    rows, scale = (n, height, width), layer.scale

    def code(*at: Expr) -> Expr:
        held = x[at].astype("int32")
        return held - tirx.const(scale.zero_point, "int32") if scale.zero_point else held

    def summed(name: str, of: Callable[[Expr], Expr]) -> te.Tensor:
        axis = te.reduce_axis((0, channels), "c")
        return te.compute(rows, lambda *row: te.sum(of(code(*row, axis)), axis=axis), name=name)

    total = summed("total", lambda c: c) if scale.centred else None
    wide = "int64" if channels > LONGEST_ROW else "int32"
    squares = summed("squares", lambda c: (c * c).astype(wide))

    def root_of(*row: Expr) -> Expr:
        variance = squares[row].astype("int64") * tirx.const(channels, "int64")
        if total is not None:
            sums = total[row].astype("int64")
            variance = variance - sums * sums
        lifted = variance << tirx.const(2 * scale.lift, "int64")
        square = lifted + tirx.const(scale.epsilon, "int64")
        return tirx.floor(tirx.sqrt(square.astype("float64"))).astype("int32")

    root = te.compute(rows, root_of, name="whole_root")
    bits = te.compute(rows, lambda *row: _bits(root[row]), name="bits")
    reciprocal = te.compute(
        rows, lambda *row: _reciprocal(root[row].astype("int64"), bits[row]), name="reciprocal"
    )
    places = tirx.const(RECIPROCAL_BITS - scale.lift - scale.fraction, "int32")

    def result(*at: Expr) -> Expr:
        row, channel = at[:-1], at[-1]
        shift = _places((bits[row] + places).astype("int64"))
        one = tirx.const(1, "int64")
        deviation = code(*at) * tirx.const(channels, "int32")
        if total is not None:
            deviation = deviation - total[row]
        raised = deviation.astype("int64") * reciprocal[row].astype("int64")
        normed = ((raised + (one << (shift - one))) >> shift).astype("int32")
        return _code(normed * gain[channel] + bias[channel], layer)

    out = te.compute((n, *layer.output.shape), result, name="out")
    stages = [*(["total"] if scale.centred else []), "squares", "whole_root", "bits", "reciprocal"]
    func = _schedule(function([x, gain, bias, out]), stages)
    return Kernel(func, (scale.gain, scale.bias))


def _bits(divisor: Expr) -> Expr:
    """How many bits a positive int32 has."""
    return tirx.const(DIVISOR_BITS, "int32") - tirx.clz(divisor).astype("int32")


def _places(shift: Expr) -> Expr:
    """A shift as it is, its range in plain sight: of a shift by anything TVM thinks it gives 0."""
    most = {"int32": 31, "int64": 63}[str(shift.ty.dtype)]
    return shift & tirx.const(most, str(shift.ty.dtype))


def _reciprocal(divisor: Expr, bits: Expr) -> Expr:
    one = tirx.const(1, "int64")
    power = one << _places(bits.astype("int64") + tirx.const(RECIPROCAL_BITS, "int64"))
    return tirx.div(power - one, divisor).astype("int32")


def _code(sums: Expr, layer: Softmax | Norm) -> Expr:
    """The code of int32 sums."""
    q = layer.requantize
    kind = "int64" if needs_int64(layer.bounds, q.scale, None, 0) else "int32"
    t = sums.astype(kind) << tirx.const(q.fraction, kind)
    multiplier, shift = int(np.max(q.multiplier)), int(np.max(q.shift))
    if multiplier != 1:
        t = t * tirx.const(multiplier, kind)
    return round_and_clamp(t, kind, tirx.const(shift, kind), q, layer)


def _schedule(func: tirx.PrimFunc, stages: list[str]) -> tirx.PrimFunc:
    """Pixels to all cores; what a row needs is computed where the row is."""
    sch = s_tir.Schedule(func)
    out = sch.get_sblock("out")
    image, row, column, channel = sch.get_loops(out)
    pixel = sch.fuse(image, row, column)
    sch.parallel(pixel)
    for stage in reversed(stages):
        sch.compute_at(sch.get_sblock(stage), pixel)
    lanes = math.gcd(int(sch.get(channel).extent), VECTOR // 4)
    if lanes > 1:
        sch.vectorize(sch.split(channel, [None, lanes])[1])
    return sch.mod["main"].without_attr("global_symbol")
