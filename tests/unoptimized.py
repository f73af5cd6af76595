"""Targets whose code LLVM doesn't optimize, which it makes in a quarter of the time.

For tests of what is computed, not of how LLVM compiles it: that, and what only code that is
optimized shows (a sum that overflows), is for tests of kernels and for artifacts.
"""

from tvm.target import Target

from targets.cpu.host import host_target

LLVM = Target({"kind": "llvm", "opt-level": 0})


def unoptimized(target: Target) -> Target:
    """The same target otherwise."""
    return Target({**target.attrs, "kind": target.kind.name, "opt-level": 0})


HOST = unoptimized(host_target())
