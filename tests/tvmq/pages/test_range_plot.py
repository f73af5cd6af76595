"""The plot of channel ranges: every channel where it belongs, and what it says in words."""

import re
import xml.etree.ElementTree as ET

import pytest
import torch
from model_files import save
from quantization_cases import float_model

from tvmq.pages.range_plot import channel_ranges, range_plot
from tvmq.regions import PRODUCTS, op_of

SVG = "{http://www.w3.org/2000/svg}"


def test_ranges_are_those_of_the_folded_weights():
    model = float_model("mobilenet_rescaled")
    ranges = channel_ranges(model)
    products = [n for n in model.graph_module.graph.nodes if op_of(n) in PRODUCTS]
    assert list(ranges) == [node.name for node in products]
    for node in products:
        weight = model.weight_of(node)
        assert ranges[node.name].tolist() == [float(row.abs().max()) for row in weight]


def _strokes(root, colour):
    """x of every stroke of a colour; the legend has one too, which goes sideways."""
    for path in root.iter(f"{SVG}path"):
        if f"stroke: {colour}" in path.get("style", ""):
            for x0, x1 in re.findall(r"M ([\d.]+) [\d.]+ L ([\d.]+) [\d.]+", path.get("d")):
                if x0 == x1:
                    yield float(x0)


def test_a_stroke_per_channel_red_where_a_step_per_layer_rounds_it_to_zero():
    largest = torch.tensor([1.0, 0.5, 2.0**-7, 2.0**-10, 0.0])
    text = range_plot({"a<b$1$": largest, "nothing": torch.zeros(3)})
    root = ET.fromstring(text)
    kept, lost = (list(_strokes(root, colour)) for colour in ("#2b6cb0", "#c53030"))
    assert len(kept) == 3  # a channel of zeros has no place on a logarithmic axis
    assert len(lost) == 1
    assert kept[0] - kept[2] == pytest.approx(7 * (kept[0] - kept[1]), abs=0.1)
    assert kept[0] - lost[0] == pytest.approx(10 * (kept[0] - kept[1]), abs=0.1)
    words = [text.text for text in root.iter(f"{SVG}text")]
    assert {"a<b$1$", "2^-10.0", "nothing", "all 0"} <= set(words)
    assert text == range_plot({"a<b$1$": largest, "nothing": torch.zeros(3)})


def test_inspect_writes_it(tvmq, tmp_path):
    model = save("mobilenet_rescaled", tmp_path)
    result = tvmq("inspect", model, "--ranges", tmp_path / "ranges.svg")
    assert result.code == 0, result.err
    text = (tmp_path / "ranges.svg").read_text()
    spans = re.findall(r">2\^(-\d+\.\d)<", text)
    assert min(map(float, spans)) < -6
    result = tvmq("inspect", model, "--ranges", tmp_path / "no" / "ranges.svg")
    assert result.code == 2
    assert "can't be written (No such file or directory). Give another file." in result.err


def test_an_artifact_has_no_such_plot(tvmq, small, tmp_path):
    result = tvmq("inspect", small, "--ranges", tmp_path / "ranges.svg")
    assert result.code == 2
    assert "--ranges is for model files" in result.err
