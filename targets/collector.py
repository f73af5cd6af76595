"""Python's collector of cycles, paused where many objects are made that none of them needs.

It looks at every object of the process, torch's and TVM's among them, each time that a quarter as
many have been made; instructions and what is known of them are so many that it took a third of the
time, and they are freed without it.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """Collect nothing within the block, or the decorated function; then as before."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
