"""What a process that runs a command sets for itself before torch is loaded."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import os
import sys
import tempfile
import threading
from importlib.util import find_spec
from pathlib import Path

from targets.errors import InputError
from targets.whole_files import make_room

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's ``mallopt``."""
_NEVER = 2**31 - 1


@functools.cache
def prepare(*, alone: bool) -> None:
    """Keep freed memory, let idle threads sleep soon, seldom look for garbage, know the symbols.

    glibc gives every large tensor pages of its own and takes them back at once: of the 46 CPU
    seconds of a MobileNetV2 build the system took 17, which are 1 now. Threads of torch wait for
    work in a loop, for milliseconds, and take the cores from whoever has some. And Python
    looks for garbage among a million objects of torch and TVM whenever a graph of some thousand
    nodes is made, and a last time when the process ends. What the user has set in the environment
    stays.

    Args:
        alone: the process does nothing else, so that its temporary files are all ours.
    """
    _open_standard_streams()
    if alone:
        _gather_temporary_files()
        threading.Thread(target=_read_symbols, daemon=True).start()
    gc.set_threshold(50_000, 10, 10)
    atexit.register(gc.freeze)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc only
    if mallopt is None or _tuned_by_the_user():
        return
    # older versions take 32 MB at most; where neither is taken, the rest would make it worse
    if mallopt(_MMAP_THRESHOLD, _NEVER) or mallopt(_MMAP_THRESHOLD, 2**25):
        mallopt(_TRIM_THRESHOLD, _NEVER)


def check_working_folder() -> None:
    """Check that there is one, without which MKL ends the process in words of its own.

    Raises:
        InputError: it has been removed, or may not be looked up.
    """
    try:
        Path.cwd()
    except OSError as error:
        raise InputError(
            f"the working folder can't be found ({error.strerror}). Change to one that exists."
        ) from error


def _read_symbols() -> None:
    """Ask TVM for a stack trace, for which it reads the symbols of all libraries, once.

    TVM's import asks for things that are not there and makes such a trace for each, which nobody
    prints. The first one takes 0.2 s as long as torch isn't loaded, and 0.6 s afterwards.
    """
    package = find_spec("tvm_ffi")
    for folder in (package and package.submodule_search_locations) or ():
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL(str(Path(folder, "lib", "libtvm_ffi.so")))
            library.TVMFFIBacktrace(None, 0, None, 0)


def _gather_temporary_files() -> None:
    """Let all temporary files, those of torch, TVM and the compiler too, lie in one folder.

    It goes with the process, and if that is killed, with the next one.
    """
    with contextlib.suppress(OSError):  # whoever needs one will say so
        folder = make_room(Path(tempfile.gettempdir()), "tvmq-scratch-")
        tempfile.tempdir = os.environ["TMPDIR"] = str(folder)


def _open_standard_streams() -> None:
    """Let those that the caller has closed lead to nothing.

    The next file that is opened would be one of them otherwise, and get what is printed; and MKL
    gives up where it can't print.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nothing = os.open(os.devnull, os.O_RDWR)
            if nothing != number:
                os.dup2(nothing, number)
                os.close(nothing)
            setattr(sys, name, os.fdopen(number, "w" if number else "r"))


def _tuned_by_the_user() -> bool:
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return "glibc.malloc" in tunables or any(name.startswith("MALLOC_") for name in os.environ)
