"""The compiled executor is made once, kept, checked, and made anew where it is damaged."""

import os
from pathlib import Path

import numpy as np
import pytest
import tvm

from targets.npu.execute import compiled
from targets.npu.execute.compiled import (
    Executor,
    cache_folder,
    executor_object,
    executor_symbol,
    made_meanwhile,
)
from targets.npu.execute.executor import make_executor
from targets.npu.machine import isa
from targets.npu.machine.program import Program
from targets.npu.machine.spec import load_spec

SPEC = load_spec("e256")


@pytest.fixture
def made(monkeypatch):
    """Counts what is compiled, and makes a file instead of seconds of work."""
    calls = []

    class Library:
        def write_to_file(self, path):
            calls.append(path)
            Path(path).write_bytes(b"object")

    monkeypatch.setattr(compiled.tvm.tirx, "build", lambda *_: Library())
    monkeypatch.setattr(compiled, "make_executor", lambda *_, **__: None)
    monkeypatch.setattr(compiled.tvm, "IRModule", lambda *_: None)
    compiled._own_folder.cache_clear()
    yield calls
    compiled._own_folder.cache_clear()


def test_it_is_made_once(made, tmp_path, monkeypatch):
    monkeypatch.setenv("TVMQ_CACHE", str(tmp_path / "cache"))
    first = executor_object(SPEC)
    assert first.parent == cache_folder() == tmp_path / "cache"
    assert executor_object(SPEC) == first
    assert len(made) == 1
    assert executor_object(load_spec("m2048")) != first
    assert len(made) == 2


def test_a_damaged_one_is_made_anew(made, tmp_path, monkeypatch):
    monkeypatch.setenv("TVMQ_CACHE", str(tmp_path))
    path = executor_object(SPEC)
    compiled._own_folder.cache_clear()
    path.write_bytes(b"objecT")
    assert executor_object(SPEC).read_bytes() == b"object"
    assert len(made) == 2
    assert path.read_bytes() == b"object"


def test_a_cache_that_cannot_be_written_is_done_without(made, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TVMQ_CACHE", str(tmp_path / "file"))
    path = executor_object(SPEC)
    assert path.read_bytes() == b"object"
    assert executor_object(SPEC) == path
    assert len(made) == 1


def test_the_cache_stays_small(made, tmp_path, monkeypatch):
    monkeypatch.setenv("TVMQ_CACHE", str(tmp_path))
    for age in range(compiled.KEPT + 3):
        old = tmp_path / f"npu_execute_{age:02}.o"
        old.write_bytes(b"")
        os.utime(old, (1000 - age, 1000 - age))
    path = executor_object(SPEC)
    left = sorted(tmp_path.glob("*.o"))
    assert len(left) == compiled.KEPT
    assert path in left
    assert tmp_path / "npu_execute_00.o" in left


def test_what_it_is_made_of_names_it(monkeypatch):
    name = executor_symbol(SPEC)
    assert executor_symbol(load_spec("m2048")) != name
    compiled._key.cache_clear()
    monkeypatch.setattr(compiled, "version", lambda _: "another")
    assert executor_symbol(SPEC) != name
    compiled._key.cache_clear()


def test_machines_of_equal_sizes_share_it():
    """What else a description says is time and energy, of which the executor knows nothing."""
    other = SPEC.model_copy(
        update={
            "name": "other",
            "array": SPEC.array.model_copy(update={"dw": "window"}),
            **{
                part: getattr(load_spec("m2048"), part) for part in ("dma", "vu", "issue", "energy")
            },
        }
    )
    assert other.digest != SPEC.digest
    assert executor_symbol(other) == executor_symbol(SPEC)
    one, two = (make_executor(spec, "execute", vnni=True) for spec in (SPEC, other))
    tvm.ir.assert_structural_equal(one, two)


def test_another_process_that_fails_is_made_up_for(made, tmp_path, monkeypatch):
    monkeypatch.setenv("TVMQ_CACHE", str(tmp_path))
    monkeypatch.setattr(compiled.sys, "executable", "/bin/false")
    with made_meanwhile(SPEC):
        assert executor_object(SPEC).read_bytes() == b"object"
    assert len(made) == 1


def test_the_arena_is_the_programs():
    """Two programs with arenas of different sizes run on the same function."""
    executor = Executor(SPEC)
    for size in (64, 5000):
        code = (
            isa.Load(mem=0, region=2, x_bytes=32),
            isa.Store(mem=0, region=1, dram_off=size - 32, x_bytes=32),
            isa.Load(mem=0, region=1, dram_off=size - 32, spm_addr=64, x_bytes=32),
            isa.Store(mem=0, region=3, spm_addr=64, x_bytes=32),
            isa.Halt(),
        )
        program = Program(SPEC.name, SPEC.digest, code, b"", size, 32, 32, ())
        images = np.random.default_rng(size).integers(0, 256, (3, 32)).astype(np.uint8)
        np.testing.assert_array_equal(executor.run(program, images), images)
