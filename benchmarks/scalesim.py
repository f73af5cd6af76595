"""Matrix products as GEMM programs for ``conformance_scalesim``, folded as SCALE-Sim does.

SCALE-Sim's weight-stationary array handles one fold (R rows of the reduction, C output columns)
after the other: load R rows of weights, stream all M rows, drain. So does a GEMM instruction on
a machine with one weight buffer, a tile being a fold.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from targets.npu.machine import isa
from targets.npu.machine.spec import NpuSpec
from targets.npu.price.accesses import accesses
from targets.npu.price.stalls import account, totals
from targets.npu.price.timing import simulate_timing

CASES = Path(__file__).resolve().parents[1] / "tests" / "data" / "scalesim.csv"
MOST_TILES = 255
"""That the field k0 holds."""


@dataclass(frozen=True)
class Case:
    """A row of SCALE-Sim's results: an R x C array on an M x K by K x N product."""

    dataflow: str
    rows: int
    cols: int
    layer: str
    m: int
    n: int
    k: int
    cycles: int
    ifmap_reads: int
    filter_reads: int
    ofmap_writes: int


@dataclass(frozen=True)
class Counts:
    """What our machine says of a product."""

    cycles: int
    ifmap_reads: int
    filter_reads: int
    ofmap_writes: int


def read_cases(path: Path = CASES) -> list[Case]:
    """The rows of the results; lines that begin with # are comments."""
    with path.open() as file:
        rows = csv.reader(line for line in file if not line.startswith("#"))
        next(rows)
        return [
            Case(row[0], int(row[1]), int(row[2]), row[3], *(int(cell) for cell in row[4:11]))
            for row in rows
        ]


def machine(spec: NpuSpec, rows: int, cols: int) -> NpuSpec:
    """The conformance machine with an array of another size."""
    content = spec.model_dump()
    content["array"] |= {"rows": rows, "cols": cols}
    return NpuSpec.model_validate(content)


def gemm_program(m: int, n: int, k: int, spec: NpuSpec) -> list[isa.Instruction]:
    """The product's folds: all of the reduction for C columns, then the next C columns.

    Shapes only: addresses are 0, since a whole product need not fit the scratchpads here.
    """
    rows, cols = spec.array.rows, spec.array.cols
    m1 = next(d for d in range(1, m + 1) if m % d == 0 and m // d < 1024 and d < 1024)
    program: list[isa.Instruction] = []
    for column in range(0, n, cols):
        for first in range(0, k, MOST_TILES * rows):
            depth = min(k - first, MOST_TILES * rows)
            tiles = -(-depth // rows)
            program.append(
                isa.Gemm(
                    acc_init=int(first == 0),
                    m0=m // m1,
                    m1=m1,
                    k0=tiles,
                    kvalid=depth - (tiles - 1) * rows,
                    nvalid=min(cols, n - column),
                )
            )
    return program


def run(case: Case, spec: NpuSpec) -> Counts:
    """Cycles from the array's first to its last, and what it read and wrote."""
    on = machine(spec, case.rows, case.cols)
    program = gemm_program(case.m, case.n, case.k, on)
    timeline = simulate_timing(program, on)
    array = totals(account(timeline, program)[isa.MM])
    counts = [accesses(i, on) for i in program]
    return Counts(
        cycles=timeline.total - array["fetch"],
        ifmap_reads=sum(count.act_elements for count in counts),
        filter_reads=sum(count.wgt_elements for count in counts),
        ofmap_writes=sum(count.acc_sums for count in counts),
    )
