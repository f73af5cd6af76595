"""The NPU as a TVM target: kind ``ext_dev``, a tag per machine, a TIR pipeline.

    tvm.target.Target("tvmq/npu-e256")        after ``import tvm``, without importing tvmq

TVM calls ``register`` itself, through the entry point group ``tvm.backends``. A layer's function is
lowered by the pipeline that TVM then knows as "tvmq_npu"; ``codegen.generate`` makes instructions
of what comes out. What reaches LLVM is the host's function that executes the encoded program.
"""

from __future__ import annotations

from functools import cache

import tvm
from tvm import s_tir, tirx
from tvm.target import register_tag
from tvm.tirx import compilation_pipeline

from targets.npu.machine.spec import presets

PIPELINE = "tvmq_npu"


def tag(machine: str) -> str:
    """The target tag of a machine that comes with tvmq."""
    return f"tvmq/npu-{machine}"


def lower(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Run the NPU's TIR pipeline, as TVM knows it, on one layer's function."""
    register()
    pipeline, _, _ = compilation_pipeline.get_tir_pipeline(PIPELINE)
    return pipeline(tvm.IRModule({"main": func}))["main"]


@cache
def register() -> None:
    """Register tags and pipeline with TVM, once."""
    for machine in presets():
        config = {"kind": "ext_dev", "device": "npu", "model": machine, "host": {"kind": "llvm"}}
        register_tag(tag(machine), config, override=True)
    nothing = tvm.ir.transform.Sequential
    compilation_pipeline.register_tir_pipeline(
        PIPELINE, lambda: (_lowering(), lambda: nothing([]), lambda: nothing([]))
    )


def _lowering() -> tvm.ir.transform.Sequential:
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
