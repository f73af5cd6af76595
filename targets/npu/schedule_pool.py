"""Schedule of max pooling.

    for stripe: load input rows, bordered with the lowest code; out = lowest; for ky, kx: out =
    max(out, act) -> npu.max
                store the stripe

Average pooling is a depthwise convolution with weights of one and has no schedule of its own.
"""

from __future__ import annotations

from tvm import tirx

from targets.errors import CapacityError
from targets.layers import MaxPool2d
from targets.npu import intrinsics
from targets.npu.conv_geometry import ceil_div
from targets.npu.intrinsics import ACT
from targets.npu.loops import LoopNest, buffer_argument, prim_func, root, scratchpad, smaller, store
from targets.npu.meanings import max_byte
from targets.npu.scheduled import Scheduled, tensorize
from targets.npu.spec import NpuSpec
from targets.npu.storage import repeated
from targets.npu.tiling import MIN_STRIPES


def schedule_max_pool2d(layer: MaxPool2d, spec: NpuSpec) -> Scheduled:
    """Lower max pooling with any window, stride and padding.

    Raises:
        CapacityError: not even one output row fits ACT.
    """
    bits = layer.output.bits
    h, w, _ = layer.input.shape
    oh, ow, _ = layer.output.shape
    c = layer.output.shape[2] * bits // 8
    (kh, kw), (sy, sx), (top, left, _, _) = layer.kernel, layer.strides, layer.padding
    dy, dx = layer.dilation
    width = (ow - 1) * sx + (kw - 1) * dx + 1
    rows = _stripe_rows(layer, spec, width)
    stripes = ceil_div(oh, rows)
    slots = min(2, stripes)
    rows_in = (rows - 1) * sy + (kh - 1) * dy + 1
    x_slot, y_slot = rows_in * width * c, rows * ow * c
    dtype = layer.output.dtype
    lowest_code = 0 if dtype == "uint8" else -(1 << (bits - 1))
    lowest = tirx.const(repeated(lowest_code, layer.output), dtype)
    nest = LoopNest()
    with prim_func(layer.name) as builder:
        source = buffer_argument("input", h * w * c, dtype)
        output = buffer_argument("output", oh * ow * c, dtype)
        with root():
            act = scratchpad("act", x_slot * slots, dtype, ACT)
            out = scratchpad("out", y_slot * slots, dtype, ACT)
            with nest.serial(stripes) as s:
                now = rows if oh % rows == 0 else smaller(rows, oh - s * rows)
                x_at, y_at = (s % 2 * x_slot, s % 2 * y_slot) if stripes > 1 else (0, 0)
                rows_now = (now - 1) * sy + (kh - 1) * dy + 1
                with nest.grid((rows_now, rows_in), width, c) as (y, x, ch):
                    from_y, from_x = s * (rows * sy) + y - top, x - left
                    with nest.block("load") as b:
                        inside = tirx.all(from_y >= 0, from_y < h, from_x >= 0, from_x < w)
                        code = source[b((from_y * w + from_x) * c + ch)]
                        value = tirx.if_then_else(b(inside), code, lowest)
                        store(act, b(x_at + (y * width + x) * c + ch), value)
                with nest.serial(now * (ow * c), y_slot) as n, nest.block("lowest") as b:
                    store(out, b(y_at + n), lowest)
                with nest.grid((now, rows), ow, kh, kw, c, 1) as (y, x, ky, kx, ch, one):
                    pixel = (y * sy + ky * dy) * width + x * sx + kx * dx
                    with nest.block("max", reduce=(ky, kx)) as b:
                        to = b(y_at + (y * ow + x) * c + ch + one)
                        code = act[b(x_at + pixel * c + ch + one)]
                        store(out, to, max_byte(out[to], code, dtype, bits))
                with nest.serial(now * (ow * c), y_slot) as n, nest.block("store") as b:
                    store(output, b(s * y_slot + n), out[b(y_at + n)])
    return tensorize(builder.get(), {"max": (intrinsics.max_pool(dtype, bits), 1)}, {})


def _stripe_rows(layer: MaxPool2d, spec: NpuSpec, width: int) -> int:
    """The tallest stripe that fits twice."""
    oh, ow, c = layer.output.shape
    c = c * layer.output.bits // 8
    for stripes in range(min(oh, MIN_STRIPES), oh + 1):
        rows = ceil_div(oh, stripes)
        rows_in = (rows - 1) * layer.strides[0] + (layer.kernel[0] - 1) * layer.dilation[0] + 1
        needed = min(2, ceil_div(oh, rows)) * c * (rows_in * width + rows * ow)
        if needed <= spec.sram.act.bytes:
            return rows
    msg = (
        f"{layer.name}: one row of max pooling needs {needed} bytes of ACT, "
        f"the machine has {spec.sram.act.bytes}"
    )
    raise CapacityError(msg)
