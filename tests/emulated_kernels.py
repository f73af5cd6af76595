"""Runs CPU kernels of other processors, under qemu and without TVM's runtime."""

from __future__ import annotations

import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tvm

from targets.cpu.instruction_sets import InstructionSet
from targets.cpu.kernel import Kernel
from targets.layers import Layer

CALLER = Path(__file__).parent / "data" / "call_kernel.c"
TYPES = {"i": 0, "u": 1}


@dataclass(frozen=True)
class Machine:
    """An emulated processor, and the compiler that links programs for it."""

    emulator: str
    processor: str
    compiler: str

    @property
    def is_here(self) -> bool:
        return all(map(shutil.which, (self.emulator, self.compiler)))

    def run(
        self,
        kernel: Kernel,
        instructions: InstructionSet,
        layer: Layer,
        inputs: list[np.ndarray],
        folder: Path,
    ) -> np.ndarray:
        """The layer's output for a batch."""
        built, program = folder / "kernel.o", folder / "program"
        func = kernel.func.with_attr("global_symbol", "main")
        module = tvm.tirx.build(tvm.IRModule({"main": func}), instructions.target)
        module.write_to_file(str(built))
        link = [self.compiler, "-O1", "-static", "-o", program, CALLER, built]
        subprocess.run(link, check=True, capture_output=True)
        out = np.full((inputs[0].shape[0], *layer.output.shape), 77, layer.output.dtype)
        arrays = [*inputs, *kernel.constants, out]
        given = struct.pack("i", len(arrays)) + b"".join(map(_as_bytes, arrays))
        run = [self.emulator, "-cpu", self.processor, program]
        done = subprocess.run(run, input=given, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return np.frombuffer(done.stdout, out.dtype).reshape(out.shape)


def _as_bytes(array: np.ndarray) -> bytes:
    head = struct.pack("3i", TYPES[array.dtype.kind], 8 * array.dtype.itemsize, array.ndim)
    return head + struct.pack(f"{array.ndim}q", *array.shape) + array.tobytes()
