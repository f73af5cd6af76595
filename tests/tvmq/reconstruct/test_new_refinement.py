"""Refinements that the engine has never heard of run through gate, report, checkpoints and page."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
from quantization_cases import calibration, float_model

from tvmq.cli.report import _reconstruction_lines
from tvmq.pages.profile_page import render
from tvmq.plan.plan_file import plan_to_json
from tvmq.plan.planner import make_plan
from tvmq.reconstruct.engine import Reconstruction, reconstruct
from tvmq.reconstruct.methods import METHODS, Method
from tvmq.reconstruct.refinement import Refinement
from tvmq.reconstruct.unit_bias import correct_unit_biases
from tvmq.reconstruct.unit_state import Checkpoints
from tvmq.settings import Settings

NAME = "mlp"


@dataclass(frozen=True)
class MeanError(Refinement):
    """Helps: takes the mean errors away, which nothing else does here."""

    name: ClassVar[str] = "mean error"

    def propose(self, work):
        """Correct the biases."""
        correct_unit_biases(work.cache, work.unit, work.exact, work.images)


@dataclass(frozen=True)
class Shift(Refinement):
    """Harms: moves all biases far away."""

    name: ClassVar[str] = "shift"
    by: float = 100.0

    def propose(self, work):
        """Shift the biases."""
        for bias in work.unit.biases.values():
            bias.correction.data += self.by


def _run(*refinements: Refinement, **other) -> Reconstruction:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "toy", Method("of biases", refinements))
        settings = Settings(2, 4, "pot", "channel", bias_correction=False, method=("toy",))
        start = make_plan(float_model(NAME), calibration(NAME), settings)
        return reconstruct(float_model(NAME), calibration(NAME), start, **other)


def test_each_is_gated_and_reported():
    done = _run(MeanError(), Shift())
    assert {unit.kept for unit in done.units} == {"nearest", "mean error"}
    for unit in done.units:
        nearest, corrected, shifted = unit.candidates
        names = [nearest.name, corrected.name, shifted.name]
        assert names == ["nearest", "mean error", "shift"]
        assert corrected.accepted == (corrected.loss < nearest.loss)
        assert not shifted.accepted
        assert unit.held_out_loss == min(nearest.loss, corrected.loss) < shifted.loss
    assert any(any(bias.correction) for bias in done.plan.biases.values())
    facts = done.as_json()
    assert "1 of 3 units closer" in _reconstruction_lines(facts)[0]
    assert '<th class="number">mean error</th>' in render(
        "reconstruction.html", reconstruction=facts
    )


def test_the_next_one_goes_on_from_what_was_refused():
    for unit in _run(Shift(), Shift(-100.0)).units:
        nearest, away, back = unit.candidates
        assert not away.accepted
        assert back.loss == pytest.approx(nearest.loss, rel=1e-3)


def test_an_interrupt_changes_nothing(tmp_path, monkeypatch):
    save = Checkpoints.save

    def save_one(self, *what):
        save(self, *what)
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", save_one)
    with pytest.raises(KeyboardInterrupt):
        _run(MeanError(), checkpoints=tmp_path)
    monkeypatch.undo()
    notes = []
    resumed = _run(MeanError(), checkpoints=tmp_path, note=notes.append)
    assert notes == [f"note: 1 finished unit in {tmp_path}; going on from there."]
    assert plan_to_json(resumed.plan) == plan_to_json(_run(MeanError()).plan)
    # Other refinements are another job.
    _run(MeanError(), Shift(), checkpoints=tmp_path, note=notes.append)
    assert "units of another network" in notes[-1]
