"""Accounts: every cycle of every unit in one class, on programs counted by hand and at random."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from machines import varied
from random_programs import random_program

from targets.errors import TimingError
from targets.npu.machine import isa
from targets.npu.machine.spec import load_spec
from targets.npu.price.stalls import CLASSES, Span, account, clip, totals
from targets.npu.price.timing import simulate_timing

E256 = load_spec("e256")
GEMM = isa.Gemm(m0=10, m1=10, k0=4, nvalid=16, kvalid=16)


def accounts(*program, spec=E256):
    timeline = simulate_timing(program, spec)
    return timeline, account(timeline, program)


def only(spans):
    return {kind: cycles for kind, cycles in totals(spans).items() if cycles}


def test_of_one_gemm():
    timeline, (ld, mm, vu, st) = accounts(GEMM)
    assert only(mm) == {"fetch": 108, "decode": 4, "weights": 16, "work": 400, "latency": 30}
    assert only(ld) == only(vu) == only(st) == {"done": timeline.total}


def test_of_a_chain_from_load_to_store():
    program = (
        isa.Load(x_bytes=640, push=2),
        replace(GEMM, pop=1, push=4),
        isa.Requantize(m0=10, m1=10, nvalid=16, pop=2, push=8),
        isa.Store(x_bytes=64, pop=4),
    )
    timeline, (ld, mm, vu, st) = accounts(*program)
    load, gemm, req, store = timeline.runs
    assert timeline.total == store.done
    assert only(ld) == {
        "fetch": 108, "decode": 4, "latency": 100, "work": 80, "done": timeline.total - 292
    }  # fmt: skip
    assert only(mm)["LD"] == load.done - gemm.queued
    assert only(vu)["MM"] == gemm.done - req.queued
    assert only(st)["VU"] == req.done - store.queued
    assert only(st)["latency"] == 100


def test_waiting_for_the_bus():
    program = (isa.Store(x_bytes=6400), isa.Load(x_bytes=64))
    timeline, (ld, _, _, st) = accounts(*program)
    store, load = timeline.runs
    assert only(ld)["bus"] == store.bus[1] - load.asked > 0
    assert "bus" not in only(st)


def test_a_full_token_fifo():
    spec = varied(E256, "issue", token_depth=1)
    program = [replace(GEMM, k0=1, push=4)] * 5 + [isa.Requantize(m0=500, nvalid=16, pop=2)] * 5
    timeline, (_, mm, _, _) = accounts(*program, spec=spec)
    runs = timeline.runs
    # What drains comes first: the wait counts from the completion of what was started.
    assert only(mm)["fifo"] == runs[4].start - runs[3].done
    assert "fifo" not in only(accounts(*program)[1][1])


def test_the_wait_for_halt_is_not_the_load_units():
    timeline, (ld, _, _, _) = accounts(GEMM, isa.Halt())
    assert only(ld) == {"fetch": 108, "done": timeline.total - 112, "decode": 4}


@pytest.mark.parametrize("seed", range(30))
def test_classes_add_up_to_the_total_exactly(seed):
    rng = np.random.default_rng(seed)
    spec = varied(
        varied(E256, "issue", token_depth=2, queue_depth=int(rng.integers(2, 20))),
        "dma",
        outstanding=int(rng.integers(1, 4)),
        read_latency=int(rng.integers(0, 300)),
    )
    program = random_program(rng)
    timeline, units = accounts(*program, spec=spec)
    for unit, spans in enumerate(units):
        assert spans[0].begin == 0
        assert spans[-1].end == timeline.total
        assert all(a.end == b.begin and a.kind != b.kind for a, b in pairwise(spans))
        cycles = totals(spans)
        assert sum(cycles.values()) == timeline.total
        runs = [r for r, i in zip(timeline.runs, program, strict=True) if i.unit == unit]
        if unit in (isa.MM, isa.VU):  # nothing overlaps in them: work is what was asked for
            assert cycles["work"] == sum(run.work[1] - run.work[0] for run in runs)
    moved = sum(run.bus[1] - run.bus[0] for run in timeline.runs)
    assert moved <= totals(units[isa.LD])["work"] + totals(units[isa.ST])["work"]


def test_random_programs_meet_every_class():
    seen = set()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        spec = varied(varied(E256, "issue", token_depth=1), "dma", outstanding=2)
        try:
            _, units = accounts(*random_program(rng), spec=spec)
        except TimingError:  # one token per FIFO is too few for some of them
            continue
        seen |= {kind for spans in units for kind in only(spans)}
    assert seen | {"fifo"} == set(CLASSES)


def test_clip_cuts_at_both_ends():
    spans = [Span(0, 5, "fetch"), Span(5, 9, "work"), Span(9, 20, "done")]
    assert clip(spans, 5, 9) == [Span(5, 9, "work")]
    assert clip(spans, 3, 10) == [Span(3, 5, "fetch"), Span(5, 9, "work"), Span(9, 10, "done")]
    assert clip(spans, 6, 6) == []
    assert clip(spans, 0, 20) == spans
