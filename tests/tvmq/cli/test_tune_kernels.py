"""`tvmq tune --device cpu` and `tvmq build --target cpu` with trials: cuts of the CPU's kernels."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from loopback import Loopback, processes
from model_files import save

from targets.cpu.cuts import Cut
from tvmq.artifact.artifact import Artifact
from tvmq.artifact.files import CUTS
from tvmq.cli import main
from tvmq.run.session import Session
from tvmq.tune import retune_kernels as module
from tvmq.tune.kernel_clock import OneAtATime, Turns
from tvmq.tune.records import TRIALS
from tvmq.tune.retune import kept_cuts

TRIALS_MADE = 6


class Clock(OneAtATime):
    """In the place of the real one: any cut takes half of the rule's time."""

    machine = "a clock of tests"

    def __init__(self, *_):
        super().__init__()
        self.rules = {}

    def timed(self, batch):
        rule = self.rules.setdefault(batch.layer.name, batch.cuts[0])
        return [Turns((1e-4 if cut == rule else 5e-5,) * batch.turns) for cut in batch.cuts]


@pytest.fixture(scope="module")
def tuned(small, tmp_path_factory):
    """An artifact for the NPU whose kernels on the CPU were tuned."""
    folder = tmp_path_factory.mktemp("tuned") / "tuned.tvmq"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LocalClock", Clock)
        patch.setattr(module, "_compared", lambda *_: (2e-3, 1e-3))
        words = ["tune", small, "-o", folder, "--device", "cpu", "--trials", TRIALS_MADE, "-q"]
        assert main([str(word) for word in words]) == 0
    return folder


def golden(artifact):
    with Artifact.load(artifact).reading("golden.npz") as path, np.load(path) as file:
        return dict(file)


def test_other_cuts_give_the_same_outputs(small, tuned):
    artifact = Artifact.load(tuned)
    assert artifact.manifest.bit_exact
    assert kept_cuts(artifact)
    expected = golden(small)
    inputs = {name[6:]: array for name, array in expected.items() if name.startswith("input.")}
    for device in ("npu", "cpu"):
        for name, array in Session(artifact, device).run(inputs).items():
            np.testing.assert_array_equal(array, expected[f"output.{name}"])
    libraries = [Artifact.load(each).path("cpu.so").read_bytes() for each in (small, tuned)]
    assert libraries[0] != libraries[1]


def test_the_manifest_says_what_was_found(tuned):
    manifest = Artifact.load(tuned).manifest
    facts = manifest.tuning["cpu"]
    assert (facts["trials"], facts["machine"]) == (TRIALS_MADE, Clock.machine)
    assert facts["nanoseconds"]["after"] < facts["nanoseconds"]["before"]
    assert facts["network_seconds"] == {"before": 2e-3, "after": 1e-3}
    assert CUTS in manifest.files


def test_what_makes_the_network_slower_is_not_kept(small, tvmq, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LocalClock", Clock)
    monkeypatch.setattr(module, "_compared", lambda *_: (1e-3, 2e-3))
    words = ["--device", "cpu", "--trials", TRIALS_MADE]
    result = tvmq("tune", small, "-o", tmp_path / "a.tvmq", *words)
    assert result.code == 0, result.err
    assert "so they stay as they were" in " ".join(result.err.split())
    assert "which the network is slower with: not kept" in " ".join(result.out.split())
    assert not Artifact.load(tmp_path / "a.tvmq").manifest.tuning["cpu"]["kept"]
    assert not kept_cuts(Artifact.load(tmp_path / "a.tvmq"))
    assert Artifact.load(tmp_path / "a.tvmq").path("cpu.so").read_bytes() == (
        Artifact.load(small).path("cpu.so").read_bytes()
    )


def test_programs_are_tuned_without_losing_cuts(tuned, tvmq, tmp_path):
    result = tvmq("tune", tuned, "-o", tmp_path / "b.tvmq", "--device", "npu", "--trials", 0)
    assert result.code == 0, result.err
    artifact = Artifact.load(tmp_path / "b.tvmq")
    assert kept_cuts(artifact) == kept_cuts(Artifact.load(tuned))
    assert {"cpu", "cycles"} <= set(artifact.manifest.tuning)


@pytest.mark.parametrize("trials", [0, 1])
def test_tuning_again_keeps_what_was_found(tuned, tvmq, tmp_path, monkeypatch, trials):
    """Without its records, too; the network isn't compared with itself."""
    before = kept_cuts(Artifact.load(tuned))

    class NoneIsFaster(Clock):
        def timed(self, batch):
            fast = before.values()
            return [Turns((5e-5 if cut in fast else 1e-4,) * batch.turns) for cut in batch.cuts]

    monkeypatch.setattr(module, "LocalClock", NoneIsFaster)
    monkeypatch.setattr(module, "_compared", lambda *_: pytest.fail("nothing has changed"))
    words = ["--device", "cpu", "--trials", trials]
    result = tvmq("tune", tuned, "-o", tmp_path / "again.tvmq", *words)
    assert result.code == 0, result.err
    assert kept_cuts(Artifact.load(tmp_path / "again.tvmq")) == before


def test_cuts_of_another_processor_are_left_out(tuned, tvmq, tmp_path, monkeypatch):
    """Its kernels may be made otherwise here; and the manifest says what the new ones need."""
    artifact = Artifact.load(tuned)
    wrong = {name: replace(cut, pixels=63) for name, cut in kept_cuts(artifact).items()}
    monkeypatch.setattr("tvmq.tune.retune.kept_cuts", lambda _: wrong)
    monkeypatch.setattr(module, "LocalClock", Clock)
    monkeypatch.setattr(module, "cpu_entry", lambda asked, _: needing_all(asked))
    monkeypatch.setattr(module, "_compared", lambda *_: (1e-3, 1e-3))

    def needing_all(asked):
        return artifact.manifest.cpu.model_copy(update={"target": asked, "needs": ("everything",)})

    words = ["--device", "cpu", "--trials", TRIALS_MADE]
    result = tvmq("tune", tuned, "-o", tmp_path / "a.tvmq", *words)
    assert result.code == 0, result.err
    said = " ".join(result.err.split())
    assert f"{len(wrong)} of {len(wrong)} kernels can't be cut here as they were tuned" in said
    assert Artifact.load(tmp_path / "a.tvmq").manifest.cpu.needs == ("everything",)
    result = tvmq("tune", tuned, "-o", tmp_path / "b.tvmq", "--device", "npu", "--trials", 0)
    assert result.code == 0, result.err


def test_records_that_can_not_be_written_are_refused_before_the_work(tvmq, tmp_path):
    model = save("resnet_small", tmp_path)
    (tmp_path / "records").touch()
    words = ["--target", "cpu", "--trials", 4, "--tuning-records", tmp_path / "records", "-v"]
    result = tvmq("build", model, "-o", tmp_path / "a", *words)
    assert result.code == 2
    assert "can't be written" in result.err
    assert "capture" not in result.err


def test_a_build_for_the_cpu_is_tuned_on_the_clock(tvmq, tmp_path):
    model = save("resnet_small", tmp_path)
    words = ["--target", "cpu", "--trials", TRIALS_MADE, "--json"]
    result = tvmq("build", model, "-o", tmp_path / "a", *words)
    assert result.code == 0, result.err
    facts = json.loads(result.out)
    assert facts["bit_exact"]
    assert facts["tuning"]["cpu"]["trials"] == TRIALS_MADE
    lines = (tmp_path / "a.tuning" / TRIALS).read_text().splitlines()
    assert len(lines) == TRIALS_MADE + len(facts["tuning"]["cpu"]["kernels"])
    assert all(isinstance(Cut(**each["cut"]), Cut) for each in facts["tuning"]["cpu"]["kernels"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rpc-tracker", "127.0.0.1:9"], "one needs the other"),
        (["--rpc-key", "board"], "one needs the other"),
        (["--rpc-tracker", "nowhere", "--rpc-key", "board"], "expected HOST:PORT"),
        (["--rpc-tracker", "127.0.0.1:9", "--rpc-key", "board"], "can't be reached"),
        (["--device", "cpu", "--rpc-tracker", "127.0.0.1:9", "--rpc-key", "b"], "can't be reached"),
        (["--device", "cpu", "--plot", "p.svg"], "draws the cycles of the NPU"),
    ],
)
def test_what_can_not_be_asked_for_is_refused(small, tvmq, tmp_path, words, said):
    result = tvmq("tune", small, "-o", tmp_path / "a.tvmq", "--trials", 4, *words)
    assert result.code == 2
    assert said in result.err
    assert not (tmp_path / "a.tvmq").exists()


def test_kernels_for_another_processor_are_not_timed_here(tvmq, tmp_path):
    model = save("resnet_small", tmp_path)
    words = ["--target", "cpu", "--cpu", "armv8-neon", "--trials", 4]
    result = tvmq("build", model, "-o", tmp_path / "a", *words)
    assert result.code in (2, 5)  # 5 where nothing links for that processor
    assert result.code == 5 or "can't execute" in result.err


@pytest.mark.slow
def test_servers_of_a_tracker_time_kernels(small, tvmq, tmp_path):
    pytest.importorskip("tornado", reason="TVM's tracker needs it")
    with Loopback(2) as loopback:
        address = ["--rpc-tracker", loopback.address, "--rpc-key"]
        words = ["--device", "cpu", "--trials", 16, *address, "here"]
        result = tvmq("tune", small, "-o", tmp_path / "a.tvmq", *words, "--json")
        assert result.code == 0, result.err
        facts = json.loads(result.out)
        assert facts["bit_exact"]
        assert facts["trials"] == 16
        assert "servers here" in facts["machine"]
        assert all("load_module" in loopback.said(number) for number in range(2))
        missing = tvmq("tune", small, "-o", tmp_path / "b.tvmq", *words[:-1], "board")
        assert missing.code == 2
        assert "none for the key board" in missing.err
        for number in range(2):
            loopback.end(number)
        loopback.wait(0)
        gone = tvmq("tune", small, "-o", tmp_path / "b.tvmq", *words)
        assert gone.code == 2
        assert "has no servers" in gone.err


@pytest.mark.slow
def test_an_interrupt_leaves_records_and_no_process(small, tmp_path):
    """The same command goes on from there; the servers are free again."""
    pytest.importorskip("tornado", reason="TVM's tracker needs it")
    records = tmp_path / "a.tvmq.tuning" / TRIALS
    with Loopback(2) as loopback:
        words = ["tune", small, "-o", tmp_path / "a.tvmq", "--device", "cpu", "--trials", 500]
        words += ["--rpc-tracker", loopback.address, "--rpc-key", "here"]
        command = [sys.executable, "-m", "tvmq", *map(str, words)]
        tuning = subprocess.Popen(
            command, env=loopback.environment, stderr=subprocess.PIPE, text=True
        )
        until = time.monotonic() + 120
        while not records.exists() or len(records.read_text().splitlines()) < 12:
            assert time.monotonic() < until
            time.sleep(0.05)
        started = [each for each in processes() if each.parent == tuning.pid]
        assert len(started) >= 2
        tuning.send_signal(signal.SIGINT)
        _, said = tuning.communicate(timeout=60)
        assert tuning.returncode == 130, said
        assert "finished trials are kept in" in said
        assert "Traceback" not in said
        time.sleep(1)  # Python's own helper ends behind it
        assert not {each.pid for each in started} & {each.pid for each in processes()}
        sessions = [loopback.tracker.session() for _ in range(2)]
        assert len(sessions) == 2
    assert not (tmp_path / "a.tvmq").exists()
    assert all(json.loads(line) for line in records.read_text().splitlines())
