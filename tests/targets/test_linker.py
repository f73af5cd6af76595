"""The linker is found and tried before the work."""

import stat

import pytest

from targets.errors import MissingDependencyError
from targets.linker import find_linker, try_linker


def test_it_links(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    assert find_linker()
    try_linker()


def test_there_is_none(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        MissingDependencyError, match=r"no C\+\+ compiler on PATH; .* Install g\+\+"
    ):
        try_linker()


def test_what_is_named_is_no_program(monkeypatch):
    monkeypatch.setenv("CXX", "nonesuch")
    with pytest.raises(MissingDependencyError, match=r"nonesuch \(from CXX or CC\) is no program"):
        try_linker()


def test_one_that_does_not_work(monkeypatch, tmp_path):
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho cannot find crti.o\nexit 1\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(MissingDependencyError, match=r"can't be linked \(cannot find crti.o\)"):
        try_linker()


def test_another_architecture_needs_a_compiler_for_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(MissingDependencyError, match=r"for riscv64 .*g\+\+-riscv64-linux-gnu"):
        try_linker("riscv64")
    for name, machine in (("own", "x86_64-linux-gnu"), ("cross", "riscv64-linux-gnu")):
        compiler = tmp_path / name
        compiler.write_text(f"#!/bin/sh\necho {machine}\n")
        compiler.chmod(0o755)
    monkeypatch.setenv("CXX", "own")
    with pytest.raises(MissingDependencyError, match="links for riscv64"):
        find_linker("riscv64")
    monkeypatch.setenv("CXX", "cross")
    assert find_linker("riscv64") == str(tmp_path / "cross")
