"""Reading is a worklist: no recursion however deep the network, nothing read twice."""

import sys

from form_checks import module_of, tensor
from tvm import relax

from relay_passes.place import place
from relay_passes.read_layers import read_layers
from relay_passes.relax_nodes import constant


def _codes(emit, x):
    """Quantizes a network's input, and what a module returns is made of it."""
    t = emit(relax.op.divide(emit(relax.op.astype(x, "float64")), constant(0.5, "float64")))
    t = emit(relax.op.clip(emit(relax.op.floor(t)), 0, 255))
    return emit(relax.op.astype(t, "uint8"), "x_codes")


def test_a_chain_deeper_than_the_recursion_limit():
    x = tensor("x", (1, 4, 4, 8), "float32")
    depth = sys.getrecursionlimit() // 2  # two frames a layer are too many

    def write(emit):
        y = _codes(emit, x)
        for _ in range(depth):
            y = emit(relax.op.nn.max_pool2d(y, [1, 1], layout="NHWC"), "pool")
        return y

    mod = module_of([x], write)
    network = read_layers(mod)
    assert [layer.kind for layer in network.layers] == ["max_pool2d"] * depth
    made = {layer.output.name: i for i, layer in enumerate(network.layers)}
    read = [made.get(layer.input.name, -1) for layer in network.layers]
    assert read == list(range(-1, depth - 1))
    assert [value.name for value in network.inputs] == ["x_codes"]
    assert len(place(mod, network, None).placements) == depth


def test_shared_tensors_are_read_once():
    """2**40 paths lead from the output to the input; concatenations take their slices along."""
    x = tensor("x", (1, 2, 2, 8), "float32")

    def write(emit):
        y = _codes(emit, x)
        for _ in range(40):
            both = emit(relax.op.concat([y, y], 3))
            y = emit(relax.op.strided_slice(both, [3], [4], [12], [1]))
        return y

    mod = module_of([x], write)
    layers = read_layers(mod).layers
    assert [layer.kind for layer in layers] == ["move"] * 41
