"""The clock: small programs whose cycles can be counted by hand."""

from dataclasses import replace

import pytest
from machines import varied

from targets.errors import TimingError
from targets.npu.machine import isa
from targets.npu.machine.spec import load_spec
from targets.npu.price.timing import simulate_timing

E256 = load_spec("e256")
GEMM = isa.Gemm(m0=10, m1=10, k0=4, nvalid=16, kvalid=16)
FETCHED = 100 + 8  # latency, and a burst of 64 bytes at 8 per cycle: two instructions


def timeline(*program, spec=E256):
    return simulate_timing(program, spec)


def test_an_instruction_is_fetched_decoded_worked_and_drained():
    t = timeline(GEMM)
    (run,) = t.runs
    assert t.fetch == ((100, 108),)
    assert (run.queued, run.start, run.decoded) == (FETCHED, FETCHED, FETCHED + 4)
    assert run.work == (FETCHED + 4 + 16, FETCHED + 4 + 16 + 400)
    assert run.done == t.total == run.work[1] + 30


def test_chained_gemms_load_weights_under_each_other():
    first, second = timeline(GEMM, GEMM).runs
    assert second.start == first.work[1]
    assert second.work[0] == second.decoded


def test_weights_come_in_only_once_their_token_is_there():
    # The load's token comes 6 cycles before the array is free: 10 of the 16 cycles are waited for.
    gemm = replace(GEMM, m0=1, m1=20, k0=1)
    waiting = replace(gemm, pop=1)
    spec = varied(E256, "dma", read_latency=100)
    probe = timeline(isa.Load(x_bytes=64, push=2), gemm, waiting, spec=spec)
    load, first, second = probe.runs
    assert first.work[1] < load.done == second.start  # alone it comes late: the array had idled
    assert second.work[0] == second.decoded + 16
    busy = replace(GEMM, m0=1, m1=load.done - first.work[0] + 6, k0=1)
    _, first, second = timeline(isa.Load(x_bytes=64, push=2), busy, waiting, spec=spec).runs
    assert second.start == first.work[1] == load.done + 6
    assert second.work[0] == second.decoded + 10


def test_a_nop_hides_no_weights():
    nop, gemm = timeline(isa.Nop(on=1), GEMM).runs
    assert gemm.start == nop.done
    assert gemm.work[0] == gemm.decoded + 16 - 4  # they came in while the NOP was decoded


def test_depthwise_work_hides_the_next_weights():
    depthwise = isa.Depthwise(m0=4, m1=4, kw=3, kh=3, nvalid=16)
    first, second = timeline(depthwise, GEMM).runs
    assert second.start == first.work[1]
    assert second.work[0] == second.decoded


def test_loads_overlap_their_latencies_up_to_the_outstanding():
    loads = [isa.Load(x_bytes=64) for _ in range(3)]
    a, b, c = timeline(*loads).runs
    assert (b.start, b.bus[0]) == (a.decoded, max(b.asked, a.bus[1]))
    one = timeline(*loads, spec=varied(E256, "dma", outstanding=1)).runs
    assert [run.start for run in one[1:]] == [run.done for run in one[:-1]]
    assert one[2].done - c.done > 100


def test_the_bus_serves_whoever_comes_first():
    store = isa.Store(x_bytes=640)  # 80 cycles of bus
    load = isa.Load(x_bytes=64)
    s, l = timeline(store, load).runs
    assert s.bus[0] == s.asked
    assert l.bus[0] == max(l.asked, s.bus[1])
    late = timeline(replace(store, x_bytes=6400), load).runs
    assert late[1].bus[0] == late[0].bus[1] > late[1].asked
    private = varied(E256, "dma", arbiter="private")
    apart = timeline(replace(store, x_bytes=6400), load, spec=private).runs
    assert apart[1].bus[0] == apart[1].asked


def test_a_pop_waits_for_the_completion_of_the_pusher():
    load, gemm = timeline(isa.Load(x_bytes=64, push=2), replace(GEMM, pop=1)).runs
    assert gemm.start == load.done == load.bus[1]
    assert gemm.token == (load.done, isa.LD)


def test_a_store_pushes_when_dram_has_answered():
    store, req = timeline(
        isa.Store(x_bytes=64, push=4), isa.Requantize(m0=4, nvalid=16, pop=8)
    ).runs
    assert req.start == store.bus[1] + 100


def test_a_full_fifo_holds_its_unit():
    spec = varied(E256, "issue", token_depth=1)
    gemm = replace(GEMM, k0=1, push=4)
    slow = isa.Requantize(m0=500, nvalid=16, pop=2)
    program = [gemm] * 5 + [slow] * 5
    held, free = timeline(*program, spec=spec).runs, timeline(*program).runs
    # Until REQ 2 takes token 2, token 3 finds it in the FIFO.
    assert held[4].unheld == held[7].start == held[4].start > held[3].done
    assert free[4].start == free[3].work[1]


def test_a_full_queue_holds_up_all_that_follow():
    spec = varied(E256, "issue", queue_depth=2)
    gemms = [GEMM] * 6
    held = timeline(*gemms, isa.Requantize(m0=4, nvalid=16), spec=spec).runs
    free = timeline(*gemms, isa.Requantize(m0=4, nvalid=16)).runs
    assert held[6].queued >= held[3].start > free[6].queued


def test_halt_waits_for_everything():
    t = timeline(isa.Store(x_bytes=64), GEMM, isa.Halt())
    store, gemm, halt = t.runs
    assert halt.start == max(store.done, gemm.done)
    assert t.total == halt.start + 4


def test_halt_with_tokens_left_is_an_error():
    with pytest.raises(TimingError, match="HALT with tokens left: 1 from MM to VU"):
        timeline(replace(GEMM, push=4), isa.Halt())


def test_deadlock_names_the_units_and_what_they_wait_for():
    gemm, req = replace(GEMM, pop=4, push=4), isa.Requantize(nvalid=1, pop=2, push=2)
    with pytest.raises(TimingError) as error:
        timeline(gemm, req, isa.Halt())
    text = str(error.value)
    assert text.startswith("deadlock: LD waits for all units at instruction 2; ")
    assert "MM waits for VU at instruction 0; VU waits for MM at instruction 1" in text
    assert text.endswith("tokens: none")


def test_deadlock_of_a_full_fifo_is_named():
    spec = varied(E256, "issue", token_depth=1)
    gemm = replace(GEMM, push=4)
    match = r"MM can't push to VU, whose FIFO is full; .*1 from MM to VU"
    with pytest.raises(TimingError, match=match):
        timeline(gemm, gemm, isa.Halt(), spec=spec)


def test_deadlock_of_a_full_queue_is_named():
    spec = varied(E256, "issue", queue_depth=1)
    waiting = replace(GEMM, pop=4)
    with pytest.raises(TimingError, match="instruction 1 finds the queue of MM full"):
        timeline(waiting, waiting, waiting, isa.Requantize(nvalid=1, push=2), spec=spec)


def test_no_instructions_no_time():
    assert timeline().total == 0


def test_instructions_are_counted_on_the_bus():
    t = timeline(*[isa.Nop(on=2)] * 9)
    assert len(t.fetch) == 5
    assert sum(end - begin for begin, end in t.fetch) == 5 * 8


def test_of_tokens_that_come_together_the_last_units_is_named():
    first, second, gemm = timeline(
        isa.Nop(on=isa.VU, push=2), isa.Nop(on=isa.LD, push=2), replace(GEMM, pop=5)
    ).runs
    assert first.done == second.done
    assert gemm.token == (first.done, isa.VU)


def test_halt_behind_a_full_fifo_is_a_deadlock():
    """Tokens that are held back were never left over."""
    spec = varied(E256, "issue", token_depth=1)
    program = [isa.Load(x_bytes=64, push=2), *[replace(GEMM, push=4)] * 2, isa.Halt()]
    with pytest.raises(TimingError, match="deadlock: LD waits for all units at instruction 3; MM"):
        timeline(*program, spec=spec)


def test_times_of_a_very_slow_machine_are_exact():
    """Beyond 2^53, and the product with the number of instructions beyond 2^63."""
    slow = varied(E256, "array", min_rows=2**31 - 1)
    gemms = [isa.Gemm(m0=1000, m1=1000, k0=255, k1=31, k2=31)] * 100
    assert timeline(*gemms, spec=slow).total == 52625160511559054
