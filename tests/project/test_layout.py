"""The shape of the repository: one subject per file, imports that go one way."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

from tvmq.cli import VERBS

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("tvmq", "relay_passes", "targets")
MAY_IMPORT = {
    "tvmq": {"tvmq", "relay_passes", "targets"},
    "relay_passes": {"relay_passes", "targets"},
    "targets": {"targets"},
}
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc"}
ENDS = (".", "?", ":")
MACHINE_PATH = re.compile(r"(?<![\w.])/(work|tmp|home|root|Users)/")


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


IN_PACKAGES = sources(*PACKAGES)
ALL = sources(*PACKAGES, "tests", "benchmarks", "attacks", "examples", "tutorials")


TREES = {path: ast.parse(path.read_text()) for path in ALL}


def imports(path: Path) -> set[str]:
    """First words of all absolute imports, those inside functions included."""
    names = [
        alias.name
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Import)
        for alias in node.names
    ]
    names += [
        node.module or "."
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.ImportFrom) and node.level == 0
    ]
    return {name.split(".")[0] for name in names}


def test_the_packages_are_found():
    assert len(IN_PACKAGES) > 30


def test_imports_go_one_way():
    wrong = {}
    for path in IN_PACKAGES:
        forbidden = (imports(path) & set(PACKAGES)) - MAY_IMPORT[relative(path).split("/")[0]]
        if forbidden:
            wrong[relative(path)] = forbidden
    assert wrong == {}


def test_what_benchmarks_and_examples_import_exists():
    """They run seldom, some for hours: a name that has moved must not wait for that."""
    missing = [
        (relative(path), node.module, alias.name)
        for path in sources("benchmarks", "examples", "tutorials")
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES
        for alias in node.names
        if not hasattr(importlib.import_module(node.module), alias.name)
    ]
    assert missing == []


def test_lower_packages_do_not_know_the_command_line():
    word = re.compile(rf"`tvmq ({'|'.join(VERBS)})\b|[` ]--[a-z]+")
    lower = [p for p in IN_PACKAGES if not relative(p).startswith("tvmq/")]
    assert [relative(path) for path in lower if word.search(path.read_text())] == []


def test_imports_are_absolute():
    assert [
        relative(path)
        for path in IN_PACKAGES
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.ImportFrom) and node.level > 0
    ] == []


def test_files_say_what_they_are():
    first = {path: (ast.get_docstring(TREES[path]) or "").split("\n")[0].strip() for path in ALL}
    wrong = {relative(path): line for path, line in first.items() if not line.endswith(ENDS)}
    assert wrong == {}, "each needs a module docstring whose first line is a sentence"


def test_names_say_something():
    assert [relative(p) for p in ALL if p.stem.removeprefix("test_") in VAGUE] == []


def test_no_path_of_a_machine():
    others = [path for path in ALL if path != Path(__file__).resolve()]  # which spells them
    assert [relative(path) for path in others if MACHINE_PATH.search(path.read_text())] == []
