"""Norms of each pixel's channels: NORM, run by run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
from tvm import tirx

from targets.layers import Norm, Value
from targets.npu.kinds.cost import Cost, ceil_div
from targets.npu.kinds.kind import Kind, Padding, Rule, broken_rows, wide
from targets.npu.kinds.pixel_runs import Row, no_run_fits, run_cost, run_lengths, write_runs
from targets.npu.machine import isa
from targets.npu.machine.legality import EPSILON_BYTES, SCALE_BYTES
from targets.npu.machine.spec import NpuSpec
from targets.npu.price.durations import norm_row_cycles
from targets.npu.schedule import intrinsics
from targets.npu.schedule.job import Job
from targets.npu.schedule.loops import store
from targets.npu.schedule.row_meanings import (
    epsilon,
    factor,
    norm_fields,
    scale_words,
    summand,
)
from targets.npu.schedule.scheduled import Scheduled
from targets.rows import GAIN_BITS, RECIPROCAL_BITS, ROOT_BITS, largest_variance

MOST_PARTS = isa.largest(isa.Norm, "cuts") + 1
"""Of a row, each written while its factors are in PAR."""


class NormOfRows(Kind[Norm, int]):
    """A choice is the pixels of a run."""

    makes_near = True

    def broken_rules(self, layer: Norm, spec: NpuSpec) -> Iterator[tuple[Rule, str]]:
        """Codes in, codes out; the root, the factors, and what follows the sums."""
        yield from wide((layer.input, layer.output))
        count, scale = layer.input.shape[2], layer.scale
        yield from broken_rows(count, layer.bounds, layer.requantize)
        least = 1 << 2 * max(0, scale.lift + scale.fraction - RECIPROCAL_BITS)
        variance = largest_variance(count, centred=scale.centred)
        most = (1 << ROOT_BITS) - 1 - (variance << 2 * scale.lift)
        if not least <= scale.epsilon <= most:
            yield Rule.ROWS, f"{scale.epsilon} is added to variances, not {least} to {most}"
        if scale.fraction > isa.largest(isa.Norm, "fraction"):
            yield Rule.ROWS, f"{scale.fraction} fraction bits of what is normalized"
        if np.abs(scale.gain).max() >= 1 << (GAIN_BITS - 1):
            yield Rule.ROWS, f"factors from {scale.gain.min()} to {scale.gain.max()}"

    def choices(self, job: Job[Norm]) -> Iterator[int]:
        """Runs, longest first, where PAR holds the factors of an equal part of a row."""
        parts = _parts(job)
        return iter(()) if parts is None else run_lengths(job, _pixel_cycles(job, parts))

    def too_large(self, job: Job[Norm]) -> str:
        """Not even one pixel of each tensor fits ACT twice, or the factors of a part PAR."""
        if _parts(job) is not None:
            return no_run_fits(job)
        channels = job.output.shape[2]
        needs = f"factors of {channels} channels need {_parameter_bytes(channels)} bytes of PAR"
        return (
            f"{job.layer.name}: {needs}, the machine has {job.spec.sram.par.bytes}, and {channels} "
            f"are not cut into at most {MOST_PARTS} equal parts that fit"
        )

    def cost(self, job: Job[Norm], choice: int) -> Cost:
        """For each part the factors once, and one load, one NORM and one store per run."""
        parts = _needed_parts(job)
        parameters = parts * _parameter_bytes(job.output.shape[2] // parts)
        return run_cost(job, choice, _pixel_cycles(job, parts), parameters, parts)

    def schedule(self, job: Job[Norm], choice: int) -> Scheduled:
        """``npu.norm`` on every row; ``tensorize`` knows no pattern of several passes."""
        parts = _needed_parts(job)
        words = scale_words(job.layer.scale, parts)
        fields = replace(norm_fields(job.layer), cuts=parts - 1)
        channels, written = fields.length, fields.written

        def call(row: Row) -> None:
            own = replace(fields, part=row.part)
            with row.nest.block("norm") as b:
                intrinsics.row_call(
                    "npu.norm", row.act, b(row.at), row.par, row.out, b(row.to), own
                )

        def plain(row: Row) -> None:
            total, squares = (row.nest.number("int64") for _ in range(2))
            whole_root = row.nest.number("int32")
            for name, number in (("no_total", total), ("no_squares", squares)):
                with row.nest.block(name):
                    store(number, 0, tirx.IntImm("int64", 0))
            if fields.centred:
                with row.nest.serial(channels) as n, row.nest.block("total", reduce=(n,)) as b:
                    store(total, 0, total[0] + tirx.Cast("int64", row.code(b(row.at + n))))
            with row.nest.serial(channels) as n, row.nest.block("squares", reduce=(n,)) as b:
                code = tirx.Cast("int64", fields.less_zero(row.code(b(row.at + n))))
                store(squares, 0, squares[0] + code * code)
            with row.nest.block("root"):
                store(whole_root, 0, fields.root(total[0], squares[0], epsilon(row.par)))
            first = row.part * written
            with row.nest.serial(written) as n, row.nest.block("scaled") as b:
                code = fields.less_zero(row.code(b(row.at + first + n)))
                each = factor(row.par, b(n), written), summand(row.par, b(n))
                sums = fields.scaled(code, total[0], whole_root[0], *each)
                store(row.out, b(row.to + n), fields.code(sums))

        plainly, called = (write_runs(job, choice, words, channels, body) for body in (plain, call))
        return Scheduled(plainly, called, {"parameters": words.reshape(-1)})

    def bytewise(self, layer: Norm, bits: Mapping[str, int]) -> Iterable[str]:
        """A row is of bytes."""
        return (layer.input.name, layer.output.name)

    def padding(self, layer: Norm, read: Value, bits: int) -> Padding:
        """None is wanted; one for others does no harm."""
        return Padding()


def _pixel_cycles(job: Job[Norm], parts: int) -> int:
    """Each time that a pixel comes."""
    fields = norm_fields(job.layer)
    scaled = fields.multiplier != 1
    return norm_row_cycles(fields.length, fields.length // parts, job.spec, scaled=scaled)


def _parameter_bytes(channels: int) -> int:
    return EPSILON_BYTES + channels * SCALE_BYTES


def _parts(job: Job[Norm]) -> int | None:
    """Into how many equal parts rows are cut, the fewest whose factors PAR holds; or None."""
    channels, par = job.output.shape[2], job.spec.sram.par.bytes
    for parts in range(1, min(MOST_PARTS, channels) + 1):
        fits = ceil_div(_parameter_bytes(ceil_div(channels, parts)), 4) * 4 <= par
        if fits and channels % parts == 0:
            return parts
    return None


def _needed_parts(job: Job[Norm]) -> int:
    parts = _parts(job)
    assert parts is not None, "a norm was planned that does not fit"
    return parts
