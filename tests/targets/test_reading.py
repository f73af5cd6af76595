"""Whatever stands in place of a file, reading it is an InputError that names it."""

import os

import pytest

from targets.errors import InputError, SpecError, UnsupportedError
from targets.reading import LARGEST_TEXT, check_is_file, read_text, reading, what_is


def test_what_stands_at_a_path(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("none")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    found = {name: what_is(tmp_path / name) for name in ("file", "link", "dangling", "pipe", "no")}
    expected = {"file": "file", "link": "file", "dangling": "nothing", "pipe": "pipe"}
    assert found == expected | {"no": "nothing"}
    assert what_is(tmp_path) == "folder"
    assert what_is(tmp_path / "file" / "below") == "nothing"
    assert what_is("/dev/null") == "device"
    assert what_is("") == "nothing"
    for path, words in (
        (tmp_path / "loop", "too many levels of symbolic links. Mend its symbolic links"),
        ("x" * 300, "file name too long. Give a shorter one"),
        ("a\0b", "NUL character"),
    ):
        with pytest.raises(InputError, match=words):
            what_is(path)


def test_only_files_are_read(tmp_path):
    for path, words in ((tmp_path, "is a folder"), ("/dev/zero", "is a device"), ("no", "no such")):
        with pytest.raises(InputError, match=f"{words}.*Give a plan"):
            check_is_file(path, "Give a plan.")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a pipe"):
        check_is_file(tmp_path / "pipe", "Give a plan.")


def test_text(tmp_path):
    path = tmp_path / "file"
    path.write_text("caf\u00e9", encoding="utf-8")
    assert read_text(path, "a plan", "") == "caf\u00e9"
    path.write_bytes("caf\u00e9".encode("latin-1"))
    with pytest.raises(InputError, match=r"file: not UTF-8 text\. Give a plan\."):
        read_text(path, "a plan", "Give a plan.")
    with path.open("wb") as file:
        file.truncate(LARGEST_TEXT + 1)
    with pytest.raises(InputError, match="file: too large for a plan"):
        read_text(path, "a plan", "")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(13, "no", "other"), "file: can't be read: permission denied. Change its"),
        (OSError(24, ""), "file: can't be read: too many open files. Raise the limit"),
        (RecursionError(), "nested too deeply"),
        (MemoryError(), "memory"),
        (RuntimeError("std::bad_alloc"), "memory"),
        (ValueError("line 3\nand more"), r"file: not a plan \(line 3\). Give one."),
        (KeyError(), r"file: not a plan \(KeyError\). Give one."),
    ],
)
def test_what_a_reader_raises(error, words):
    with pytest.raises(SpecError, match=words), reading("file", "a plan", "Give one.", SpecError):
        raise error


def test_errors_of_ours_and_interrupts_pass():
    for error in (UnsupportedError("ours"), KeyboardInterrupt(), SystemExit()):
        with pytest.raises(type(error)), reading("file", "a plan"):
            raise error
