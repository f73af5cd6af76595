"""A trial of an NPU program, wherever it is made."""

from __future__ import annotations

from typing import NamedTuple

from targets import collector
from targets.errors import CapacityError, TimingError
from targets.npu.choices import Choices
from targets.npu.trials import Trials, Window


class Trial(NamedTuple):
    """A program by choices; a window of it, or None for all."""

    choices: Choices
    window: Window | None


@collector.paused()
def cycles_of(trials: Trials, trial: Trial) -> int:
    """Cycles of a trial; 0 if it can't be made."""
    try:
        return trials.cycles(trials.structure(trial.choices), trial.window)
    except (CapacityError, TimingError):
        return 0
