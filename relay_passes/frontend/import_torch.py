"""From an annotated torch graph to float64 Relax with quantize and dequantize written out.

The graph holds few operators, and each has a converter of ours: TVM's importer decomposes some
(adaptive pooling), fixes float32 as the type of a matmul, knows nothing of quantization, drops the
names, and wants an exported program, whose tracing takes longer than the import. Here a variable is
named after the torch node that it carries; the codes of node ``relu`` are ``relu_codes``.

What a module of torch computes, a float island, is none of this file's matter: its results are
parameters of ``main``, and what it reads is returned (``relay_passes/float_islands.py``).

The graph must be float64 (``module.double()``), since only there it is exact; ``main`` takes
float32 inputs all the same, and returns a tuple of float32 outputs.
"""

from __future__ import annotations

from operator import attrgetter

import torch
from torch.fx import GraphModule, Node
from tvm import IRModule, relax, tirx

from relay_passes.frontend.pointwise import is_pointwise
from relay_passes.frontend.torch_operators import CONVERTERS, Converter, Importer, pointwise
from targets.causes import first_line
from targets.errors import TvmqError, UnsupportedError

BATCH = "n"
"""Name of the symbol that stands for the number of images."""


def import_torch(graph_module: GraphModule) -> IRModule:
    """Import an annotated graph.

    Args:
        graph_module: float64, with ``tvmq::fake_quantize`` nodes. The first axis of each input is
            the batch, whose size in the metadata of the nodes says nothing.

    Returns:
        A module whose ``main`` takes float32 tensors (N, ...) and returns a tuple of such. Behind
        the inputs it takes the results of modules in the graph, behind the outputs it returns what
        each of these reads.

    Raises:
        UnsupportedError: an operator has no converter (all of them are named), or a parameter is
            not float64.
    """
    _check_operators(graph_module)
    graph, batch = graph_module.graph, tirx.Var(BATCH, "int64")
    builder = relax.BlockBuilder()
    modules = graph.find_nodes(op="call_module")
    params = {
        node: relax.Var(
            node.name if node in modules else str(node.target),
            relax.TensorType([batch, *map(int, node.meta["val"].shape[1:])], "float32"),
        )
        for node in (*graph.find_nodes(op="placeholder"), *modules)
    }
    stored = {
        node: _stored(graph_module, node.target).numpy() for node in graph.find_nodes(op="get_attr")
    }
    importer = Importer(builder.emit, stored)
    (output,) = graph.find_nodes(op="output")
    with builder.function("main", list(params.values())):
        with builder.dataflow():
            for node, param in params.items():
                importer.env[node] = builder.emit(relax.op.astype(param, "float64"))
            for node in graph.nodes:
                if node.op == "call_function":
                    converter = _converter(node)
                    assert converter is not None
                    try:
                        importer.env[node] = converter(node, importer)
                    except TvmqError:
                        raise
                    except Exception as error:  # TVM raises what it pleases
                        raise UnsupportedError(
                            f"Import: {node.target} at '{node.name}' can't be written in Relax "
                            f"({first_line(error)}). Write it in other operators.",
                            node=node.name,
                        ) from error
            outputs = [
                builder.emit(relax.op.astype(importer.env[node], "float32"))
                for node in (*output.args[0], *(arg for node in modules for arg in node.args))
            ]
            result = builder.emit_output(relax.Tuple(outputs))
        builder.emit_func_output(result)
    return builder.get()


def _converter(node: Node) -> Converter | None:
    known = CONVERTERS.get(node.target.__name__)
    return known or (pointwise if is_pointwise(node.target) else None)


def _check_operators(graph_module: GraphModule) -> None:
    missing = {
        f"{node.target} at '{node.name}'"
        for node in graph_module.graph.nodes
        if node.op == "call_function" and _converter(node) is None
    }
    if missing:
        raise UnsupportedError(
            f"Import: no converter for {', '.join(sorted(missing))}. "
            "Rewrite the model without these operators."
        )


def _stored(graph_module: GraphModule, name: str) -> torch.Tensor:
    tensor: torch.Tensor = attrgetter(name)(graph_module).detach().cpu()
    if tensor.is_floating_point() and tensor.dtype != torch.float64:
        raise UnsupportedError(
            f"Import: expected '{name}' in float64, got {tensor.dtype}. "
            "Convert the annotated module with .double()."
        )
    return tensor
