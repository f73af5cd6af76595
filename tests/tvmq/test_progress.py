"""Progress in logs: how much of how much, and the time left of what is counted now."""

from tvmq import progress


def test_a_second_count_has_its_own_total_and_time(monkeypatch):
    said = []
    clock = iter(range(0, 1000, 30))
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    line = progress._Lines("reconstruct", said.append)
    line(100, 200, "unit 1")
    line(150, 200)
    line(1, 20, "exponents")
    line(11, 20)
    line(12, None)
    assert said == [
        "reconstruct: 100 of 200; unit 1",
        "reconstruct: 150 of 200, 30 s left",
        "reconstruct: 1 of 20; exponents",
        "reconstruct: 11 of 20, 27 s left",
        "reconstruct: 12",
    ]
