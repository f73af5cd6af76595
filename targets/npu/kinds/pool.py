"""Max pooling: POOL, stripe by stripe.

    for stripe: load input rows, bordered with the lowest code; out = lowest;
                for ky, kx: out = max(out, act)  -> npu.max
                store the stripe

Average pooling is a depthwise convolution with weights of one and no kind of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial

from tvm import tirx

from targets.code_range import code_range
from targets.layers import MaxPool2d, Value
from targets.npu.kinds.cost import Cost, Step, bus_cycles, ceil_div, streamed
from targets.npu.kinds.kind import Kind, Padding, Rule, same_width, wide
from targets.npu.kinds.stripes import slots, stripe_heights
from targets.npu.machine import isa
from targets.npu.machine.spec import NpuSpec
from targets.npu.schedule import intrinsics
from targets.npu.schedule.intrinsics import ACT
from targets.npu.schedule.job import Job
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


class MaxPool(Kind[MaxPool2d, int]):
    """A choice is the output rows of a stripe."""

    makes_near = True

    def broken_rules(self, layer: MaxPool2d, spec: NpuSpec) -> Iterator[tuple[Rule, str]]:
        """Codes in, codes out, and a window that POOL's fields can say."""
        yield from wide((layer.input, layer.output))
        if max(layer.kernel) > isa.largest(isa.Pool, "kh", "kw"):
            yield Rule.WINDOW, f"a window of {layer.kernel[0]} x {layer.kernel[1]}"

    def choices(self, job: Job[MaxPool2d]) -> Iterator[int]:
        """Heights of stripes, tallest first."""
        rows, needed = job.output.shape[0], partial(_stripe_bytes, job)
        if job.stripe is None:
            return stripe_heights(rows, needed, job.act_bytes)
        fewest, most = job.stripe
        return (
            height
            for height in range(most, fewest - 1, -1)
            if slots(rows, height) * needed(height) <= job.act_bytes
        )

    def too_large(self, job: Job[MaxPool2d]) -> str:
        """Not even one output row fits ACT."""
        needed = slots(job.output.shape[0], 1) * _stripe_bytes(job, 1)
        return (
            f"{job.layer.name}: one row of max pooling needs {needed} bytes of ACT, "
            f"the machine has {job.act_bytes}"
        )

    def cost(self, job: Job[MaxPool2d], choice: int) -> Cost:
        """One load, one POOL and one store per stripe; without those of what stays in ACT."""
        layer, spec = job.layer, job.spec
        oh, ow, channels = job.output.shape
        h, w, _ = job.inputs[0].shape
        pixel = job.output.pixel_bytes
        loads: tuple[int, ...] = ()
        if not job.inputs[0].near:
            columns = min(w, _columns_in(layer))
            rows = min(h, _rows_in(layer, choice))
            whole = columns == w
            moved = (1, rows * w * pixel) if whole else (rows, columns * pixel)
            loads = (bus_cycles(spec, *moved),)
        stores = 0 if job.output.near else bus_cycles(spec, 1, choice * ow * pixel)
        taps = layer.kernel[0] * layer.kernel[1]
        work = ceil_div(choice * ow * channels * taps, spec.vu.pool_lanes)
        return streamed(spec, oh, choice, Step(loads=loads, computes=work, stores=stores))

    def schedule(self, job: Job[MaxPool2d], choice: int) -> Scheduled:
        """``npu.max`` of every byte of every tap."""
        layer, rows = job.layer, choice
        input_, output_ = job.inputs[0], job.output
        bits, dtype = output_.bits, output_.dtype
        loads, stores = not input_.near, not output_.near
        h, w, _ = input_.shape
        oh, ow, _ = output_.shape
        c = output_.pixel_bytes
        (kh, kw), (sy, sx), (top, left, _, _) = layer.kernel, layer.strides, layer.padding
        dy, dx = layer.dilation
        width = _columns_in(layer)
        pitch = width * c if loads else input_.row_bytes
        stripes = ceil_div(oh, rows)
        both = slots(oh, rows)
        rows_in = _rows_in(layer, rows)
        x_slot, y_slot = rows_in * width * c, rows * ow * c
        lowest = tirx.const(output_.repeated(_lowest_code(layer.output, bits)), dtype)
        nest = LoopNest()
        with prim_func(layer.name) as builder:
            source = tensor_argument("input", input_, job.spec)
            output = tensor_argument("output", output_, job.spec)
            with root():
                act = scratchpad("act", x_slot * both, dtype, ACT) if loads else source
                out = scratchpad("out", y_slot * both, dtype, ACT) if stores else output
                with nest.serial(stripes) as s:
                    now = rows if oh % rows == 0 else smaller(rows, oh - s * rows)
                    first = s % 2 if stripes > 1 else 0
                    x_at = first * x_slot
                    if not loads:
                        x_at = input_.pixel_offset(s * (rows * sy) - top, -left)
                    rows_now = (now - 1) * sy + (kh - 1) * dy + 1

                    def place(y: Expr, x: Expr, s: Expr = s, first: Expr = first) -> Expr:
                        if stores:
                            return first * y_slot + (y * ow + x) * c
                        return output_.pixel_offset(s * rows + y, x)

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

    def bytewise(self, layer: MaxPool2d, bits: Mapping[str, int]) -> Iterable[str]:
        """Input and output have one width."""
        return same_width((layer.input, layer.output), bits)

    def padding(self, layer: MaxPool2d, read: Value, bits: int) -> Padding:
        """Its padding, of a code that never wins."""
        return Padding(layer.padding, _lowest_code(read, bits))


def _rows_in(layer: MaxPool2d, rows: int) -> int:
    """Input rows that ``rows`` output rows read, padding included."""
    return (rows - 1) * layer.strides[0] + (layer.kernel[0] - 1) * layer.dilation[0] + 1


def _columns_in(layer: MaxPool2d) -> int:
    ow = layer.output.shape[1]
    return (ow - 1) * layer.strides[1] + (layer.kernel[1] - 1) * layer.dilation[1] + 1


def _stripe_bytes(job: Job[MaxPool2d], rows: int) -> int:
    """Bytes of ACT that a stripe's input and output take, but for what stays there anyway."""
    pixels = 0 if job.inputs[0].near else _rows_in(job.layer, rows) * _columns_in(job.layer)
    pixels += 0 if job.output.near else rows * job.output.shape[1]
    return pixels * job.output.pixel_bytes


def _lowest_code(value: Value, bits: int) -> int:
    return code_range(bits, value.dtype == "int8")[0]
