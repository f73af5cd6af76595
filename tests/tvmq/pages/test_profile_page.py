"""The page of a profile: all of it, in one file, whatever the names are."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import matplotlib as mpl
import pytest
from profile_pages import EVIL, Page, operator, profile_of

from tvmq.artifact.artifact import RangeEntry
from tvmq.pages.profile_page import profile_page

SVG = "{http://www.w3.org/2000/svg}"


def _svgs(page):
    parts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    return {svg.get("aria-label"): svg for svg in map(ET.fromstring, parts)}


@pytest.fixture(scope="module")
def operators():
    refused = operator("softmax", "cpu", bound="host")
    return [operator("conv2d"), operator(EVIL), refused, operator("add", macs=0, bound="DMA")]


@pytest.fixture(scope="module")
def page(operators):
    return profile_page(profile_of(operators))


def test_every_operator_and_every_reason_is_on_it(page, operators):
    cells = Page(page).cells
    for row in operators:
        assert {row.name, row.layer, row.reason} <= {*cells, ""}


def test_names_are_text(page):
    parsed = Page(page)
    assert parsed.scripts == 1
    assert parsed.open == []
    assert "<script>alert" not in page
    shown = EVIL.replace("\x07", "?")  # which XML can't hold
    for label in ("Roofline", "Time and energy", "Timeline"):
        titles = [title.text for title in _svgs(page)[label].iter(f"{SVG}title")]
        assert any(title.startswith(shown) for title in titles)


def test_what_is_too_narrow_is_on_it(page, operators):
    entry = RangeEntry(
        kind="weights",
        name=EVIL,
        source="module a.b",
        channels=(1, 4),
        count=8,
        steps=(0.25, 1.5),
        layer="conv2d",
        lost=0.345,
        remedy="Do something.",
    )
    found = profile_page(replace(profile_of(operators), ranges=(entry,)))
    cells = Page(found).cells
    first = cells.index(f"{EVIL} (weights)")
    assert cells[first + 1 : first + 8] == [
        *("module a.b", "2 of 8", "0.25", "1.5", "conv2d", "34", "Do something.")
    ]
    assert "Too narrow" in found
    assert "Too narrow" not in page


def test_it_needs_no_other_file(page):
    assert all(reference.startswith("#") for reference in Page(page).references)
    assert set(re.findall(r"https?://[^\"'\s<]*", page)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in page
    assert not re.findall(r"@import|url\((?!#)", page)


def test_what_a_plot_refers_to_is_there_and_no_id_stands_for_two_things(page):
    ids = re.findall(r'<[^>]* id="([^"]*)"[^>]*>', page)
    assert set(re.findall(r"(?:url\(|href=\")#(\w+)", page)) == set(ids)
    drawn = re.findall(r'<(?:path|clipPath) id="[^"]*".*?(?:/>|</clipPath>)', page)
    assert len(set(drawn)) == len(set(ids))


def test_marks_are_of_their_operators(page):
    marks = {
        label: [mark.get("data-row") for mark in svg.iter() if "data-row" in mark.attrib]
        for label, svg in _svgs(page).items()
    }
    assert marks["Roofline"] == ["0", "1"]  # those with MACs
    assert marks["Time and energy"] == ["0", "1", "2", "3"] * 2
    assert marks["Timeline"] == ["0", "1", "3"]


def test_the_timeline_shows_when_units_work(page):
    width = 0.0
    for path in _svgs(page)["Timeline"].iter(f"{SVG}path"):
        if path.get("style") == "fill: #3b82c4":
            points = re.findall(r"([\d.]+) ([\d.]+)", path.get("d"))
            heights = [float(y) for _, y in points]
            high = [float(x) for x, y in points if float(y) == min(heights)]
            if len(points) > 10:
                width = (max(high) - min(high)) / (float(points[-2][0]) - float(points[0][0]))
    assert width == pytest.approx(2.5 / 3, abs=0.01)  # three layers, the last half idle


def test_colours_of_text_are_the_pages(page):
    assert "currentColor" in page
    assert all("#1f2733" not in ET.tostring(svg, "unicode") for svg in _svgs(page).values())


def test_axes_of_less_than_a_decade_have_plain_numbers():
    profile = profile_of([operator("conv2d", macs=24000)])
    dma = profile.spec.dma.model_copy(update={"bytes_per_cycle": 512})
    page = profile_page(replace(profile, spec=profile.spec.model_copy(update={"dma": dma})))
    assert "512 bytes per cycle" in page
    assert "math" not in page


def test_without_an_npu():
    page = profile_page(profile_of([operator("conv2d", "cpu"), operator("add", "cpu")]))
    assert list(_svgs(page)) == ["Time and energy"]
    assert "MAC array</th>" not in page
    assert Page(page).cells[-5:] == ["no such instruction", "cpu", "2", "14.0", "conv2d, add"]


def test_the_same_profile_gives_the_same_page(page, operators):
    with mpl.rc_context({"svg.hashsalt": None, "font.size": 20, "xtick.major.size": 20}):
        assert profile_page(profile_of(operators)) == page


def test_a_thousand_layers_make_a_page_that_opens():
    page = profile_page(profile_of([operator(f"convolution_{n}") for n in range(1000)]))
    assert 500_000 < len(page) < 2_000_000
    labels = list(_svgs(page)["Time and energy"].iter(f"{SVG}text"))
    assert len([text for text in labels if text.text.startswith("convolution_")]) < 100
