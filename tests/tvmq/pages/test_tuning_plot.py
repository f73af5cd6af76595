"""The plot of a tuning: from the rule's cycles down to the last ones, program by program."""

from __future__ import annotations

import re

from targets.npu.choices import NO_CHOICES
from tvmq.pages.tuning_plot import cycles_over_trials, tuning_plot
from tvmq.tune.request import TuneRequest
from tvmq.tune.search import Found
from tvmq.tune.tuning import Tuned

TUNED = Tuned(
    (
        Found(NO_CHOICES, 1000, 900, 0, (1000, 950, 950, 900)),
        Found(NO_CHOICES, 500, 400, 1, (500, 400)),
    ),
    TuneRequest(6),
)


def test_programs_are_tuned_one_after_the_other():
    assert cycles_over_trials(TUNED) == [1500, 1500, 1450, 1450, 1400, 1400, 1300]


def test_choices_from_records_need_no_trial():
    found = Tuned((Found(NO_CHOICES, 1000, 900),), TuneRequest(0))
    assert cycles_over_trials(found) == [900]


def test_a_plot_is_the_same_each_time():
    text = tuning_plot(TUNED)
    assert text == tuning_plot(TUNED)
    assert re.findall(r"(?:by rule|best so far|trials)</text>", text)
