"""What a process that runs a command sets for itself before torch is loaded."""

from __future__ import annotations

import atexit
import ctypes
import functools
import gc
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's ``mallopt``."""
_NEVER = 2**31 - 1


@functools.cache
def prepare() -> None:
    """Keep freed memory, let idle threads sleep soon and seldom look for garbage.

    glibc gives every large tensor pages of its own and takes them back at once: of the 46 CPU
    seconds of a MobileNetV2 build the system took 17, which are 1 now. Threads of torch wait for
    work in a loop, for milliseconds, and take the cores from whoever has some. And Python
    looks for garbage among a million objects of torch and TVM whenever a graph of some thousand
    nodes is made, and a last time when the process ends. What the user has set in the environment
    stays.
    """
    _open_standard_streams()
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
