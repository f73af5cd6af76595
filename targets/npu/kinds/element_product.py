"""Products of two tensors, element by element: VMUL. The right one may be broadcast: gates.

    load what is broadcast whole
    for part of the outermost axis: load; out = a * b  -> npu.multiply; store

Axes of the output along which the right operand goes on in the same way are one axis: a gate of a
channel leaves two (pixel, channel), equal shapes leave one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from tvm import tirx

from targets.layers import Conv2d, Factor, Requantize, Value
from targets.npu.kinds.cost import Cost, Step, bus_cycles, ceil_div, streamed
from targets.npu.kinds.element_runs import LONGEST_RUN, RUNS
from targets.npu.kinds.kind import Kind, Rule, broken_requantization, wide
from targets.npu.machine.spec import NpuSpec
from targets.npu.schedule import intrinsics
from targets.npu.schedule.intrinsics import ACT
from targets.npu.schedule.job import Job
from targets.npu.schedule.loops import (
    Expr,
    LoopNest,
    buffer_argument,
    prim_func,
    root,
    scratchpad,
    smaller,
    store,
)
from targets.npu.schedule.meanings import MultiplyFields
from targets.npu.schedule.scheduled import Scheduled, tensorize
from targets.rounding import HALF_UP


@dataclass(frozen=True)
class Axis:
    """Elements of the output in a row: how many, and how far the right operand goes per element."""

    extent: int
    right: int


class ElementProduct(Kind[Conv2d, int]):
    """A choice is how long a part of the outermost axis is."""

    def broken_rules(self, layer: Conv2d, spec: NpuSpec) -> Iterator[tuple[Rule, str]]:
        """Bytes, the fields of VMUL, and that nothing but the product is rounded."""
        yield from wide((*layer.inputs, layer.output))
        requantize = layer.requantize
        if requantize is None:
            return
        yield from broken_requantization(requantize)
        if requantize.residual is not None:
            yield Rule.ELEMENTS, f"'{requantize.residual.value.name}' is added to the products"
        if layer.bias.any():
            yield Rule.ELEMENTS, "constants are added to the products"
        if len({*zip(requantize.multiplier.tolist(), requantize.shift.tolist(), strict=True)}) > 1:
            yield Rule.ELEMENTS, "channels are scaled by different numbers"
        if requantize.rounding != HALF_UP:
            yield Rule.ROUNDING, f"it rounds by {requantize.rounding.mode.name}"

    def choices(self, job: Job[Conv2d]) -> Iterator[int]:
        """Parts, longest first, that ACT holds."""
        extent, row = _axes(job.layer)[0].extent, _row_bytes(job.layer)
        most = max(1, LONGEST_RUN // row)
        parts = max(min(RUNS, extent), ceil_div(extent, most))
        while parts <= extent:
            part = ceil_div(extent, parts)
            if _act_bytes(job.layer, part) <= job.act_bytes:
                yield part
            parts *= 2
        if extent & (extent - 1) and _act_bytes(job.layer, 1) <= job.act_bytes:
            yield 1

    def too_large(self, job: Job[Conv2d]) -> str:
        """Not even the smallest part fits."""
        needed = _act_bytes(job.layer, 1)
        return f"{job.layer.name}: needs {needed} bytes of ACT, the machine has {job.act_bytes}"

    def cost(self, job: Job[Conv2d], choice: int) -> Cost:
        """One or two loads, one VMUL and one store per part."""
        layer, spec = job.layer, job.spec
        first = _axes(layer)[0]
        codes = choice * _row_bytes(layer)
        moved = bus_cycles(spec, 1, codes)
        loads, constants = [moved], 0
        if first.right:
            loads.append(bus_cycles(spec, 1, choice * first.right))
        else:
            constants = bus_cycles(spec, 1, math.prod(_factor(layer).shape))
        work = ceil_div(2 * codes, spec.vu.elt_lanes)
        if _multiplier(layer.requantize) != 1:
            work = max(work, ceil_div(codes, spec.vu.mult_lanes))
        step = Step(loads=loads, computes=work, stores=moved)
        return streamed(spec, first.extent, choice, step, constants=constants)

    def schedule(self, job: Job[Conv2d], choice: int) -> Scheduled:
        """``npu.multiply`` on every byte."""
        layer = job.layer
        fields = _fields(layer)
        with prim_func(layer.name) as builder:
            tensors = [
                buffer_argument(name, tensor.bytes, tensor.dtype)
                for name, tensor in zip(
                    ("input", "factor", "output"), (*job.inputs, job.output), strict=True
                )
            ]
            with root():
                _write_parts(layer, choice, fields, *tensors)
        return tensorize(builder.get(), {"multiply": (intrinsics.multiply(fields), 1)}, {})

    def bytewise(self, layer: Conv2d, bits: Mapping[str, int]) -> Iterable[str]:
        """VMUL reads and writes bytes."""
        return [value.name for value in (*layer.inputs, layer.output)]


def _factor(layer: Conv2d) -> Value:
    assert isinstance(layer.right, Factor)
    return layer.right.value


def _axes(layer: Conv2d) -> list[Axis]:
    """The output's axes, outermost first; those along which both tensors go on are one."""
    axes: list[Axis] = []
    step = 1
    for extent, size in zip(
        reversed(layer.output.shape), reversed(_factor(layer).shape), strict=True
    ):
        right = step if size > 1 else 0
        step *= size
        if extent == 1:
            continue
        if axes and right == axes[0].extent * axes[0].right:
            axes[0] = Axis(axes[0].extent * extent, axes[0].right)
        else:
            axes.insert(0, Axis(extent, right))
    return axes or [Axis(1, 1)]


def _row_bytes(layer: Conv2d) -> int:
    """Of what the outermost axis counts."""
    return math.prod(axis.extent for axis in _axes(layer)[1:])


def _slots(layer: Conv2d, part: int) -> int:
    return min(2, ceil_div(_axes(layer)[0].extent, part))


def _right_bytes(layer: Conv2d, part: int) -> int:
    """Of the right operand's slots, or of all of it where it is broadcast."""
    first = _axes(layer)[0]
    if not first.right:
        return math.prod(_factor(layer).shape)
    return _slots(layer, part) * part * first.right


def _act_bytes(layer: Conv2d, part: int) -> int:
    streams = 2 * _slots(layer, part) * part * _row_bytes(layer)
    return streams + _right_bytes(layer, part)


def _multiplier(requantize: Requantize | None) -> int:
    return int(requantize.multiplier[0]) if requantize else 1


def _fields(layer: Conv2d) -> MultiplyFields:
    requantize, right = layer.requantize, layer.right
    assert requantize is not None
    assert isinstance(right, Factor)
    return MultiplyFields(
        a_dtype=layer.input.dtype,
        a_zero_point=layer.input_zero_point,
        b_dtype=right.value.dtype,
        b_zero_point=right.zero_point,
        left=requantize.fraction,
        multiplier=_multiplier(requantize),
        shift=int(requantize.shift[0]),
        zero_point=requantize.zero_point,
        low=requantize.low,
        high=requantize.high,
        dtype=layer.output.dtype,
    )


def _write_parts(
    layer: Conv2d,
    part: int,
    fields: MultiplyFields,
    left: tirx.Buffer,
    right: tirx.Buffer,
    output: tirx.Buffer,
) -> None:
    """Load, multiply and store part by part, in two slots per tensor."""
    first, *rest = _axes(layer)
    row, slots = _row_bytes(layer), _slots(layer, part)
    count = ceil_div(first.extent, part)
    a = scratchpad("left", slots * part * row, fields.a_dtype, ACT)
    b = scratchpad("right", _right_bytes(layer, part), fields.b_dtype, ACT)
    out = scratchpad("out", slots * part * row, fields.dtype, ACT)
    nest = LoopNest()
    if not first.right:
        size = _right_bytes(layer, part)
        with nest.serial(size) as n, nest.block("load_right") as block:
            store(b, block(n), right[block(n)])
    with nest.serial(count) as p:
        now = part if first.extent % part == 0 else smaller(part, first.extent - p * part)
        slot = p % 2 if count > 1 else 0

        def copy(
            name: str, to: tirx.Buffer, source: tirx.Buffer, bytes_: int, *, out_of: bool
        ) -> None:
            with nest.serial(now * bytes_, part * bytes_) as n, nest.block(name) as block:
                near, far = slot * (part * bytes_) + n, p * (part * bytes_) + n
                at, from_ = (far, near) if out_of else (near, far)
                store(to, block(at), source[block(from_)])

        if first.right:
            copy("load_right", b, right, first.right, out_of=False)
        copy("load_left", a, left, row, out_of=False)
        loops = [(now, part), *((axis.extent, axis.extent) for axis in rest), (1, 1)]
        with nest.grid(*loops) as (outer, *inner, one), nest.block("multiply") as block:
            dense: Expr = outer
            beside: Expr = outer * first.right
            for axis, index in zip(rest, inner, strict=True):
                dense, beside = dense * axis.extent + index, beside + index * axis.right
            if first.right:
                beside = slot * (part * first.right) + beside
            dense = slot * (part * row) + dense + one
            value = fields.code(a[block(dense)], b[block(beside + one)])
            store(out, block(dense), value)
        copy("store", output, out, row, out_of=True)
