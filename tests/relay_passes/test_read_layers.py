"""Reading is a worklist: no recursion however deep the network, nothing read twice."""

import sys

import pytest
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


def test_rows_of_an_input_are_images_of_one_row():
    x = tensor("x", (1, 6, 10), "float32")

    def write(emit):
        rows = emit(relax.op.reshape(_codes(emit, x), (1, 6, 1, 10)))
        image = emit(relax.op.permute_dims(rows, [0, 2, 3, 1]), "image")
        return emit(relax.op.nn.max_pool2d(image, [1, 1], layout="NHWC"))

    network = read_layers(module_of([x], write))
    assert [layer.kind for layer in network.layers] == ["max_pool2d"]
    assert [(value.name, value.shape) for value in network.inputs] == [("image", (1, 10, 6))]


@pytest.mark.parametrize("shape", [(1, 6, 10), (1, 60)], ids=["rows", "flat"])
def test_what_turns_an_output_is_no_layer(shape):
    x = tensor("x", (1, 1, 10, 6), "float32")

    def write(emit):
        pooled = emit(relax.op.nn.max_pool2d(_codes(emit, x), [1, 1], layout="NHWC"), "pooled")
        turned = emit(relax.op.permute_dims(pooled, [0, 3, 1, 2]))
        return emit(relax.op.reshape(turned, shape))

    network = read_layers(module_of([x], write))
    assert [layer.kind for layer in network.layers] == ["max_pool2d"]
    assert [value.name for value in network.outputs] == ["pooled"]


def test_an_output_of_another_shape_alone_stays_a_layer():
    x = tensor("x", (1, 1, 10, 6), "float32")
    mod = module_of([x], lambda emit: emit(relax.op.reshape(_codes(emit, x), (1, 60))))
    assert [layer.kind for layer in read_layers(mod).layers] == ["move"]


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
