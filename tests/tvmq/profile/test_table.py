"""What a terminal is told below the table: each reason once."""

from __future__ import annotations

from profile_pages import operator, profile_of

from tvmq.profile.table import summary


def test_a_reason_for_the_cpu_is_said_once():
    rows = [operator(f"gate{n}", "cpu", reason="it is computed.") for n in range(8)]
    lines = [line for line in summary(profile_of([*rows, operator("conv")])) if "CPU:" in line]
    assert len(lines) == 1
    assert lines[0].startswith("CPU: gate0 (module gate0); gate1 (module gate1); ")
    assert lines[0].endswith(" and 2 more: it is computed.")


def test_what_leaves_multipliers_empty_is_said_once_of_layers_that_the_array_bounds():
    why = {"filled": 0.5, "unfilled": "16 output channels meet 32 columns"}
    bound = [operator(f"conv{n}", bound="MAC array", **why) for n in range(8)]
    waiting = operator("waiting", bound="DMA", **why)
    lines = [line for line in summary(profile_of([*bound, waiting])) if "filled" in line]
    names = ", ".join(f"conv{n}" for n in range(6))
    wanted = f"MAC array 50 % filled, 16 output channels meet 32 columns: {names} and 2 more"
    assert lines == [wanted]
