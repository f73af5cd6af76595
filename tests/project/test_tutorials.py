"""Every tutorial runs, from another folder than its own, and its assertions hold.

Those that show a package which tvmq doesn't need are skipped where it isn't installed.
"""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from unoptimized import unoptimized_code

OPTIONAL = {"torchmetrics"}
TUTORIALS = sorted((Path(__file__).resolve().parents[2] / "tutorials").glob("*.py"))


def test_there_are_tutorials():
    assert TUTORIALS


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        with unoptimized_code():
            runpy.run_path(str(path), run_name="__main__")
    except ImportError as error:
        if str(error.name).split(".")[0] in OPTIONAL:
            pytest.skip(str(error))
        raise
    assert capsys.readouterr().out
