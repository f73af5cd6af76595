"""Compile a placed module and run it."""

import tempfile
from pathlib import Path

import numpy as np
import tvm
from tvm import relax
from unoptimized import HOST

from relay_passes.host_pipeline import host_pipeline
from relay_passes.place import PlacedModule
from targets.npu.execute.compiled import executor_function
from targets.npu.machine.spec import NpuSpec


def run_placed(placed: PlacedModule, spec: NpuSpec | None, images: np.ndarray) -> list[np.ndarray]:
    """All outputs; on the compiled executor of ``spec`` if it has one."""
    if spec is not None:
        executor_function(spec)  # which main calls by its name
    built = tvm.compile(placed.mod, target=HOST, relax_pipeline=host_pipeline())
    with tempfile.TemporaryDirectory() as folder:  # run as it is, it would be optimized
        library = Path(folder) / "model.so"
        built.export_library(str(library))
        machine = relax.VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())
    return [np.asarray(out.numpy()) for out in machine["main"](tvm.runtime.tensor(images))]
