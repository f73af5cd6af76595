"""The processor that a library is compiled for, and the one that we run on."""

from __future__ import annotations

import functools
import os
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tvm.target import Target, codegen

from targets.cpu.instruction_sets import (
    NAMED,
    NATIVE,
    InstructionSet,
    architecture_of,
    best_of,
    named,
)

_CHECKED = frozenset(
    {
        *("neon", "dotprod", "i8mm", "bf16", "sve", "sve2", "lse", "fullfp16"),
        *("sse2", "sse4.2", "avx", "avx2", "bmi2", "f16c", "fma", "movbe", "gfni", "vaes"),
        *("vpclmulqdq", "avxvnni", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
        *("avx512vnni", "avx512ifma", "avx512vbmi", "avx512vbmi2", "avx512bitalg"),
        *("avx512vpopcntdq", "avx512bf16", "avx512fp16"),
    }
)
"""Features, by LLVM's names, that a compiler makes use of and that not every processor has."""
_SLOW = "sse4a"
"""Of AMD's, which LLVM takes to move three bytes of a pixel, at four times a kernel's time."""
_KERNELS_NAMES = {"neon": "asimd", "dotprod": "asimddp", "lse": "atomics", "fullfp16": "asimdhp"}
"""Of those that Linux calls otherwise, dots and underlines aside."""


@dataclass(frozen=True)
class CpuFeatures:
    """What kernels are chosen by.

    Attributes:
        instructions: the set that they are made of.
        cores: threads that a kernel should keep busy.
    """

    instructions: InstructionSet
    cores: int

    @staticmethod
    def of(target: Target) -> CpuFeatures:
        """The features of an ``llvm`` target, by its ``mcpu``, ``mattr`` and ``num-cores``."""
        return CpuFeatures(best_of(target), cores=int(target.attrs.get("num-cores", 1)))


@functools.cache
def host_target() -> Target:
    """The ``llvm`` target of this machine: its processor, and the cores this process may use.

    LLVM knows a processor by its family. Where a virtual machine hides features of it, the target
    is that of the fastest instruction set that is left.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    attributes = {"kind": "llvm", "mcpu": codegen.llvm_get_system_cpu(), "num-cores": cores or 1}
    target = Target(attributes)
    if codegen.llvm_cpu_has_features([_SLOW], target):
        target = Target({**attributes, "mattr": [f"-{_SLOW}"]})
    if not lacking(features_needed(target)):
        return target
    left = host_sets()[0].target.attrs
    return Target({**left, "kind": "llvm", "num-cores": cores or 1})


def cpu_target(name: str) -> Target:
    """The ``llvm`` target that a user names: "native" or an instruction set.

    Raises:
        InputError: there is no such instruction set.
    """
    return host_target() if name == NATIVE else named(name).target


def features_needed(target: Target) -> tuple[str, ...]:
    """What code for a target may use and not every processor of its architecture has."""
    return tuple(sorted(_CHECKED & {str(each) for each in codegen.llvm_get_cpu_features(target)}))


def lacking(needs: Iterable[str]) -> tuple[str, ...]:
    """Those features that this machine does not have."""
    has = _host_features()
    return tuple(each for each in needs if each not in has)


def foreign_architecture(target: Target) -> str | None:
    """The architecture of a target, as triples begin; None where it is this machine's."""
    architecture = architecture_of(target)
    return None if architecture == host_architecture() else architecture


def runs_here(target: Target) -> bool:
    """Whether this machine executes what is compiled for a target."""
    return foreign_architecture(target) is None and not lacking(features_needed(target))


def host_sets() -> list[InstructionSet]:
    """The named instruction sets that this machine executes, fastest first."""
    return [each for each in NAMED if runs_here(each.target)]


def host_architecture() -> str:
    """How this machine's triple begins."""
    return architecture_of(Target({"kind": "llvm"}))


@functools.cache
def _host_features() -> frozenset[str]:
    flags = _linux_flags()
    if flags is None:
        target = Target({"kind": "llvm", "mcpu": codegen.llvm_get_system_cpu()})
        return frozenset(features_needed(target))
    return frozenset(
        name for name in _CHECKED if _KERNELS_NAMES.get(name, name.replace(".", "")) in flags
    )


def _linux_flags() -> frozenset[str] | None:
    """What Linux says the first processor has, underlines left out; None where it says nothing."""
    if platform.system() != "Linux":
        return None
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(found[1].replace("_", "").split()) if found else None
