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
from targets.npu.machine.spec import NpuSpec
from targets.npu.schedule import intrinsics
from targets.npu.schedule.geometry import ceil_div
from targets.npu.schedule.intrinsics import ACT
from targets.npu.schedule.loops import (
    Expr,
    LoopNest,
    prim_func,
    root,
    scratchpad,
    smaller,
    store,
    tensor_argument,
)
from targets.npu.schedule.meanings import max_byte
from targets.npu.schedule.scheduled import Scheduled, tensorize
from targets.npu.schedule.storage import pixel_bytes, pixel_offset, repeated, row_bytes
from targets.npu.schedule.tiling import MIN_STRIPES


def schedule_max_pool2d(layer: MaxPool2d, spec: NpuSpec) -> Scheduled:
    """Lower max pooling with any window, stride and padding.

    Raises:
        CapacityError: not even one output row fits ACT.
    """
    bits, dtype = layer.output.bits, layer.output.dtype
    loads, stores = layer.input.border is None, layer.output.border is None
    h, w, _ = layer.input.shape
    oh, ow, _ = layer.output.shape
    c = pixel_bytes(layer.output)
    (kh, kw), (sy, sx), (top, left, _, _) = layer.kernel, layer.strides, layer.padding
    dy, dx = layer.dilation
    width = (ow - 1) * sx + (kw - 1) * dx + 1
    pitch = width * c if loads else row_bytes(layer.input)
    rows = stripe_rows(layer, spec)
    stripes = ceil_div(oh, rows)
    slots = min(2, stripes)
    rows_in = (rows - 1) * sy + (kh - 1) * dy + 1
    x_slot, y_slot = rows_in * width * c, rows * ow * c
    lowest_code = 0 if dtype == "uint8" else -(1 << (bits - 1))
    lowest = tirx.const(repeated(lowest_code, layer.output), dtype)
    nest = LoopNest()
    with prim_func(layer.name) as builder:
        source = tensor_argument("input", layer.input, spec)
        output = tensor_argument("output", layer.output, spec)
        with root():
            act = scratchpad("act", x_slot * slots, dtype, ACT) if loads else source
            out = scratchpad("out", y_slot * slots, dtype, ACT) if stores else output
            with nest.serial(stripes) as s:
                now = rows if oh % rows == 0 else smaller(rows, oh - s * rows)
                first = s % 2 if stripes > 1 else 0
                x_at = first * x_slot
                if not loads:
                    x_at = pixel_offset(layer.input, s * (rows * sy) - top, -left)
                rows_now = (now - 1) * sy + (kh - 1) * dy + 1

                def place(y: Expr, x: Expr, s: Expr = s, first: Expr = first) -> Expr:
                    if stores:
                        return first * y_slot + (y * ow + x) * c
                    return pixel_offset(layer.output, s * rows + y, x)

                if loads:
                    with nest.grid((rows_now, rows_in), width, c) as (y, x, ch):
                        from_y, from_x = s * (rows * sy) + y - top, x - left
                        with nest.block("load") as b:
                            inside = tirx.all(from_y >= 0, from_y < h, from_x >= 0, from_x < w)
                            code = source[b((from_y * w + from_x) * c + ch)]
                            value = tirx.if_then_else(b(inside), code, lowest)
                            store(act, b(x_at + y * pitch + x * c + ch), value)
                with nest.grid((now, rows), ow * c) as (y, n), nest.block("lowest") as b:
                    store(out, b(place(y, 0) + n), lowest)
                with nest.grid((now, rows), ow, kh, kw, c, 1) as (y, x, ky, kx, ch, one):
                    window = (y * sy + ky * dy) * pitch + (x * sx + kx * dx) * c
                    with nest.block("max", reduce=(ky, kx)) as b:
                        to = b(place(y, x) + ch + one)
                        code = act[b(x_at + window + ch + one)]
                        store(out, to, max_byte(out[to], code, dtype, bits))
                if stores:
                    with nest.serial(now * (ow * c), y_slot) as n, nest.block("store") as b:
                        store(output, b(s * y_slot + n), out[b(first * y_slot + n)])
    return tensorize(builder.get(), {"max": (intrinsics.max_pool(dtype, bits), 1)}, {})


def stripe_rows(layer: MaxPool2d, spec: NpuSpec) -> int:
    """Output rows of the tallest stripe that fits ACT twice.

    Raises:
        CapacityError: there is none.
    """
    oh, ow, _ = layer.output.shape
    (kh, kw), (sy, sx), (dy, dx) = layer.kernel, layer.strides, layer.dilation
    width = (ow - 1) * sx + (kw - 1) * dx + 1
    for stripes in range(min(oh, MIN_STRIPES), oh + 1):
        rows = ceil_div(oh, stripes)
        pixels = ((rows - 1) * sy + (kh - 1) * dy + 1) * width * (layer.input.border is None)
        pixels += rows * ow * (layer.output.border is None)
        needed = min(2, ceil_div(oh, rows)) * pixel_bytes(layer.output) * pixels
        if needed <= spec.sram.act.bytes:
            return rows
    msg = (
        f"{layer.name}: one row of max pooling needs {needed} bytes of ACT, "
        f"the machine has {spec.sram.act.bytes}"
    )
    raise CapacityError(msg)
