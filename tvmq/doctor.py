"""Checks of the environment: what is installed, whether it works together, what the machine offers.

Every check is a function that returns one ``Check``; ``examine`` runs them all. Nothing here
imports torch or TVM before their versions are known to be sound, because an unsound pair crashes.
"""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from packaging.requirements import Requirement
from packaging.version import Version

from targets.errors import TvmqError
from targets.linker import find_linker, try_linker

State = Literal["ok", "warning", "error"]

BROKEN_FFI = Version("0.1.15")
"""From this version on, everything that deep-copies a PrimFunc of TVM 0.27 crashes."""


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: what was looked at.
        state: "error" where a build can't work.
        found: what there is.
        advice: what to do about it; empty when all is well.
    """

    name: str
    state: State
    found: str
    advice: str = ""


def examine() -> list[Check]:
    """Run every check."""
    checks = [_python(), _ffi(), *(_package(name) for name in _requirements())]
    checks += [_entry_point()]
    if all(check.state != "error" for check in checks):
        checks += [_compiler(), _llvm(), _processor()]
    return checks


def check_ffi(found: str) -> Check:
    """Whether a version of apache-tvm-ffi works with TVM 0.27."""
    if Version(found) < BROKEN_FFI:
        return Check("apache-tvm-ffi", "ok", found)
    advice = "TVM 0.27 crashes with it: pip install 'apache-tvm-ffi<0.1.15'"
    return Check("apache-tvm-ffi", "error", found, advice)


def _python() -> Check:
    version = platform.python_version()
    if (3, 10) <= sys.version_info[:2] < (3, 14):
        return Check("python", "ok", version)
    return Check("python", "warning", version, "tvmq is tested with Python 3.10 to 3.13")


def _ffi() -> Check:
    try:
        return check_ffi(metadata.version("apache-tvm-ffi"))
    except metadata.PackageNotFoundError:
        advice = "pip install 'apache-tvm-ffi<0.1.15'"
        return Check("apache-tvm-ffi", "error", "not installed", advice)


def _requirements() -> dict[str, Requirement]:
    """What the installed tvmq asks for, without extras and without the pair checked apart."""
    try:
        lines = metadata.requires("tvmq") or []
    except metadata.PackageNotFoundError:
        return {}
    wanted = [Requirement(line) for line in lines]
    return {
        item.name: item
        for item in wanted
        if item.name != "apache-tvm-ffi" and (item.marker is None or item.marker.evaluate())
    }


def _package(name: str) -> Check:
    wanted = _requirements()[name]
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(name, "error", "not installed", f"pip install '{name}{wanted.specifier}'")
    if wanted.specifier.contains(found, prereleases=True):
        return Check(name, "ok", found)
    return Check(name, "error", found, f"pip install '{name}{wanted.specifier}'")


def _entry_point() -> Check:
    name = "entry point tvm.backends"
    points = metadata.entry_points(group="tvm.backends")
    if any(point.value.startswith("targets:") for point in points):
        return Check(name, "ok", "TVM finds the NPU target by itself")
    advice = "install the package (pip install -e .); tvmq works, but plain `import tvm` won't know"
    return Check(name, "warning", "missing", advice)


def _compiler() -> Check:
    """TVM writes objects by itself but links model.so with the system's compiler."""
    name = "C++ compiler"
    try:
        try_linker()
        return Check(name, "ok", find_linker())
    except TvmqError as error:
        return Check(name, "error", "none that works", str(error))


def _llvm() -> Check:
    from tvm.target import codegen

    return Check("LLVM in TVM", "ok", str(codegen.llvm_version_major()))


def _processor() -> Check:
    """The CPU kernels are exact everywhere, and fast where there are instructions for them."""
    from targets.cpu.host import CpuFeatures, host_sets, host_target

    target = host_target()
    features = CpuFeatures.of(target)
    found = (
        f"{target.attrs['mcpu']}, {features.cores} cores, {features.instructions.title}; executes "
        f"--cpu {', '.join(each.name for each in host_sets())}"
    )
    if features.instructions.bytes:
        return Check("processor", "ok", found)
    advice = "the CPU build is slower without vectors that tvmq knows; its numbers are the same"
    return Check("processor", "warning", found, advice)
