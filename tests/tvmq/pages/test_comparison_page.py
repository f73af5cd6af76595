"""A page of two profiles shows every operator of either, and needs nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape

from profile_pages import EVIL, Page, operator, profile_of

from tvmq.pages.comparison_page import comparison_page


def _both():
    first = profile_of([operator("conv"), operator(EVIL), operator("add", "cpu")])
    second = profile_of([operator("conv", us=0.05), operator("pool")])
    return first, replace(second, artifact="b.tvmq", about=("what <it> is",))


def test_operators_of_either_are_rows_and_marks():
    page = comparison_page(*_both())
    parsed = Page(page)
    assert parsed.open == []
    assert {"conv", EVIL, "add", "pool"} <= set(parsed.cells)
    for number in range(4):
        assert page.count(f'data-row="{number}"') == 3  # a row and two bars
    assert "2.00x" in parsed.cells


def test_it_needs_no_other_file_and_names_are_text():
    page = comparison_page(*_both())
    assert all(reference.startswith("#") for reference in Page(page).references)
    assert "<script>alert" not in page
    assert "what <it> is" in unescape(page)
    assert "<it>" not in page
    assert set(re.findall(r"https?://[^\"'\s<]*", page)) == {"http://www.w3.org/2000/svg"}


def test_the_same_profiles_give_the_same_page():
    assert comparison_page(*_both()) == comparison_page(*_both())
