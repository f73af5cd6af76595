"""Softmax of each pixel's channels, head by head: SOFTMAX, run by run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from tvm import tirx

from targets.layers import Softmax, Value
from targets.npu.kinds.cost import Cost
from targets.npu.kinds.kind import Kind, Padding, Rule, broken_rows, wide
from targets.npu.kinds.pixel_runs import Row, no_run_fits, run_cost, run_lengths, write_runs
from targets.npu.machine import isa
from targets.npu.machine.legality import EXPONENTIALS_BYTES
from targets.npu.machine.spec import NpuSpec
from targets.npu.price.durations import softmax_row_cycles
from targets.npu.schedule import intrinsics
from targets.npu.schedule.job import Job
from targets.npu.schedule.loops import store
from targets.npu.schedule.row_meanings import (
    exponential,
    exponential_words,
    softmax_fields,
)
from targets.npu.schedule.scheduled import Scheduled
from targets.rows import EXPONENTIAL_BITS


class SoftmaxOfRows(Kind[Softmax, int]):
    """A choice is the pixels of a run."""

    makes_near = True

    def broken_rules(self, layer: Softmax, spec: NpuSpec) -> Iterator[tuple[Rule, str]]:
        """Codes in, codes out; the table, and what follows the sums."""
        yield from wide((layer.input, layer.output))
        yield from broken_rows(_length(layer), layer.bounds, layer.requantize)
        if layer.heads > isa.largest(isa.Rows, "m0"):
            yield Rule.ROWS, f"{layer.heads} heads"
        table = layer.table
        if table.min() < 0 or table.max() >= 1 << 16 or table[0] < 1 << EXPONENTIAL_BITS:
            fact = f"exponentials from {table.min()} to {table.max()}, the first {table[0]}"
            yield Rule.ROWS, fact

    def choices(self, job: Job[Softmax]) -> Iterator[int]:
        """Runs, longest first, where PAR holds the table."""
        return run_lengths(job, _pixel_cycles(job)) if _parameters_fit(job) else iter(())

    def too_large(self, job: Job[Softmax]) -> str:
        """Not even one pixel of each tensor fits ACT twice, or the table PAR."""
        if _parameters_fit(job):
            return no_run_fits(job)
        needs = f"a table of exponentials needs {EXPONENTIALS_BYTES} bytes of PAR"
        return f"{job.layer.name}: {needs}, the machine has {job.spec.sram.par.bytes}"

    def cost(self, job: Job[Softmax], choice: int) -> Cost:
        """The table once; one load, one SOFTMAX and one store per run."""
        return run_cost(job, choice, _pixel_cycles(job), EXPONENTIALS_BYTES)

    def schedule(self, job: Job[Softmax], choice: int) -> Scheduled:
        """``npu.softmax`` on every row; ``tensorize`` knows no pattern of several passes."""
        words = exponential_words(job.layer.table)[None]
        fields = softmax_fields(job.layer)

        def call(row: Row) -> None:
            with row.nest.block("softmax") as b:
                intrinsics.row_call(
                    "npu.softmax", row.act, b(row.at), row.par, row.out, b(row.to), fields
                )

        def plain(row: Row) -> None:
            top, total = (row.nest.number("int32") for _ in range(2))
            with row.nest.block("begin"):
                store(top, 0, -256)
            with row.nest.serial(fields.length) as n, row.nest.block("largest", reduce=(n,)) as b:
                store(top, 0, tirx.max(top[0], row.code(b(row.at + n))))
            with row.nest.block("nothing"):
                store(total, 0, 0)
            with row.nest.serial(fields.length) as n, row.nest.block("total", reduce=(n,)) as b:
                distance = top[0] - row.code(b(row.at + n))
                store(total, 0, total[0] + exponential(row.par, distance))
            with row.nest.serial(fields.length) as n, row.nest.block("share") as b:
                count = exponential(row.par, top[0] - row.code(b(row.at + n)))
                store(row.out, b(row.to + n), fields.code(fields.share(count, total[0])))

        written, called = (
            write_runs(job, choice, words, fields.length, body) for body in (plain, call)
        )
        return Scheduled(written, called, {"parameters": words.reshape(-1)})

    def bytewise(self, layer: Softmax, bits: Mapping[str, int]) -> Iterable[str]:
        """A row is of bytes."""
        return (layer.input.name, layer.output.name)

    def padding(self, layer: Softmax, read: Value, bits: int) -> Padding:
        """None is wanted; one for others does no harm."""
        return Padding()


def _length(layer: Softmax) -> int:
    return layer.input.shape[2] // layer.heads


def _pixel_cycles(job: Job[Softmax]) -> int:
    layer = job.layer
    scaled = softmax_fields(layer).multiplier != 1
    return layer.heads * softmax_row_cycles(_length(layer), job.spec, scaled=scaled)


def _parameters_fit(job: Job[Softmax]) -> bool:
    return job.spec.sram.par.bytes >= EXPONENTIALS_BYTES
