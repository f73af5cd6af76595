"""The compiler that links libraries: found and tried before the work, and its faults in words.

TVM writes objects by itself, with LLVM, and calls the system's C++ compiler to link them; for
another architecture, a cross compiler.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from targets.disk_space import explained, told_when_full
from targets.errors import MissingDependencyError

INSTALL = "Install g++ or clang++, or name a working one in the environment variable CXX."


def find_linker(architecture: str | None = None) -> str:
    """The compiler that TVM will call.

    Args:
        architecture: that it must link for, as triples begin; None is this machine's.

    Raises:
        MissingDependencyError: there is none.
    """
    from tvm.support import cc

    name = cc.get_cc()
    if architecture is not None:
        return _find_cross_linker(name, architecture)
    found = shutil.which(name) if name else None
    if found is None:
        what = f"{name} (from CXX or CC) is no program" if name else "no C++ compiler on PATH"
        raise MissingDependencyError(f"{what}; it links model.so. {INSTALL}")
    return found


def _find_cross_linker(own: str | None, architecture: str) -> str:
    ours = [f"{architecture}-linux-gnu-{kind}" for kind in ("g++", "gcc")]
    for name in filter(None, (own, *ours)):
        if found := shutil.which(name):
            asked = subprocess.run([found, "-dumpmachine"], capture_output=True, check=False)
            if asked.stdout.decode(errors="replace").startswith(architecture):
                return found
    raise MissingDependencyError(
        f"no C++ compiler that links for {architecture} on PATH. Install {ours[0]} (Debian: "
        f"g++-{architecture}-linux-gnu), or name one in the environment variable CXX."
    )


def try_linker(architecture: str | None = None) -> None:
    """Link a library of nothing, which takes 20 ms and saves the hours before the first real one.

    Args:
        architecture: to link for; None is this machine's.

    Raises:
        MissingDependencyError: there is no compiler, or it can't link.
        InputError: the disk for temporary files is full.
    """
    compiler = find_linker(architecture)
    with tempfile.TemporaryDirectory() as folder, told_when_full(Path(folder)):
        nothing, library = Path(folder) / "nothing.a", Path(folder) / "nothing.so"
        nothing.write_bytes(b"!<arch>\n")
        with linking(library.name):
            done = subprocess.run(
                [compiler, "-shared", "-fPIC", "-o", library, nothing],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
            )
            if done.returncode:
                raise RuntimeError(done.stdout.decode(errors="replace") or compiler)


@contextlib.contextmanager
def linking(library: str, *folders: Path) -> Iterator[None]:
    """Say what is wrong where a library can't be linked.

    Args:
        library: its name.
        folders: on the disks that are written to, those of temporary files aside.

    Raises:
        InputError: a disk is full.
        MissingDependencyError: the compiler can't do it.
    """
    try:
        yield
    except (RuntimeError, ValueError, OSError, TypeError) as error:
        if full := explained(error, *folders, Path(tempfile.gettempdir())):
            raise full from error
        lines = [line for line in str(error).splitlines() if line not in ("", "Compilation error:")]
        what = lines[0] if lines else type(error).__name__
        raise MissingDependencyError(f"{library} can't be linked ({what}). {INSTALL}") from error
