"""Sums of two tensors of codes: bound by memory, so nothing but vectors and tasks."""

from __future__ import annotations

from tvm import te, tirx

from targets.code_range import type_range
from targets.cpu.elements import function, placeholder, schedule_elements
from targets.cpu.host import CpuFeatures
from targets.cpu.kernel import Kernel
from targets.cpu.requantize import Expr, round_and_clamp
from targets.layers import Add, Operand
from targets.sum_bounds import CodeRange, add_needs_int64


def build_add(layer: Add, _host: CpuFeatures) -> Kernel:
    """``clamp(round(a + b, shift) + zero_point)``, in int32 where the operands provably allow."""
    a_codes, b_codes = (
        CodeRange(*type_range(side.value.dtype), side.zero_point) for side in (layer.a, layer.b)
    )
    # the zero point is added after the clamp, where it can't overflow
    kind = "int64" if add_needs_int64(layer.scale, a_codes, b_codes, zero_point=0) else "int32"
    n = tirx.Var("n", "int64")
    a, b = placeholder(n, layer.a.value, "a"), placeholder(n, layer.b.value, "b")

    def term(operand: Operand, code: Expr) -> Expr:
        centred = code.astype(kind) - tirx.const(operand.zero_point, kind)
        scaled = centred * tirx.const(operand.multiplier, kind)
        return scaled << tirx.const(operand.shift, kind)

    def added(*at: Expr) -> Expr:
        total = term(layer.a, a[at]) + term(layer.b, b[at])
        return round_and_clamp(total, kind, tirx.const(layer.shift, kind), layer, layer)

    out = te.compute((n, *layer.output.shape), added, name="out")
    return Kernel(schedule_elements(function([a, b, out]), layer.output.shape, vectors=True), ())
