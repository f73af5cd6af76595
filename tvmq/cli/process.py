"""What a process that runs a command sets for itself before torch is loaded."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import os
import tempfile
from pathlib import Path

from targets.whole_files import make_room

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's ``mallopt``."""
_NEVER = 2**31 - 1


@functools.cache
def prepare(*, alone: bool) -> None:
    """Keep freed memory, let idle threads sleep soon and seldom look for garbage.

    glibc gives every large tensor pages of its own and takes them back at once: of the 46 CPU
    seconds of a MobileNetV2 build the system took 17, which are 1 now. Threads of torch wait for
    work in a loop, for milliseconds, and take the cores from whoever has some. And Python
    looks for garbage among a million objects of torch and TVM whenever a graph of some thousand
    nodes is made, and a last time when the process ends. What the user has set in the environment
    stays.

    Args:
        alone: the process does nothing else, so that its temporary files are all ours.
    """
    if alone:
        _gather_temporary_files()
    gc.set_threshold(10_000, 10, 10)
    atexit.register(gc.freeze)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc only
    if mallopt is None or _tuned_by_the_user():
        return
    # older versions take 32 MB at most; where neither is taken, the rest would make it worse
    if mallopt(_MMAP_THRESHOLD, _NEVER) or mallopt(_MMAP_THRESHOLD, 2**25):
        mallopt(_TRIM_THRESHOLD, _NEVER)


def _gather_temporary_files() -> None:
    """Let all temporary files, those of torch, TVM and the compiler too, lie in one folder.

    It goes with the process, and if that is killed, with the next one.
    """
    with contextlib.suppress(OSError):  # whoever needs one will say so
        folder = make_room(Path(tempfile.gettempdir()), "tvmq-scratch-")
        tempfile.tempdir = os.environ["TMPDIR"] = str(folder)


def _tuned_by_the_user() -> bool:
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return "glibc.malloc" in tunables or any(name.startswith("MALLOC_") for name in os.environ)
