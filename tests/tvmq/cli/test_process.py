"""What a command sets for its own process."""

import os
import subprocess
import sys

import pytest

from tvmq.cli import main

PROGRAM = """
import os, sys
assert "torch" not in sys.modules
from tvmq.cli import main
main(["targets", "-q"])
print(os.environ.get("GOMP_SPINCOUNT"))
"""


def _spins(**environment):
    kept = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=kept | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_idle_threads_sleep_soon_unless_the_user_says_otherwise():
    assert _spins() == "20000"
    assert _spins(GOMP_SPINCOUNT="7") == "7"
    assert _spins(OMP_WAIT_POLICY="ACTIVE") == "None"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_the_caller_has_closed(tmp_path, closed):
    """The verb is refused as ever, and nothing is printed into the file that is opened next."""
    (tmp_path / "m.toml").write_text("strict = 1\n")
    line = f'"{sys.executable}" -m tvmq targets --config m.toml {closed}'
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert ("true or false" in done.stderr) == ("2>" not in closed)
    assert (tmp_path / "m.toml").read_text() == "strict = 1\n"


def test_letters_that_a_terminal_does_not_have(tmp_path):
    command = [sys.executable, "-m", "tvmq", "inspect", "\u2603.pt2"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PYTHONIOENCODING": "ascii",
    }
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(r"error: \u2603.pt2: no such file")


def test_a_working_folder_that_is_gone_is_said(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert main(["targets"]) == 2
    assert "the working folder can't be found" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["targets --json", "targets"])
def test_a_reader_that_has_gone_is_no_error(words):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    line = f'"{sys.executable}" -m tvmq {words} 2>&1 >&3 3>&- | cat; exit ${{PIPESTATUS[0]}}'
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            ["bash", "-c", f"exec 3>&{write}; {line}"],
            env=environment, pass_fds=[write], capture_output=True, text=True,
        )  # fmt: skip
    finally:
        os.close(write)
    assert (done.returncode, done.stdout) == (0, ""), done
