"""Max pooling: the window in order, channels in vectors."""

from __future__ import annotations

import math

from tvm import s_tir, te, tirx

from targets.code_range import type_range
from targets.cpu.elements import VECTOR, function, placeholder
from targets.cpu.host import CpuFeatures
from targets.cpu.kernel import Kernel
from targets.cpu.requantize import Expr
from targets.layers import MaxPool2d


def build_max_pool2d(layer: MaxPool2d, _host: CpuFeatures) -> Kernel:
    """The maximum of a window; outside of the image is the lowest code of the type."""
    n = tirx.Var("n", "int64")
    x = placeholder(n, layer.input, "x")
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
            lowest = tirx.const(type_range(layer.input.dtype)[0], layer.input.dtype)
            code = tirx.if_then_else(tirx.all(*inside), code, lowest)
        return te.max(code, axis=[r, s])

    out = te.compute((n, *layer.output.shape), pooled, name="out")
    sch = s_tir.Schedule(function([x, out]))
    block = sch.get_sblock("out")
    b, y, p, c, kr, ks = sch.get_loops(block)
    c, lane = sch.split(c, [None, math.gcd(layer.output.shape[2], VECTOR)])
    sch.reorder(b, y, p, c, kr, ks, lane)
    sch.parallel(sch.fuse(b, y))
    sch.vectorize(lane)
    sch.decompose_reduction(block, kr)
    return Kernel(sch.mod["main"].without_attr("global_symbol"), ())
