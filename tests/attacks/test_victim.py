"""The process that loads hostile files sees what they do; otherwise no attack could fail."""

import os
import signal

import pytest

from attacks.victim import Victims
from targets.errors import InputError, UnsupportedError


def loads(_folder):
    def refuse(path):
        raise InputError(f"{path.name} is wrong")

    def refuse_otherwise(path):
        raise UnsupportedError("no")

    return {
        "well": lambda path: None,
        "refused": refuse,
        "unsupported": refuse_otherwise,
        "broken": lambda path: 1 // 0,
        "large": lambda path: bytearray(2**31),
        "shell": lambda path: os.system("true"),
        "killed": lambda path: os.kill(os.getpid(), signal.SIGSEGV),
        "leaves": lambda path: os._exit(3),
    }


@pytest.fixture(scope="module")
def victims(tmp_path_factory):
    folder = tmp_path_factory.mktemp("victims")
    with Victims(loads, folder, folder) as found:
        yield found


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("well", "accepted"),
        ("refused", "refused 2: a.pt2 is wrong"),
        ("unsupported", "refused 4: no"),
        ("broken", "internal: ZeroDivisionError"),
        ("large", "internal: MemoryError"),
        ("shell", "it ran os.system"),
        ("killed", "the process ended with -11"),
        ("leaves", "the process ended with 3"),
    ],
)
def test_what_became_of_a_file(victims, tmp_path, way, said):
    assert victims.load(way, tmp_path / "a.pt2").startswith(said)
