"""Graphs are run with few tensors and give what calling them gives."""

import operator

import pytest
import torch
from torch.fx import Graph, GraphModule

import tvmq.plan.fake_quantize  # noqa: F401  registers the operator
from tvmq.execute_graph import GraphRun

aten = torch.ops.aten
CODES = (0, -8, 7, -1, "int8", "HALF_UP")


def _graph(build, *shapes):
    """A graph module with meta values, as captured ones have; and its inputs."""
    graph, inputs = Graph(), [torch.randn(shape) for shape in shapes]
    nodes = [graph.placeholder(f"x{i}") for i in range(len(shapes))]
    for node, tensor in zip(nodes, inputs, strict=True):
        node.meta["val"] = tensor

    def call(target, *args):
        node = graph.call_function(target, args)
        node.meta["val"] = target(*(a.meta["val"] if hasattr(a, "meta") else a for a in args))
        return node

    graph.output((build(call, *nodes),))
    return GraphModule(torch.nn.Module(), graph), inputs


def _addresses(module, inputs):
    """Where the result of each node lies."""
    seen = {}

    class Watch(GraphRun):
        def run_node(self, n):
            result = super().run_node(n)
            if isinstance(result, torch.Tensor):
                seen[n.name] = result.data_ptr()
            return result

    Watch(module).run(*inputs)
    return seen


@pytest.mark.parametrize(
    "behind",
    [
        lambda call, x: call(aten.relu.default, x),
        lambda call, x: call(aten.clamp.default, x, 0.0, 1.0),
        lambda call, x: call(
            torch.ops.tvmq.fake_quantize.default, x, call(aten.full.default, [1], 0.25), *CODES
        ),
        lambda call, x: call(aten.sigmoid.default, call(aten.relu.default, x)),
    ],
    ids=["relu", "clamp", "fake_quantize", "two"],
)
def test_what_nobody_else_reads_is_overwritten(behind):
    module, inputs = _graph(lambda call, x: behind(call, call(aten.mul.Tensor, x, x)), (2, 3, 4, 4))
    kept = inputs[0].clone()
    (expected,) = module(*inputs)
    (result,) = GraphRun(module).run(*inputs)
    assert torch.equal(result, expected)
    assert torch.equal(inputs[0], kept)
    addresses = _addresses(module, inputs)
    assert len({addresses[name] for name in addresses if "full" not in name}) == 2  # the input, too


@pytest.mark.parametrize(
    "build",
    [
        lambda call, x, y: call(aten.relu.default, x),
        lambda call, x, y: call(aten.relu.default, call(aten.view.default, x, [4, 3])),
        lambda call, x, y: call(aten.add.Tensor, y, call(aten.mul.Tensor, x, x)),
        lambda call, x, y: call(aten.add.Tensor, call(aten.mul.Tensor, y, y), x),
    ],
    ids=["an input", "a view of an input", "an input that is added to", "a smaller tensor"],
)
def test_what_others_hold_is_left_alone(build):
    module, inputs = _graph(build, (3, 4), (1, 4))
    kept = [x.clone() for x in inputs]
    (expected,) = module(*inputs)
    (result,) = GraphRun(module).run(*inputs)
    assert torch.equal(result, expected)
    assert all(torch.equal(a, b) for a, b in zip(inputs, kept, strict=True))


def test_a_tensor_with_two_readers_is_left_alone():
    def build(call, x):
        y = call(aten.mul.Tensor, x, x)
        return call(aten.sub.Tensor, call(aten.neg.default, y), y)

    module, inputs = _graph(build, (3, 4))
    assert torch.equal(GraphRun(module).run(*inputs)[0], module(*inputs)[0])
    assert torch.equal(module(*inputs)[0], -2 * inputs[0] * inputs[0])


def test_a_tensor_read_twice_by_one_operator_is_left_alone():
    def build(call, x):
        y = call(aten.mul.Tensor, x, x)
        return call(aten.sub.Tensor, y, y)

    module, inputs = _graph(build, (3, 4))
    assert torch.equal(GraphRun(module).run(*inputs)[0], torch.zeros(3, 4))


def test_step_by_step_a_changed_result_is_what_others_read():
    module, inputs = _graph(
        lambda call, x: call(aten.neg.default, call(aten.mul.Tensor, x, x)), (2, 2)
    )
    _, product, negative, _ = (node.name for node in module.graph.nodes)
    run = GraphRun(module).start(*inputs)
    run.run_before(product)
    operator.iadd(run.result_of(product), 1.0)
    assert torch.equal(run.result_of(negative), -(inputs[0] * inputs[0] + 1.0))


@pytest.mark.parametrize("same", [aten.dropout.default, aten.type_as.default])
def test_an_operator_that_returns_its_argument_is_not_believed(same):
    def build(call, x):
        more = (0.5, False) if same is aten.dropout.default else (x,)
        return call(aten.relu.default, call(same, x, *more))

    module, inputs = _graph(build, (3, 4))
    kept = inputs[0].clone()
    GraphRun(module).run(*inputs)
    assert torch.equal(inputs[0], kept)


def test_a_batch_that_broadcasts_takes_a_tensor_of_its_own():
    """With one image the shapes were equal."""
    module, _ = _graph(
        lambda call, x, y: call(aten.add.Tensor, call(aten.mul.Tensor, x, x), y), (1, 4), (1, 4)
    )
    x, y = torch.randn(1, 4), torch.randn(3, 4)
    assert torch.equal(GraphRun(module).run(x, y)[0], x * x + y)
