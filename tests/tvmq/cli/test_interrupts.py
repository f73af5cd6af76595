"""An interrupted command ends with 130 and leaves what was there, however the interrupt gets on."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from model_files import save, save_inputs

from targets import disk_space
from tvmq import flow
from tvmq.artifact.artifact import Artifact
from tvmq.run.session import Session

pytestmark = pytest.mark.usefixtures("heeding")


def passed_on(number: int) -> None:
    os.kill(os.getpid(), number)


def as_another_error(number: int) -> None:
    """As from a callback of TVM."""
    try:
        os.kill(os.getpid(), number)
    except BaseException as error:
        raise RuntimeError from error


def swallowed(number: int) -> None:
    """As by a finalizer."""
    with contextlib.suppress(BaseException):
        os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "way", "stage"),
    [
        (signal.SIGINT, passed_on, "save_float"),
        (signal.SIGTERM, passed_on, "save_float"),
        (signal.SIGHUP, passed_on, "compile_libraries"),
        (signal.SIGTERM, as_another_error, "save_float"),
        (signal.SIGTERM, as_another_error, "compile_libraries"),
        (signal.SIGTERM, swallowed, "save_float"),
        (signal.SIGTERM, swallowed, "compile_libraries"),
    ],
)
def test_a_build_ends_and_leaves_the_old(tvmq, tmp_path, monkeypatch, number, way, stage):
    target = tmp_path / "a"
    target.mkdir()
    (target / "manifest.json").write_text("{}")
    model = save("odd_channels", tmp_path)
    monkeypatch.setattr(flow, stage, lambda *_: way(number))
    result = tvmq("build", model, "-o", target, "--target", "cpu")
    assert result.code == 130
    assert "interrupted; nothing was half-written. To do it again: tvmq build" in result.err
    assert "internal" not in result.err
    assert (target / "manifest.json").read_text() == "{}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", model.name]


def test_run_leaves_the_old_outputs(tvmq, tmp_path, small, monkeypatch):
    data = save_inputs("resnet_small", tmp_path)
    outputs = tmp_path / "o.npz"
    outputs.write_bytes(b"old")
    monkeypatch.setattr(Session, "run", lambda *_: passed_on(signal.SIGHUP))
    assert tvmq("run", small, "-i", data, "-o", outputs).code == 130
    assert outputs.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.npz", data.name]


def test_a_build_without_a_compiler_ends_before_it_begins(tvmq, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "nonesuch")
    monkeypatch.setattr(flow, "capture", lambda *_, **__: pytest.fail("it began"))
    result = tvmq("build", save("odd_channels", tmp_path), "-o", tmp_path / "a")
    assert result.code == 5
    assert "Install g++" in result.err


def test_a_build_for_which_there_is_no_room_ends_before_calibration(tvmq, tmp_path, monkeypatch):
    monkeypatch.setattr(disk_space, "free_bytes", lambda _: 1000)
    monkeypatch.setattr(flow, "calibrate", lambda *_, **__: pytest.fail("it began"))
    monkeypatch.setattr(flow, "ranges_from_batch_norm", lambda *_: pytest.fail("it began"))
    result = tvmq("build", save("odd_channels", tmp_path), "-o", tmp_path / "a")
    assert result.code == 2
    assert "the artifact of this network may take" in result.err


def test_a_disk_that_fills_up_is_said_as_such(tvmq, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(folder, _):
        monkeypatch.setattr(disk_space.os, "posix_fallocate", full)
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(flow, "save_float", write)
    result = tvmq("build", save("odd_channels", tmp_path), "-o", tmp_path / "a")
    assert result.code == 2
    assert "No space left on device" in result.err
    assert "are free there. Free some" in result.err


def test_temporary_files_of_a_killed_process_go_with_the_next(tmp_path):
    program = """
import os, signal, sys, tempfile
from tvmq.cli import process
process.prepare(alone=True)
open(tempfile.mkdtemp() + "/object.o", "w").close()
if len(sys.argv) > 1:
    os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    for words, left in ((["killed"], 1), ([], 0)):
        subprocess.run([sys.executable, "-c", program, *words], env=environment, check=False)
        assert len(list(tmp_path.iterdir())) == left


def test_what_was_built_before_is_read_by_who_began_before(tvmq, tmp_path):
    """A build replaces the artifact of a session that has not read all of it yet."""
    model = save("odd_channels", tmp_path)
    words = ["build", model, "-o", tmp_path / "a", "--target", "cpu", "-q"]
    assert tvmq(*words).code == 0
    first = Artifact.load(tmp_path / "a")
    plan = first.path("plan.json").read_bytes()
    assert tvmq(*words, "--precision", "w4a8").code == 0
    assert first.path("plan.json").read_bytes() == plan
    assert Path(tmp_path / "a" / "plan.json").read_bytes() != plan
    Session(first)
