"""The NPU as a TVM target: kind ``ext_dev``, a tag per machine, TIR pipeline, code generator.

    tvm.target.Target("tvmq/npu-e256")        after ``import tvm``, without importing tvmq

TVM calls ``register`` itself, through the entry point group ``tvm.backends``. A function of the
NPU carries its target; the pipeline "tvmq_npu" lowers it, and ``codegen.generate``, which runs at
the pipeline's end, makes instructions of it. What reaches LLVM is the host's function that
executes the encoded program.
"""

from __future__ import annotations

import tvm
from tvm import s_tir, tirx
from tvm.target import Target, register_tag
from tvm.tirx import compilation_pipeline

from targets.npu.machine.spec import presets

PIPELINE = "tvmq_npu"


def tag(machine: str) -> str:
    """The target tag of a machine that comes with tvmq."""
    return f"tvmq/npu-{machine}"


def npu_target(machine: str) -> Target:
    """The target of a machine, with this host beside it."""
    return Target(_config(machine))


def _config(machine: str) -> dict[str, object]:
    return {"kind": "ext_dev", "device": "npu", "model": machine, "host": {"kind": "llvm"}}


def lowering() -> tvm.ir.transform.Sequential:
    """Turn blocks into plain loops: what remains is loops, copies, fills and calls of ``npu.*``."""
    return tvm.ir.transform.Sequential(
        [
            s_tir.transform.ConvertBlocksToOpaque(),
            s_tir.transform.LowerMatchBuffer(),
            s_tir.transform.LowerOpaqueBlock(),
            tirx.transform.StmtSimplify(),
        ],
        name=PIPELINE,
    )


def register() -> None:
    """Register tags and pipeline with TVM; safe to call again."""
    for machine in presets():
        register_tag(tag(machine), _config(machine), override=True)
    nothing = tvm.ir.transform.Sequential
    compilation_pipeline.register_tir_pipeline(
        PIPELINE, lambda: (lowering(), lambda: nothing([]), lambda: nothing([]))
    )
