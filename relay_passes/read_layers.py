"""From the integer module to the list of layers that backends are given.

A layer is the expression between the 8-bit tensors that it reads and the one that it makes.
The normal forms of layers stand in ``forms/``, each with the operators that it takes along.
Reading starts at the outputs and goes back from each layer to what it reads. An expression of
another form is an ``OpaqueLayer`` and stays ordinary Relax on the CPU.

``Value.name`` is the name of the variable in the module. ``Layer.name`` is the torch node's that
multiplies, adds, pools or moves: the plan and the user's source know it by that name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from tvm import IRModule

from relay_passes.code_ranges import CodeRanges
from relay_passes.float_islands import island_behind
from relay_passes.forms.addition import Addition, match_addition
from relay_passes.forms.factor import Factor as FactorForm
from relay_passes.forms.move import Box, Rearrangement, Shuffle, match_move
from relay_passes.forms.norm import Norm as NormForm
from relay_passes.forms.norm import match_norm
from relay_passes.forms.pool import match_pool
from relay_passes.forms.product import Product, match_product
from relay_passes.forms.requantize import Requantization, match_requantization
from relay_passes.forms.softmax import Softmax as SoftmaxForm
from relay_passes.forms.softmax import match_softmax
from relay_passes.forms.table import first_code, match_table
from relay_passes.forms.term import Term
from relay_passes.operators import MOVES, RESHAPES
from relay_passes.passes.name_values import CODES
from relay_passes.relax_nodes import (
    Array,
    Expr,
    Graph,
    Var,
    array_of,
    called_function,
    dtype_of,
    is_codes,
    is_constant,
    is_float,
    op_of,
    shape_of,
    variables_in,
)
from targets.code_range import code_range
from targets.errors import UnsupportedError
from targets.layers import (
    Add,
    Constant,
    Conv2d,
    DType,
    Factor,
    Layer,
    Lut,
    MaxPool2d,
    Move,
    Norm,
    Operand,
    Pairing,
    Piece,
    Requantize,
    Residual,
    Softmax,
    Value,
    Weights,
)
from targets.refusal import Refusal
from targets.rounding import HALF_UP
from targets.sum_bounds import CodeRange, SumBounds, bound_products, bound_sums

MOST_AXES = 4
"""Of a tensor of a layer, the batch included; with more it is only on the way to another."""

_SUFFIX = re.compile(r"_(codes|sums|nchw|nhwc)\d*$")
"""What passes add to the name of a torch node for what they make of its value."""

_ADVICE = dict.fromkeys(
    ("permute_dims", "reshape"),
    "At the network's end leave the permute or reshape to what reads the outputs; within it keep "
    "the channels of a pixel together.",
)
_ANY_ADVICE = "Write it as convolutions, dense layers, additions or functions of one tensor."
"""Beyond that, the CPU runs it as it is, to the same bits."""


@dataclass(frozen=True)
class OpaqueLayer:
    """An expression that no layer describes.

    Attributes:
        name: of its result's variable.
        source: module path and source line of the user's model.
        inputs: the quantized tensors it reads.
        output: the tensor it makes.
        refusal: why it is no layer, for the placement report.
    """

    name: str
    source: str
    inputs: tuple[Value, ...]
    output: Value
    refusal: Refusal
    kind: str = "opaque"
    macs: int = 0


@dataclass(frozen=True)
class IslandLayer:
    """What runs in float between codes, on the host.

    Attributes:
        name: of the island, and of the module's function that computes it.
        source: module path and source line of its first operator.
        operators: kinds of its operators, in words.
        macs: multiply-accumulates of one image.
        inputs: the codes, or int32 sums, that its floats are made of.
        outputs: the codes that are made of its results.
    """

    name: str
    source: str
    operators: str
    macs: int
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    kind: str = "float"

    @property
    def output(self) -> Value:
        """The first of its results."""
        return self.outputs[0]


AnyLayer: TypeAlias = Layer | OpaqueLayer | IslandLayer


@dataclass(frozen=True)
class IntegerNetwork:
    """The integer part of a module, for one image.

    Attributes:
        layers: in an order in which each reads only what was made before.
        inputs: the codes of the network's inputs.
        outputs: codes, or int32 sums, that the network's outputs, or what float islands read, are
            made of.
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
    graph = Graph(mod)
    reader = _Reader(graph, sources or {})
    sources_of = (source for var in graph.outputs for source in _integer_sources(graph, var))
    outputs = {source: reader.value(source) for source in sources_of}
    reader.read()
    position = {var.name: i for i, (var, _) in enumerate(graph.bindings)}
    islands = [_island(mod, graph, call, reader) for call in reader.islands]
    for call in reader.islands:
        outputs |= {source: reader.value(source) for source in _read_by_island(graph, call)}
    layers = sorted(
        [*reader.layers, *islands], key=lambda layer: min(position[v.name] for v in _made(layer))
    )
    inputs = sorted(reader.inputs, key=lambda value: position[value.name])
    return IntegerNetwork(tuple(layers), tuple(inputs), tuple(outputs.values()))


def _made(layer: AnyLayer) -> tuple[Value, ...]:
    return layer.outputs if isinstance(layer, IslandLayer) else (layer.output,)


def _read_by_island(graph: Graph, call: Var) -> list[Var]:
    """The integer tensors that an island's floats are made of."""
    floats = variables_in(graph.value(call))
    return [source for var in floats for source in _integer_sources(graph, var)]


def _island(mod: IRModule, graph: Graph, call: Var, reader: _Reader) -> IslandLayer:
    name = called_function(graph.value(call))
    facts = mod[name].attrs
    return IslandLayer(
        name,
        str(facts["source"]),
        str(facts["operators"]),
        int(facts["macs"]),
        tuple(dict.fromkeys(map(reader.value, _read_by_island(graph, call)))),
        tuple(reader.islands[call]),
    )


def _integer_sources(graph: Graph, output: Var) -> list[Var]:
    """The integer tensors that an output is dequantized, and perhaps joined, from."""
    found, todo = [], [output]
    while todo:
        var = todo.pop()
        if is_float(var):
            todo += reversed(variables_in(graph.value(var)))
        else:
            found.append(_before_it_is_turned(graph, var))
    return found


def _before_it_is_turned(graph: Graph, output: Var) -> Var:
    """What an integer output is transposed from, which is no layer; itself where it isn't."""
    source, turned = output, False
    while (call := graph.match(source, *RESHAPES)) is not None:
        turned = turned or isinstance(match_move(graph, source), str | Rearrangement)
        source = call.args[0]
    return source if turned else output


class _Reader:
    """Reads the layer of each tensor that somebody asked for; a layer asks for what it reads."""

    def __init__(self, graph: Graph, sources: Mapping[str, str]) -> None:
        self.graph = graph
        self.ranges = CodeRanges(graph)
        self.layers: list[AnyLayer] = []
        self.inputs: list[Value] = []
        self.islands: dict[Var, list[Value]] = {}
        """By call of a float island, the codes that are made of its results."""
        self._sources = sources
        self._values: dict[Var, Value] = {}
        self._todo: list[Var] = []

    def read(self) -> None:
        """Read everything that is asked for, in whatever order."""
        while self._todo:
            var = self._todo.pop()
            if (floats := self._quantized(var)) is not None:
                island = island_behind(self.graph, floats)
                if island is None:
                    self.inputs.append(self.value(var))
                    continue
                self.islands.setdefault(island, []).append(self.value(var))
                for source in _read_by_island(self.graph, island):
                    self.value(source)
                continue
            layer = self._layer(var)
            self.layers.append(self._opaque(var, layer) if isinstance(layer, str) else layer)

    def value(self, var: Var) -> Value:
        """A tensor; its layer will be read."""
        if var not in self._values:
            self._values[var] = self._described(var)
            self._todo.append(var)
        return self._values[var]

    def source(self, name: str) -> str:
        """Where the user's model says it."""
        while name not in self._sources and (node := _SUFFIX.sub("", name)) != name:
            name = node
        return self._sources.get(name, "")

    def _described(self, var: Var) -> Value:
        shape = shape_of(var)[1:]
        if 1 + len(shape) > MOST_AXES:
            source = self.source(var.name)
            place = f" ({source})" if source else ""
            raise UnsupportedError(
                f"{_SUFFIX.sub('', var.name)}{place}: a tensor of shape {list(shape)} has more "
                "than three axes besides the batch. Reshape it to an image or a vector at once: "
                "stack and permute along one axis, or leave it to what reads the outputs."
            )
        H, W, C = (1,) * (3 - len(shape)) + shape
        dtype: DType = dtype_of(var)  # type: ignore[assignment]  # integer modules hold no others
        bits = 8 if dtype == "int32" else _bits(dtype, *self.ranges.of(var))
        return Value(var.name, (H, W, C), dtype, bits)

    def _quantized(self, var: Var) -> Expr | None:
        """The floats that the codes are made of, transposed at most, rows as images of one row."""
        call = self.graph.value(var)
        while op_of(call) == "permute_dims":
            call = self.graph.value(call.args[0])
        if op_of(call) == "reshape" and call is not self.graph.value(var):
            _, channels, *rest = shape_of(call)
            if rest and shape_of(call.args[0])[1:] == (channels, *rest[1:]) and rest[0] == 1:
                call = self.graph.value(call.args[0])
        return call.args[0] if op_of(call) == "astype" and is_float(call.args[0]) else None

    def _opaque(self, var: Var, reason: str) -> OpaqueLayer:
        """The expression back to the 8-bit tensors that it reads."""
        found: dict[Var, None] = {}
        seen: set[Var] = set()
        open_ends = variables_in(self.graph.value(var))
        while open_ends:
            source = open_ends.pop()
            if is_codes(source) and len(shape_of(source)) <= MOST_AXES:
                found[source] = None
            elif source not in seen:
                open_ends += variables_in(self.graph.value(source))
            seen.add(source)
        inputs = tuple(self.value(source) for source in reversed(found))
        refusal = Refusal(reason, _ADVICE.get(op_of(self.graph.value(var)), _ANY_ADVICE))
        name = var.name.replace(CODES, "")
        return OpaqueLayer(name, self.source(var.name), inputs, self.value(var), refusal)

    # --- one layer, or why the expression is none

    def _layer(self, var: Var) -> Layer | str:
        op = op_of(self.graph.value(var))
        if dtype_of(var) == "int32":
            product = match_product(self.graph, var)
            if isinstance(product, str):
                return f"the int32 output {product}"
            return self._product(var, product, None)
        if op == "astype":
            return self._rounded(var)
        if op == "nn.max_pool2d":
            return self._pool(var)
        if op == "take":
            return self._table(var)
        if op == "broadcast_to":
            return self._constant(var)
        if op in MOVES:
            return self._move(var)
        return f"no layer is made of '{op}'"

    def _rounded(self, var: Var) -> Layer | str:
        addition = match_addition(self.graph, var)
        if isinstance(addition, Addition):
            return self._addition(var, addition)
        requantization = match_requantization(self.graph, var)
        if isinstance(requantization, str):
            return requantization
        if not isinstance(softmax := match_softmax(self.graph, requantization.sums), str):
            return self._softmax(var, softmax, requantization)
        if not isinstance(norm := match_norm(self.graph, requantization.sums), str):
            return self._norm(var, norm, requantization)
        product = match_product(self.graph, requantization.sums)
        if isinstance(product, str):
            return f"what is rounded is no sum of two tensors, and {product}"
        return self._product(var, product, requantization)

    def _addition(self, var: Var, form: Addition) -> Add:
        return Add(
            form.node,
            self.source(form.node),
            self._operand(form.a),
            self._operand(form.b),
            self.value(var),
            int(form.shift),
            form.zero_point,
            form.low,
            form.high,
            form.rounding,
        )

    def _operand(self, term: Term) -> Operand:
        return Operand(self.value(term.codes), term.zero_point, term.multiplier, int(term.shift))

    def _product(self, var: Var, form: Product, rounding: Requantization | None) -> Conv2d:
        right, bounds = self._right(form)
        return Conv2d(
            name=form.node,
            source=self.source(form.node),
            kind=_kind(form),
            input=self.value(form.codes),
            output=self.value(var),
            right=right,
            bias=form.bias,
            strides=form.strides,
            padding=form.padding,
            dilation=form.dilation,
            groups=form.groups,
            input_zero_point=form.zero_point,
            requantize=None if rounding is None else self._requantize(rounding),
            max_sum=bounds.reach,
        )

    def _right(self, form: Product) -> tuple[Weights | Factor, SumBounds]:
        """The right operand of a product, and the bounds of its sums."""
        low, high = self.ranges.of(form.codes)
        if isinstance(form.right, FactorForm):
            codes, zero_point = form.right.codes, form.right.zero_point
            factor = Factor(self.value(codes), zero_point, form.right.pairing)
            left = CodeRange(low, high, form.zero_point)
            right = CodeRange(*self.ranges.of(codes), zero_point)
            count = shape_of(form.codes)[-1] // form.groups
            return factor, bound_products(left, right, count, form.bias)
        if any(form.padding):
            low, high = min(low, form.zero_point), max(high, form.zero_point)
        weights = Weights(form.right, weight_bits(form.right), form.factors)
        return weights, bound_sums(weights.scaled, form.bias, low, high)

    def _requantize(self, form: Requantization) -> Requantize:
        scale, residual = form.scale, None
        if form.residual is not None:
            codes, zero_point = form.residual
            shift = np.array(scale.residual_shift, np.int32)
            residual = Residual(self.value(codes), zero_point, scale.residual_multiplier, shift)
        return Requantize(
            scale.fraction,
            np.array(scale.multiplier, np.int32),
            np.array(scale.shift, np.int32),
            form.zero_point,
            form.low,
            form.high,
            form.rounding,
            residual,
        )

    def _pool(self, var: Var) -> MaxPool2d | str:
        form = match_pool(self.graph, var)
        if isinstance(form, str):
            return form
        return MaxPool2d(
            var.name,
            self.source(var.name),
            self.value(form.codes),
            self.value(var),
            form.kernel,
            form.strides,
            form.padding,
            form.dilation,
        )

    def _softmax(self, var: Var, form: SoftmaxForm, rounding: Requantization) -> Softmax:
        return Softmax(
            form.node,
            self.source(form.node),
            self.value(form.codes),
            self.value(var),
            form.heads,
            form.table,
            self._requantize(rounding),
        )

    def _norm(self, var: Var, form: NormForm, rounding: Requantization) -> Norm:
        return Norm(
            form.node,
            self.source(form.node),
            self.value(form.codes),
            self.value(var),
            form.scale,
            self._requantize(rounding),
        )

    def _constant(self, var: Var) -> Constant | str:
        held = self.graph.value(var).args[0]
        if not is_constant(held) or shape_of(held)[1:] != shape_of(var)[1:]:
            return "repeats values"
        value = self.value(var)
        codes = array_of(held).reshape(value.shape)
        return Constant(var.name, self.source(var.name), value, codes)

    def _table(self, var: Var) -> Lut | str:
        form = match_table(self.graph, var)
        if isinstance(form, str):
            return form
        # a layer's table is in the order of the codes' bytes
        by_byte = np.roll(form.entries, first_code(dtype_of(form.codes)))
        place = self.source(var.name)
        return Lut(var.name, place, self.value(form.codes), self.value(var), by_byte.tobytes())

    def _move(self, var: Var) -> Move | Conv2d | str:
        form = match_move(self.graph, var)
        if isinstance(form, str):
            return form
        if isinstance(form, Shuffle):
            return self._shuffle(var, form)
        place = self.source(var.name)
        if isinstance(form, Rearrangement):
            read = self.value(form.codes)
            order = tuple(Piece(read, r.first, r.strides, r.size, r.at) for r in form.runs)
            return Move(var.name, place, order, self.value(var), 0, view=form.view)
        pieces = tuple(self._piece(box) for box in form.boxes)
        return Move(var.name, place, pieces, self.value(var), form.fill, reshape=form.reshape)

    def _piece(self, box: Box) -> Piece:
        return Piece.box(self.value(box.codes), box.start, box.step, box.size, box.at)

    def _shuffle(self, var: Var, form: Shuffle) -> Conv2d:
        """A product with a permutation matrix."""
        channels = len(form.order)
        weight = np.zeros((channels, 1, 1, channels), np.int8)
        weight[np.arange(channels), 0, 0, form.order] = 1
        bias = np.zeros(channels, np.int32)
        low, high = self.ranges.of(form.codes)
        return Conv2d(
            name=var.name,
            source=self.source(var.name),
            kind="shuffle",
            input=self.value(form.codes),
            output=self.value(var),
            right=Weights(weight, weight_bits(weight)),
            bias=bias,
            strides=(1, 1),
            padding=(0, 0, 0, 0),
            dilation=(1, 1),
            groups=1,
            input_zero_point=0,
            requantize=Requantize(0, bias + 1, bias, 0, low, high, HALF_UP),
            max_sum=bound_sums(weight, bias, low, high).reach,
        )


def weight_bits(weight: Array) -> int:
    """The fewest bits, 2, 4 or 8, that hold all weights."""
    return next(
        (b for b in (2, 4) if -(1 << (b - 1)) <= weight.min() and weight.max() < 1 << (b - 1)), 8
    )


def _kind(form: Product) -> str:
    if isinstance(form.right, FactorForm):
        return "multiply" if form.right.pairing is Pairing.ELEMENTS else "matmul"
    if form.dense:
        return "dense"
    if form.groups > 1 and form.groups == shape_of(form.codes)[3] == len(form.bias):
        if (form.right != 1).any():
            return "depthwise_conv2d"
        return "requantize" if form.right.shape[1:3] == (1, 1) else "avg_pool2d"
    return "conv2d"


def _bits(dtype: str, low: int, high: int) -> int:
    """The fewest bits, 2, 4 or 8, whose codes reach from ``low`` to ``high``."""
    for bits in (2, 4):
        first, last = code_range(bits, dtype == "int8")
        if first <= low and high <= last:
            return bits
    return 8
