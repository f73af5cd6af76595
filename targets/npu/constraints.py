"""What the machine accepts: one function per rule.

The docstring of a rule is the manual's sentence; what it returns is the fact that broke it, or
None. The two together are
the reason that a user reads when a layer goes to the CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from targets.arithmetic import (
    INT32_MAX,
    MAX_FRACTION,
    MAX_MULTIPLIER,
    MAX_RESIDUAL_SHIFT,
    MAX_SHIFT,
    MAX_SHIFT_SPREAD,
)
from targets.errors import CapacityError
from targets.layers import Add, Conv2d, Layer, Lut, MaxPool2d, Move
from targets.npu.machine import isa
from targets.npu.machine.spec import NpuSpec
from targets.npu.schedule.conv2d import schedule_conv2d
from targets.npu.schedule.elementwise import schedule_add, schedule_lut
from targets.npu.schedule.move import schedule_move
from targets.npu.schedule.pool import schedule_max_pool2d
from targets.npu.schedule.scheduled import Scheduled
from targets.npu.schedule.storage import as_bytes


def operands_are_bytes(layer: Layer, _spec: NpuSpec) -> str | None:
    """Tensors are int8 or uint8; only the output of a convolution or dense layer may be int32."""
    values = [*layer.inputs, *([] if isinstance(layer, Conv2d) else [layer.output])]
    wide = [f"{v.name} is {v.dtype}" for v in values if v.dtype == "int32"]
    return ", ".join(wide) or None


def the_array_multiplies_bytes(layer: Layer, spec: NpuSpec) -> str | None:
    """The array multiplies 8-bit operands; codes at the edges of a program lie in bytes."""
    if not isinstance(layer, Conv2d) or 8 in spec.array.precisions:
        return None
    return f"array.precisions is {spec.array.precisions}"


def sums_fit_32_bits(layer: Layer, _spec: NpuSpec) -> str | None:
    """No sum, shifted left by the layer's fraction bits, exceeds 32 bits."""
    if not isinstance(layer, Conv2d):
        return None
    fraction = layer.requantize.fraction if layer.requantize else 0
    worst = layer.max_sum << fraction
    return f"a sum can reach {worst}" if worst > INT32_MAX else None


def shifts_fit_their_fields(layer: Layer, _spec: NpuSpec) -> str | None:
    """Right shifts lie in [0, 47], at most 15 apart between channels; left shifts in [0, 31]."""
    if isinstance(layer, Add):
        bad = [s for s in (layer.a.shift, layer.b.shift) if not 0 <= s <= MAX_RESIDUAL_SHIFT]
        if not 0 <= layer.shift <= MAX_SHIFT:
            bad.append(layer.shift)
        return f"shifts of {bad}" if bad else None
    if not isinstance(layer, Conv2d) or layer.requantize is None:
        return None
    shift, residual = layer.requantize.shift, layer.requantize.residual
    low, high = int(shift.min()), int(shift.max())
    if low < 0 or high > MAX_SHIFT or high - low > MAX_SHIFT_SPREAD:
        return f"right shifts run from {low} to {high}"
    if layer.requantize.fraction > MAX_FRACTION:
        return f"{layer.requantize.fraction} fraction bits"
    if (
        residual is not None
        and not 0 <= residual.shift.min() <= residual.shift.max() <= MAX_RESIDUAL_SHIFT
    ):
        return f"the residual's shifts run from {residual.shift.min()} to {residual.shift.max()}"
    return None


def multipliers_are_16_bits(layer: Layer, _spec: NpuSpec) -> str | None:
    """Multipliers are unsigned 16-bit numbers."""
    if isinstance(layer, Add):
        values = [layer.a.multiplier, layer.b.multiplier]
    elif isinstance(layer, Conv2d) and layer.requantize is not None:
        residual = layer.requantize.residual
        values = [
            int(np.min(layer.requantize.multiplier)),
            int(np.max(layer.requantize.multiplier)),
        ]
        values += [residual.multiplier] if residual else []
    else:
        return None
    wide = [v for v in values if not 1 <= v <= MAX_MULTIPLIER]
    return f"multipliers of {wide}" if wide else None


def windows_fit_their_fields(layer: Layer, _spec: NpuSpec) -> str | None:
    """A max pooling's window has at most 31 rows and 31 columns."""
    longest = isa.largest(isa.Pool, "kh", "kw")
    if isinstance(layer, MaxPool2d) and max(layer.kernel) > longest:
        return f"a window of {layer.kernel[0]} x {layer.kernel[1]}"
    return None


def a_tile_fits_the_scratchpads(layer: Layer, spec: NpuSpec) -> str | None:
    """One row of output, with the inputs and weights it needs, fits the machine's memories."""
    try:
        schedule(as_bytes(layer), spec)  # packed tensors take less
    except CapacityError as error:
        return str(error)
    return None


CONSTRAINTS: tuple[Callable[[Layer, NpuSpec], str | None], ...] = (
    operands_are_bytes,
    the_array_multiplies_bytes,
    sums_fit_32_bits,
    shifts_fit_their_fields,
    multipliers_are_16_bits,
    windows_fit_their_fields,
    a_tile_fits_the_scratchpads,
)


def refusal(layer: Layer, spec: NpuSpec) -> str | None:
    """Why the NPU does not take a layer: the rule and the fact; None where it does."""
    for constraint in CONSTRAINTS:
        fact = constraint(layer, spec)
        if fact is not None:
            return f"{(constraint.__doc__ or '').strip()} Here: {fact}."
    return None


def schedule(layer: Layer, spec: NpuSpec) -> Scheduled:
    """The layer in tensorized TIR, by the rule of its kind."""
    if isinstance(layer, Conv2d):
        return schedule_conv2d(layer, spec)
    if isinstance(layer, Add):
        return schedule_add(layer, spec)
    if isinstance(layer, MaxPool2d):
        return schedule_max_pool2d(layer, spec)
    if isinstance(layer, Lut):
        return schedule_lut(layer, spec)
    assert isinstance(layer, Move)
    return schedule_move(layer, spec)
