"""From the integer module to the list of layers that backends are given.

A layer is the expression between the 8-bit tensors that it reads and the one that it makes.
Reading starts at the outputs and goes back; padding in front of a convolution or pooling, and
slices in front of a padding or concatenation, become part of the layer if nothing else reads
them. An expression of another form is an ``OpaqueLayer`` and stays ordinary Relax on the CPU.

``Value.name`` is the name of the variable in the module. ``Layer.name`` is the torch node's that
multiplies, adds, pools or moves: the plan and the user's source know it by that name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from tvm import IRModule

from relay_passes.code_ranges import code_range
from relay_passes.forms.read_moves import read_move, read_table
from relay_passes.forms.read_products import read_arithmetic, read_pool, read_sums
from relay_passes.relax_nodes import (
    Expr,
    Graph,
    Var,
    dtype_of,
    is_float,
    op_of,
    shape_of,
    variables_in,
)
from targets.errors import UnsupportedError
from targets.layers import DType, Layer, Value


@dataclass(frozen=True)
class OpaqueLayer:
    """An expression that no layer describes.

    Attributes:
        name: of its result's variable.
        source: module path and source line of the user's model.
        inputs: the quantized tensors it reads.
        output: the tensor it makes.
        reason: why it is no layer, for the placement report.
    """

    name: str
    source: str
    inputs: tuple[Value, ...]
    output: Value
    reason: str
    kind: str = "opaque"
    macs: int = 0


AnyLayer: TypeAlias = Layer | OpaqueLayer


@dataclass(frozen=True)
class IntegerNetwork:
    """The integer part of a module, for one image.

    Attributes:
        layers: in an order in which each reads only what was made before.
        inputs: the codes of the network's inputs.
        outputs: codes, or int32 sums, of the network's outputs.
    """

    layers: tuple[AnyLayer, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


def read_layers(mod: IRModule, sources: Mapping[str, str] | None = None) -> IntegerNetwork:
    """Read the layers of an integer module.

    Args:
        mod: what ``lower_to_integer`` gives.
        sources: module path and source line by torch node name; a layer without one has "".

    Returns:
        Layers, inputs and outputs.

    Raises:
        UnsupportedError: a tensor has more than three axes besides the batch.
    """
    reader = _Reader(Graph(mod), sources or {})
    outputs = tuple(reader.need(reader.integer_source(var)) for var in reader.graph.outputs)
    position = {var.name: i for i, (var, _) in enumerate(reader.graph.bindings)}
    layers = sorted(reader.layers, key=lambda layer: position[layer.output.name])
    inputs = sorted(reader.inputs, key=lambda value: position[value.name])
    return IntegerNetwork(tuple(layers), tuple(inputs), outputs)


class _Reader:
    """Reads each needed tensor once, its sources first."""

    def __init__(self, graph: Graph, sources: Mapping[str, str]) -> None:
        self.graph = graph
        self.layers: list[AnyLayer] = []
        self.inputs: list[Value] = []
        self._sources = sources
        self._read: dict[Var, Value] = {}

    def need(self, var: Var) -> Value:
        """The value of an integer tensor; its layer is read if it wasn't."""
        if var not in self._read:
            self._read[var] = value_of(self.graph, var, self.source(var.name))
            self._read_layer(var)
        return self._read[var]

    def source(self, name: str) -> str:
        """Where the user's model says it."""
        return self._sources.get(name, "")

    def integer_source(self, output: Var) -> Var:
        """The integer tensor that an output is dequantized from."""
        while is_float(output):
            output = variables_in(self.graph.value(output))[0]
        return output

    def _read_layer(self, var: Var) -> None:
        if self._quantizes_an_input(var):
            self.inputs.append(self._read[var])
            return
        layer: Layer | str
        if dtype_of(var) == "int32":
            layer = read_sums(self, var)
        else:
            op = op_of(self.graph.value(var))
            layer = _READERS.get(op, _unknown)(self, var)
        if isinstance(layer, str):
            self.layers.append(self._opaque(var, layer))
        else:
            self.layers.append(layer)

    def _quantizes_an_input(self, var: Var) -> bool:
        """Whether the codes are made of floats, transposed at most."""
        (source, *more) = variables_in(self.graph.value(var))
        if op_of(self.graph.value(var)) == "permute_dims" and not more:
            return self._quantizes_an_input(source)
        return op_of(self.graph.value(var)) == "astype" and is_float(source)

    def _opaque(self, var: Var, reason: str) -> OpaqueLayer:
        """The expression back to the 8-bit tensors that it reads."""
        found: dict[Var, None] = {}
        open_ends = variables_in(self.graph.value(var))
        while open_ends:
            source = open_ends.pop()
            if dtype_of(source) in ("int8", "uint8"):
                found[source] = None
            else:
                open_ends += variables_in(self.graph.value(source))
        inputs = tuple(self.need(source) for source in reversed(found))
        return OpaqueLayer(var.name, self.source(var.name), inputs, self._read[var], reason)


def value_of(graph: Graph, var: Var, source: str) -> Value:
    """Shape, type and bits of an integer tensor, for one image; ``source`` is for the error.

    Raises:
        UnsupportedError: it has more than three axes besides the batch.
    """
    shape = shape_of(var)[1:]
    if len(shape) > 3:
        place = f" ({source})" if source else ""
        raise UnsupportedError(
            f"{var.name}{place}: shape {shape} has more than three axes besides the batch. "
            "Reshape it to an image or a vector."
        )
    H, W, C = (1,) * (3 - len(shape)) + shape
    dtype: DType = dtype_of(var)  # type: ignore[assignment]  # integer modules hold no others
    return Value(var.name, (H, W, C), dtype, 8 if dtype == "int32" else _bits(graph, var))


def _bits(graph: Graph, var: Var) -> int:
    low, high = code_range(graph, var)
    signed = dtype_of(var) == "int8"
    for bits in (2, 4):
        least, most = (
            (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
        )
        if least <= low and high <= most:
            return bits
    return 8


def _unknown(reader: _Reader, var: Expr) -> str:
    return f"no layer is made of '{op_of(reader.graph.value(var))}'"


_READERS = {
    "astype": read_arithmetic,
    "nn.max_pool2d": read_pool,
    "take": read_table,
    **dict.fromkeys(("nn.pad", "strided_slice", "concat", "reshape", "permute_dims"), read_move),
}
