"""Artifacts that several test files read; each is built once per process by the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from model_files import DIGITS, save, save_inputs
from unoptimized import unoptimized_code

from tvmq.cli import main


@dataclass(frozen=True)
class Result:
    """What a command line did."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="module", autouse=True)
def quick_libraries():
    """Libraries of artifacts that this process builds; other processes build them as they are."""
    with unoptimized_code():
        yield


@pytest.fixture
def tvmq(capfd):
    """Run a command line in this process."""

    def run(*words: object) -> Result:
        capfd.readouterr()
        code = main([str(word) for word in words])
        out, err = capfd.readouterr()
        return Result(code, out, err)

    return run


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Path:
    """resnet_small for the NPU, with calibration data."""
    folder = tmp_path_factory.mktemp("small")
    model, data = save("resnet_small", folder), save_inputs("resnet_small", folder)
    artifact = folder / "small.tvmq"
    words = ["build", model, "-o", artifact, "--calib-data", data, "--seed", 7, "-q"]
    with unoptimized_code():
        assert main([str(word) for word in words]) == 0
    return artifact


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """The shipped model for the NPU, as the demo builds it."""
    artifact = tmp_path_factory.mktemp("digits") / "digits.tvmq"
    words = ["build", DIGITS / "digits.pt2", "--calib-data", DIGITS / "digits_calib.npz"]
    words += ["--mean", "0.3", "--std", "0.35", "-o", artifact, "-q"]
    with unoptimized_code():
        assert main([str(word) for word in words]) == 0
    return artifact
