"""Layers that Vela and ZigZag were asked about: frozen cycles, bands, bounds, written reasons."""

import pytest

from benchmarks.anchors import (
    SETTINGS,
    VELA,
    ZIGZAG,
    machine,
    price_anchor,
    read_anchors,
    read_golden,
)

ANCHORS = read_anchors()
GOLDEN = read_golden()
REFREEZE = "if that is meant: python -m benchmarks.validation --write"


@pytest.mark.parametrize("anchor", ANCHORS, ids=lambda anchor: anchor.name)
def test_cycles_are_the_frozen_ones_and_beat_no_bound(anchor):
    for setting in SETTINGS:
        priced = price_anchor(anchor, setting)
        total, spec = priced.timeline.total, machine(setting)
        assert total == GOLDEN[anchor.name, setting.name], REFREEZE
        assert total * spec.peak_macs_per_cycle >= priced.layers[0].macs
        channels, depth, out_h, out_w, kernel_h, kernel_w, stride, height, width = anchor.shape
        rows, columns = (
            (out_h, out_w) if kernel_h == kernel_w == 1 and stride > 1 else (height, width)
        )
        weights = channels * kernel_h * kernel_w * (1 if anchor.depthwise else depth)
        moved = rows * columns * depth + weights + channels * out_h * out_w
        assert total * spec.dma.bytes_per_cycle >= moved
        lanes = spec.vu.mult_lanes if setting.multiply else spec.vu.shift_lanes
        assert total * lanes >= channels * out_h * out_w


def test_everything_is_frozen_once():
    assert set(GOLDEN) == {(a.name, s.name) for a in ANCHORS for s in SETTINGS}


@pytest.mark.parametrize(
    ("tool", "setting", "layers"),
    [("vela", VELA, 7), ("zigzag", ZIGZAG, 9)],
    ids=["vela", "zigzag"],
)
def test_bands(tool, setting, layers):
    banded = [anchor for anchor in ANCHORS if getattr(anchor, f"{tool}_percent")]
    assert len(banded) == layers
    outside = {
        (tool, anchor.name)
        for anchor in banded
        if abs(GOLDEN[anchor.name, setting.name] / getattr(anchor, tool) - 1) * 100
        > getattr(anchor, f"{tool}_percent")
    }
    assert not outside


def test_every_close_comparison_has_a_band():
    """Where a tool agrees within 10 %, drift must show; the one layer left out agrees by chance."""
    close = {
        (tool, anchor.name)
        for tool, setting in (("vela", VELA), ("zigzag", ZIGZAG))
        for anchor in ANCHORS
        if (theirs := getattr(anchor, tool)) and not getattr(anchor, f"{tool}_percent")
        if abs(GOLDEN[anchor.name, setting.name] / theirs - 1) <= 0.1
    }
    assert close == {("vela", "mbv2_f8_exp"), ("zigzag", "mbv2_f8_exp")}
