"""The shape of the repository: one subject per file, imports that go one way."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("tvmq", "relay_passes", "targets")
MAY_IMPORT = {
    "tvmq": {"tvmq", "relay_passes", "targets"},
    "relay_passes": {"relay_passes", "targets"},
    "targets": {"targets"},
}
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc"}
MACHINE_PATH = re.compile(r"(?<![\w.])/(work|tmp|home|root|Users)/")


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


IN_PACKAGES = sources(*PACKAGES)
ALL = sources(*PACKAGES, "tests", "benchmarks", "examples", "tutorials")


def imports(path: Path) -> set[str]:
    """First words of all absolute imports, those inside functions included."""
    tree = ast.parse(path.read_text())
    names = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    ]
    names += [
        node.module or "."
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 0
    ]
    return {name.split(".")[0] for name in names}


def test_the_packages_are_found():
    assert len(IN_PACKAGES) > 30


@pytest.mark.parametrize("path", IN_PACKAGES, ids=relative)
def test_imports_go_one_way(path):
    package = relative(path).split("/")[0]
    wrong = (imports(path) & set(PACKAGES)) - MAY_IMPORT[package]
    assert not wrong, f"{package} must not import {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("path", IN_PACKAGES, ids=relative)
def test_imports_are_absolute(path):
    nodes = ast.walk(ast.parse(path.read_text()))
    assert not [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level > 0]


@pytest.mark.parametrize("path", ALL, ids=relative)
def test_file_says_what_it_is(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring, "needs a module docstring"
    assert docstring.splitlines()[0].strip().endswith((".", "?", ":")), docstring.splitlines()[0]


@pytest.mark.parametrize("path", ALL, ids=relative)
def test_name_says_something(path):
    assert path.stem.removeprefix("test_") not in VAGUE


@pytest.mark.parametrize("path", ALL, ids=relative)
def test_no_path_of_a_machine(path):
    if path == Path(__file__).resolve():
        pytest.skip("spells the paths that it looks for")
    assert not MACHINE_PATH.search(path.read_text())
