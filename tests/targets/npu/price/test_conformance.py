"""SCALE-Sim and ONNXim, exactly: the array's rules against programs that others wrote."""

from dataclasses import replace
from itertools import pairwise

import pytest
from machines import varied

from benchmarks.scalesim import Case, gemm_program, machine, read_cases, run
from targets.npu.machine import isa
from targets.npu.machine.spec import load_spec
from targets.npu.price.timing import simulate_timing

SPEC = load_spec("conformance_scalesim")
CASES = read_cases()
STATIONARY_WEIGHTS = [case for case in CASES if case.dataflow == "ws"]


def label(case: Case) -> str:
    return f"{case.layer}-{case.rows}x{case.cols}"


def test_all_results_are_there():
    assert len(CASES) == 60
    assert len(STATIONARY_WEIGHTS) == 45


def test_every_shape_is_covered_by_the_dataflow_that_the_machine_has():
    """Output-stationary rows repeat shapes; a weight-stationary machine can't give their cycles."""
    other = {(c.m, c.n, c.k) for c in CASES if c.dataflow != "ws"}
    assert other <= {(c.m, c.n, c.k) for c in STATIONARY_WEIGHTS}


@pytest.mark.parametrize("case", STATIONARY_WEIGHTS, ids=label)
def test_cycles_and_accesses_equal_scalesim(case):
    counts = run(case, SPEC)
    assert counts.cycles == case.cycles
    assert counts.ifmap_reads == case.ifmap_reads
    assert counts.filter_reads == case.filter_reads
    assert counts.ofmap_writes == case.ofmap_writes


def test_programs_are_encodable():
    """The shapes fit the fields of real instructions."""
    for case in STATIONARY_WEIGHTS:
        spec = machine(SPEC, case.rows, case.cols)
        for instruction in gemm_program(case.m, case.n, case.k, spec):
            assert isa.decode(isa.encode(instruction)) == instruction


@pytest.mark.parametrize("pixels", [1, 3, 16, 40])
@pytest.mark.parametrize("rows", [8, 16])
def test_chained_tiles_start_as_onnxim_says(pixels, rows):
    """Its rule: a tile starts max(M, R, 4) after the one before; the last drains in R + C - 2."""
    spec = varied(load_spec("e256"), "array", rows=rows)
    spec = varied(spec, "issue", decode=0)
    tile = isa.Gemm(m0=pixels, kvalid=rows, nvalid=16)
    timeline = simulate_timing([tile] * 20, spec)
    begins = [run.work[0] for run in timeline.runs]
    spacing = max(pixels, rows, 4)
    assert [b - a for a, b in pairwise(begins)] == [spacing] * 19
    assert timeline.total == begins[-1] + spacing + rows + 16 - 2
    assert simulate_timing([replace(tile, k0=20)], spec).total == timeline.total
