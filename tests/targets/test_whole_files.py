"""What is written is whole or not there, whatever ends the process, and nothing stays for long."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from targets import whole_files
from targets.errors import InputError
from targets.whole_files import Held, room, whole_file, whole_folder


def anything(_: Path) -> None:
    """Everything may be replaced."""


def make(folder: Path, text: str) -> None:
    with whole_folder(folder, anything) as new:
        (new / "file").write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def killed(program: str, *arguments: object) -> None:
    """Run a program that kills itself."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    start = "import os, signal, sys\nfrom pathlib import Path\nfrom targets import whole_files\n"
    words = [sys.executable, "-c", start + program, *map(str, arguments)]
    assert subprocess.run(words, env=environment, check=False).returncode == -signal.SIGKILL


KILLED_WHILE_WRITING = """
place = Path(sys.argv[1])
with whole_files.whole_file(place) if sys.argv[2:] else whole_files.whole_folder(place, print):
    os.kill(os.getpid(), signal.SIGKILL)
"""

KILLED_BETWEEN_TWO_RENAMES = """
rename = Path.rename
def last(self, to):
    if self.name == "old":
        raise AssertionError
    done = rename(self, to)
    if to.name == "old":
        os.kill(os.getpid(), signal.SIGKILL)
    return done
Path.rename = last
whole_files._exchange = lambda *_: False
with whole_files.whole_folder(Path(sys.argv[1]), print) as new:
    (new / "file").write_text("new")
"""


def test_a_file_is_replaced_at_the_end(tmp_path):
    path = tmp_path / "a.npz"
    path.write_text("old")
    path.chmod(0o640)
    with whole_file(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert names(tmp_path) == ["a.npz"]


def test_a_new_file_has_the_mode_that_others_get(tmp_path):
    (tmp_path / "other").write_text("")
    with whole_file(tmp_path / "a"):
        pass
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")

    def work():
        with whole_file(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_links_and_pipes_stay_what_they_are(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with whole_file(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with whole_file(tmp_path / "pipe") as file:
        file.write(b"through")
    assert os.read(reader, 100) == b"through"
    assert (tmp_path / "pipe").is_fifo()
    os.close(reader)


def test_a_place_that_cannot_be_written_is_said_before_the_work(tmp_path):
    for path in (tmp_path / "none" / "a", tmp_path, tmp_path / "long".ljust(300, "g")):
        with pytest.raises(InputError, match="can't be written"), whole_file(path):
            pytest.fail("the work began")


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_exchanged_whole(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(whole_files, "_exchange", lambda *_: False)
    make(tmp_path / "a", "old")
    make(tmp_path / "a", "new")
    assert (tmp_path / "a" / "file").read_text() == "new"
    assert names(tmp_path) == ["a"]


def test_folders_above_go_again_if_nothing_comes_of_it(tmp_path):
    with pytest.raises(ValueError), whole_folder(tmp_path / "b" / "c" / "a", anything):
        raise ValueError
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_kill_leaves_goes_with_the_next(tmp_path, kind):
    path = tmp_path / "a"
    killed(KILLED_WHILE_WRITING, path, *([kind] if kind == "file" else []))
    assert len(names(tmp_path)) == 1  # the room
    if kind == "file":
        with whole_file(path):
            pass
    else:
        make(path, "new")
    assert names(tmp_path) == ["a"]


def test_what_a_kill_between_two_renames_took_away_is_put_back(tmp_path):
    """Where the kernel can't exchange."""
    make(tmp_path / "a", "old")
    killed(KILLED_BETWEEN_TWO_RENAMES, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(ValueError), whole_folder(tmp_path / "a", anything):
        raise ValueError
    assert (tmp_path / "a" / "file").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_rooms_in_use_and_folders_of_others_stay(tmp_path):
    others = tmp_path / ".a.projects"
    others.mkdir()
    (others / "thesis.tex").write_text("years of work")
    with room(tmp_path, ".a.") as one:
        (one / "file").write_text("in use")
        with room(tmp_path, ".a.") as other:
            assert one != other
            assert (one / "file").exists()
    assert names(tmp_path) == [".a.projects"]
    assert names(others) == ["thesis.tex"]


def test_what_is_read_stays(tmp_path):
    make(tmp_path / "a", "old")
    held = Held(tmp_path / "a")
    file = held.file("file")
    make(tmp_path / "a", "new")
    del held
    assert file.read_text() == "old"
    del file
    make(tmp_path / "a", "newer")
    assert names(tmp_path) == ["a"]
    with pytest.raises(FileNotFoundError):
        Held(tmp_path / "none")
