"""Units come from the shape of the graph: whole blocks where there are any, layers elsewhere."""

import pytest
from quantization_cases import float_model

from tvmq.reconstruct.units import find_units
from tvmq.regions import find_regions


def _layers(name: str, *, whole_blocks: bool = True) -> list[int]:
    units = find_units(float_model(name), whole_blocks=whole_blocks)
    return [len(unit.layers) for unit in units]


def test_residual_blocks_come_out_whole():
    assert _layers("resnet_small") == [1, 2, 2, 1]
    assert _layers("resnet_projection") == [1, 2, 3, 1]


def test_layers_can_be_asked_for_one_by_one():
    assert _layers("resnet_small", whole_blocks=False) == [1] * 6


def test_an_inverted_residual_comes_out_whole():
    assert 3 in _layers("mobilenet_small")


@pytest.mark.parametrize("name", ["vgg_small", "mlp"])
def test_a_chain_falls_apart_into_layers(name):
    assert set(_layers(name)) == {1}


@pytest.mark.parametrize(
    "name", ["resnet_small", "mobilenet_small", "densenet_small", "silu_net", "preact", "grouped"]
)
@pytest.mark.parametrize("whole_blocks", [True, False])
def test_every_node_is_in_one_unit_and_reads_only_codes(name, whole_blocks):
    model = float_model(name)
    regions, units = find_regions(model), find_units(model, whole_blocks=whole_blocks)
    nodes = [n.name for n in model.graph_module.graph.nodes if n.op == "call_function"]
    assert [node for unit in units for node in unit.nodes] == nodes
    assert [layer for unit in units for layer in unit.layers] == [
        layer.name for layer in regions.weighted
    ]
    assert all(name in regions.carried for unit in units for name in unit.inputs)
