"""What the command says of exceptions that are not ours: whose fault it is, and the code for it."""

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from targets.errors import GateError, TrapError
from tvmq import flow
from tvmq.cli.failures import failure


def error_of(call):
    """What a call raises."""
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def deep():
    return deep()


def no_room():
    raise FileNotFoundError(errno.ENOENT, "No usable temporary directory")


@pytest.mark.parametrize(
    ("call", "code", "words"),
    [
        (lambda: Path("x" * 300).read_text(), 2, "file name too long. Give a shorter one."),
        (lambda: Path("/").read_text(), 2, "/: is a directory. Give a file."),
        (lambda: Path("none/such").read_text(), 2, "none/such: no such file or directory"),
        (lambda: Path("a\0b").read_text(), 2, "NUL character"),
        (lambda: Path("none").rename("other"), 2, "none -> other: no such file"),
        (lambda: np.empty(2**48, np.float64), 4, "memory"),
        (lambda: torch.empty(2**48), 4, "memory"),
        (lambda: torch.empty(2**40, 2**40), 4, "memory"),
        (deep, 4, "nested too deeply"),
        (no_room, 2, "No usable temporary directory: no such file or directory"),
        (lambda: exit(0), 2, "called sys.exit"),
        (lambda: {}["x"], 4, "internal: KeyError: 'x'. This is a fault of tvmq"),
    ],
)
def test_exceptions_of_others(call, code, words):
    message, found = failure(error_of(call))
    assert words in message
    assert found == code
    assert "\n" not in message


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_whatever_the_system_says_is_no_fault_of_ours(number):
    message, code = failure(OSError(number, os.strerror(number), "some/file"))
    assert code == 2
    assert message.startswith("some/file: ")
    assert "internal" not in message


def test_errors_of_ours_speak_for_themselves():
    assert failure(GateError("words")) == ("words", 1)
    assert failure(TrapError(3, "words")) == ("instruction 3: words", 4)


def test_code_of_the_user_can_not_end_a_build_well(tvmq, tmp_path, small, monkeypatch):
    (tmp_path / "leaving_data.py").write_text("def images():\n    raise SystemExit(0)\n")
    monkeypatch.chdir(tmp_path)
    words = ["build", small.parent / "resnet_small.pt2", "-o", tmp_path / "a"]
    result = tvmq(*words, "--calib-data", "leaving_data:images")
    assert result.code == 2
    assert "leaving_data:images failed with SystemExit: 0" in result.err
    assert "leaving_data.py:2" in result.err
    assert not (tmp_path / "a").exists()
    # and where nobody expects it
    monkeypatch.setattr(flow, "plan_network", lambda *_, **__: exit(0))
    result = tvmq(*words)
    assert result.code == 2
    assert "called sys.exit" in result.err


@pytest.mark.parametrize("name", ["build", "inspect", "run", "eval", "profile", "disasm"])
def test_files_that_may_not_be_read(tvmq, tmp_path, small, monkeypatch, name):
    """Tests run as root, who may read everything, so the system says no by proxy."""
    (tmp_path / "m.pt2").write_bytes((small.parent / "resnet_small.pt2").read_bytes())
    path = str(tmp_path / "m.pt2") if name in ("build", "inspect") else str(small / "plan.json")
    original = io.open

    def refuse(file, *rest, **options):
        if not isinstance(file, int) and os.path.realpath(file) == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), file)
        return original(file, *rest, **options)

    monkeypatch.setattr(io, "open", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    first = tmp_path / "m.pt2" if name in ("build", "inspect") else small
    more = {
        "build": ["-o", tmp_path / "a"],
        "run": ["-i", tmp_path / "m.pt2", "-o", tmp_path / "o.npz"],
        "eval": ["--data", "none.npz"],
    }
    result = tvmq(name, first, *more.get(name, []))
    assert result.code == 2
    assert "permission denied. Change its permissions" in result.err


FILES = [
    ("build", "MODEL"),
    ("build", "--plan"),
    ("build", "--config"),
    ("build", "--calib-data"),
    ("run", "ART"),
    ("run", "--inputs"),
    ("eval", "ART"),
    ("eval", "--data"),
    ("profile", "ART"),
    ("inspect", "ART"),
    ("inspect", "--target"),
    ("disasm", "ART"),
]


@pytest.mark.parametrize(("verb", "parameter"), FILES, ids=["-".join(pair) for pair in FILES])
def test_whatever_is_given_for_a_file_is_refused(tvmq, tmp_path, small, verb, parameter):
    places = [tmp_path / name for name in ("empty", "noise", "folder", "text", "x" * 300)]
    places[0].touch()
    places[1].write_bytes(np.random.default_rng(0).bytes(5000))
    places[2].mkdir()
    places[3].write_text("[" * 20_000)
    before = {path.name for path in tmp_path.iterdir()}
    model = small.parent / "resnet_small.pt2"
    if parameter == "--config":
        places = places[1:]  # an empty one is one
    for place in (*places, "/dev/zero", "/proc/self/mem"):
        first = model if verb in ("build", "inspect") else small
        words = [verb, place if parameter in ("MODEL", "ART") else first]
        if verb == "run" and parameter != "--inputs":
            words += ["-i", small.parent / "resnet_small.npz"]
        words += ["-o", tmp_path / "made"] if verb in ("build", "run") else []
        words += ["--data", small.parent / "resnet_small.npz"] if verb == "eval" else []
        if parameter.startswith("--"):
            words += [parameter, f"npu:{place}" if parameter == "--target" else place]
        result = tvmq(*words)
        assert result.code == 2, result.err
        assert result.err.count("error: ") == 1
        assert "internal" not in result.err
        assert {path.name for path in tmp_path.iterdir()} == before
