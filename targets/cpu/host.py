"""The machine that we run on: its TVM target and what its vector unit can multiply."""

from __future__ import annotations

import os
from dataclasses import dataclass

from tvm.target import Target, codegen


@dataclass(frozen=True)
class CpuFeatures:
    """What kernels are chosen by.

    Attributes:
        vnni: 512-bit ``vpdpbusd``: 16 sums of 4 products uint8 · int8 in one instruction.
        cores: threads that a kernel should keep busy.
    """

    vnni: bool
    cores: int

    @staticmethod
    def of(target: Target) -> CpuFeatures:
        """The features of an ``llvm`` target, by its ``mcpu``, ``mattr`` and ``num-cores``."""
        vnni = codegen.llvm_cpu_has_features(["avx512vnni", "avx512bw"], target)
        return CpuFeatures(vnni=bool(vnni), cores=int(target.attrs.get("num-cores", 1)))


def host_target() -> Target:
    """The ``llvm`` target of this machine: its processor, and the cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Target(
        {"kind": "llvm", "mcpu": codegen.llvm_get_system_cpu(), "num-cores": cores or 1},
    )
