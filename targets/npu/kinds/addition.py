"""Sums of two tensors of codes: VADD, run by run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from targets.arithmetic import MAX_MULTIPLIER, MAX_RESIDUAL_SHIFT, MAX_SHIFT
from targets.layers import Add
from targets.npu.kinds.cost import Cost, Step, bus_cycles, ceil_div, streamed
from targets.npu.kinds.element_runs import no_run_fits, run_lengths, write_runs
from targets.npu.kinds.kind import Kind, Rule, same_width, wide
from targets.npu.machine.spec import NpuSpec
from targets.npu.schedule import intrinsics
from targets.npu.schedule.job import Job
from targets.npu.schedule.loops import buffer_argument, prim_func, root, store
from targets.npu.schedule.meanings import AddFields
from targets.npu.schedule.scheduled import Scheduled, tensorize
from targets.rounding import HALF_UP


class Addition(Kind[Add, int]):
    """A choice is the bytes of a run."""

    def broken_rules(self, layer: Add, spec: NpuSpec) -> Iterator[tuple[Rule, str]]:
        """Bytes, shifts, multipliers and the rounding."""
        yield from wide((*layer.inputs, layer.output))
        sides = (layer.a, layer.b)
        shifts = [side.shift for side in sides if not 0 <= side.shift <= MAX_RESIDUAL_SHIFT]
        if not 0 <= layer.shift <= MAX_SHIFT:
            shifts.append(layer.shift)
        if shifts:
            yield Rule.SHIFTS, f"shifts of {shifts}"
        multipliers = [s.multiplier for s in sides if not 1 <= s.multiplier <= MAX_MULTIPLIER]
        if multipliers:
            yield Rule.MULTIPLIERS, f"multipliers of {multipliers}"
        if layer.rounding != HALF_UP:
            yield Rule.ROUNDING, f"it rounds by {layer.rounding.mode.name}"

    def choices(self, job: Job[Add]) -> Iterator[int]:
        """Runs, longest first."""
        return run_lengths(job, job.spec.vu.elt_lanes)

    def too_large(self, job: Job[Add]) -> str:
        """Not even one byte of each tensor fits ACT twice."""
        return no_run_fits(job)

    def cost(self, job: Job[Add], choice: int) -> Cost:
        """Two loads, one VADD and one store per run."""
        spec = job.spec
        moved = bus_cycles(spec, 1, choice)
        codes = choice * 8 // job.output.bits
        work = ceil_div(2 * codes, spec.vu.elt_lanes)
        step = Step(loads=(moved, moved), computes=work, stores=moved)
        return streamed(spec, job.output.bytes, choice, step)

    def schedule(self, job: Job[Add], choice: int) -> Scheduled:
        """``npu.add`` on every byte."""
        layer = job.layer
        a, b = layer.a, layer.b
        fields = AddFields(
            a_dtype=a.value.dtype,
            a_zero_point=a.zero_point,
            a_multiplier=a.multiplier,
            a_shift=a.shift,
            b_dtype=b.value.dtype,
            b_zero_point=b.zero_point,
            b_multiplier=b.multiplier,
            b_shift=b.shift,
            shift=layer.shift,
            zero_point=layer.zero_point,
            low=layer.low,
            high=layer.high,
            dtype=layer.output.dtype,
            bits=job.output.bits,
        )
        with prim_func(layer.name) as builder:
            tensors = [
                buffer_argument(f"input{n}", tensor.bytes, tensor.dtype)
                for n, tensor in enumerate(job.inputs)
            ]
            tensors.append(buffer_argument("output", job.output.bytes, job.output.dtype))
            with root():
                write_runs(
                    tensors,
                    choice,
                    "add",
                    lambda at, x, y, out: store(out, at, fields.byte(x[at], y[at])),
                )
        return tensorize(builder.get(), {"add": (intrinsics.add(fields), 1)}, {})

    def bytewise(self, layer: Add, bits: Mapping[str, int]) -> Iterable[str]:
        """All three tensors have one width."""
        return same_width((*layer.inputs, layer.output), bits)
