"""A full disk is said as such, whoever noticed and however they said it."""

import errno
import os
import resource
from pathlib import Path

import pytest

from targets import disk_space
from targets.disk_space import require_room, told_when_full
from targets.errors import InputError, UnsupportedError
from targets.linker import linking
from targets.whole_files import whole_file


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_by_number(tmp_path, number):
    file = tmp_path / "float.pt2"
    with pytest.raises(InputError) as caught, told_when_full(tmp_path):
        raise OSError(number, os.strerror(number), str(file))
    words = rf"{file}: {os.strerror(number)}; [\d,.]+ MB are free there. Free some"
    assert caught.match(words)


def test_by_the_text_of_a_linker(tmp_path):
    text = "Compilation error:\n/usr/bin/ld: final link failed: No space left on device\n"
    with pytest.raises(InputError, match="No space left on device"), linking("model.so", tmp_path):
        raise RuntimeError(text)


def test_by_asking_the_disk(tmp_path, monkeypatch):
    """torch's writer says that it failed, and not why."""
    with pytest.raises(RuntimeError), told_when_full(tmp_path):
        raise RuntimeError("PytorchStreamWriter failed writing file data/1")
    monkeypatch.setattr(disk_space.os, "posix_fallocate", full)
    with pytest.raises(InputError, match="No space left"), told_when_full(tmp_path):
        raise RuntimeError("PytorchStreamWriter failed writing file data/1")
    with pytest.raises(UnsupportedError), told_when_full(tmp_path):
        raise UnsupportedError("no operator erf")


def test_a_file_that_is_larger_than_the_limit_of_the_process(tmp_path):
    with pytest.raises(InputError, match="ulimit -f unlimited"), told_when_full(tmp_path):
        raise RuntimeError(
            "collect2: fatal error: ld terminated with signal 25 [File size limit exceeded]"
        )


def test_a_device_that_is_full():
    with pytest.raises(InputError, match="No space left"), whole_file(Path("/dev/full")) as file:
        file.write(b"x")


def test_what_does_not_fit_is_refused_before(tmp_path, monkeypatch):
    require_room(tmp_path / "none" / "yet", 1, "it")
    with pytest.raises(InputError, match=r"it may take [\d,.]+ MB; [\d,.]+ MB are free"):
        require_room(tmp_path / "none" / "yet", 2**60, "it")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1000, 1000))
    with pytest.raises(InputError, match="more than a file may have"):
        require_room(tmp_path, 1001, "it")
