"""Targets whose code LLVM doesn't optimize, which it makes in a quarter of the time.

For tests of what is computed, not of how LLVM compiles it: that, and what only code that is
optimized shows (a sum that overflows), is for tests of kernels and for artifacts.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import tvm
from tvm.target import Target

from targets.cpu.host import host_target

LLVM = Target({"kind": "llvm", "opt-level": 0})


def unoptimized(target: Target) -> Target:
    """The same target otherwise."""
    return Target({**target.attrs, "kind": target.kind.name, "opt-level": 0})


HOST = unoptimized(host_target())


@contextmanager
def unoptimized_code() -> Iterator[None]:
    """Whatever this process has TVM compile meanwhile, but for executors of the NPU."""
    with pytest.MonkeyPatch.context() as patch:
        compiled = tvm.compile
        patch.setattr(tvm, "compile", lambda mod, *, target, **options: compiled(
            mod, target=unoptimized(Target(target)), **options
        ))  # fmt: skip
        yield
