"""The NPU as TVM sees it: tags, and the pipeline that layers are lowered by."""

import pytest
import tvm
from npu_layers import LAYERS
from tvm.tirx import compilation_pipeline

from targets.npu.compiler import compile_layers
from targets.npu.machine.spec import load_spec, presets
from targets.npu.target import PIPELINE, register, tag


@pytest.mark.parametrize("machine", presets())
def test_every_machine_is_a_target(machine):
    register()
    target = tvm.target.Target(tag(machine))
    assert (target.kind.name, target.attrs["model"]) == ("ext_dev", machine)


def test_layers_are_lowered_by_the_pipeline_that_tvm_knows(monkeypatch):
    register()
    known, asked = compilation_pipeline.PIPELINE_MAP[PIPELINE], []

    def factory():
        asked.append(PIPELINE)
        return known()

    monkeypatch.setitem(compilation_pipeline.PIPELINE_MAP, PIPELINE, factory)
    layer = LAYERS["max_pool"]
    compile_layers([layer], layer.inputs, [layer.output], load_spec("e256"))
    assert asked == [PIPELINE]
