"""Programs of single layers, compiled once for all tests of a process."""

from functools import cache

from npu_layers import LAYERS

from targets.npu.compiler import compile_layers
from targets.npu.machine.program import Program
from targets.npu.machine.spec import load_spec


@cache
def program_of(name: str, machine: str) -> Program:
    """A layer of ``LAYERS`` on a machine that is shipped."""
    layer = LAYERS[name]
    return compile_layers([layer], layer.inputs, [layer.output], load_spec(machine))
