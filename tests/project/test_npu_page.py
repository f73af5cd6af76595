"""The tables of the machine's manual say what the code says."""

from __future__ import annotations

import runpy
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "npu.md"
TABLES = runpy.run_path(str(PAGE.with_name("npu_tables.py")))


def test_page_has_every_table():
    blocks = TABLES["BLOCK"].finditer(PAGE.read_text())
    assert [block["name"] for block in blocks] == list(TABLES["TABLES"])


def test_tables_are_those_of_the_code():
    text = PAGE.read_text()
    assert text == TABLES["filled"](text), "run python docs/npu_tables.py"
