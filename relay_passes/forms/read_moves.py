"""Read moves (slices, paddings, concatenations, reshapes) and tables back from Relax.

A slice of a slice is one strided box; a padding or concatenation takes the boxes in front of it
along, so that ``pad(x[:, ::2, ::2])`` is one move. A row of reshapes and transpositions that puts
the channels of each pixel into another order, as ShuffleNet's shuffle does, is a product with a
permutation matrix: an array of multipliers moves single bytes faster than a DMA unit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from relay_passes.code_ranges import code_range
from relay_passes.forms.lookup import first_code
from relay_passes.forms.read_products import Reader, weight_bits
from relay_passes.relax_nodes import (
    Array,
    Expr,
    Graph,
    Var,
    array_of,
    dtype_of,
    ints,
    is_codes,
    op_of,
    shape_of,
)
from targets.layers import Conv2d, Lut, Move, Piece, Requantize
from targets.sum_bounds import bound_sums

Index = tuple[int, int, int]


@dataclass(frozen=True)
class _Box:
    """A strided box of a tensor, (h, w, c)."""

    source: Var
    start: Index
    step: Index
    size: Index


def read_move(reader: Reader, var: Var) -> Move | Conv2d | str:
    """A slice, padding, concatenation, reshape or transposition."""
    graph = reader.graph
    call = graph.value(var)
    op = op_of(call)
    if op in ("reshape", "permute_dims"):
        return _rearrangement(reader, var)
    pieces, fill = [], 0
    if op == "nn.pad":
        before = _image_index(list(ints(call.attrs.pad_width))[2::2])
        pieces = [_piece(reader, _box(graph, call.args[0]), before)]
        fill = int(call.attrs.pad_value)
    elif op == "concat":
        at = [0, 0, 0]
        axis = int(call.attrs.axis) - len(shape_of(var))
        for field in call.args[0].fields:
            box = _box(graph, field)
            pieces.append(_piece(reader, box, (at[0], at[1], at[2])))
            at[axis] += box.size[axis]
    else:
        pieces = [_piece(reader, _box(graph, var), (0, 0, 0))]
    output = reader.need(var)
    return Move(var.name, reader.source(var.name), tuple(pieces), output, fill)


def _rearrangement(reader: Reader, var: Var) -> Move | Conv2d | str:
    """A reshape that moves nothing, or channels in another order."""
    call = reader.graph.value(var)
    if op_of(call) == "reshape" and len(shape_of(call.args[0])) <= 4:
        return _reshape(reader, call.args[0], var)
    for source, elements in _sources(reader.graph, var):
        if np.array_equal(elements.ravel(), np.arange(elements.size)):
            return _reshape(reader, source, var)
        h, w, c = _image(shape_of(source))
        pixels, channels = np.divmod(elements.reshape(-1, elements.shape[-1]), c)
        stay = len(pixels) == h * w and (pixels == np.arange(h * w)[:, None]).all()
        if stay and (channels == channels[0]).all():
            return _permuted_channels(reader, source, var, channels[0])
    return "transposes a tensor; layers only move rows of channels"


def _reshape(reader: Reader, source: Var, var: Var) -> Move:
    size = reader.need(source).shape
    piece = _piece(reader, _Box(source, (0, 0, 0), (1, 1, 1), size), (0, 0, 0))
    place = reader.source(var.name)
    return Move(var.name, place, (piece,), reader.need(var), fill=0, reshape=True)


def _sources(graph: Graph, var: Var) -> Iterator[tuple[Var, Array]]:
    """Images that reshapes and transpositions make a tensor of, the nearest first.

    With each comes, in the shape of the tensor, which element of the image each of its is.
    """
    calls: list[Expr] = []
    while (call := graph.match(var, "reshape", "permute_dims")) is not None:
        calls.insert(0, call)
        var = call.args[0]
        if len(shape_of(var)) > 4:
            continue
        shape = (1, *(int(size) for size in shape_of(var)[1:]))
        elements = np.arange(math.prod(shape)).reshape(shape)
        for step in calls:
            if op_of(step) == "reshape":
                elements = elements.reshape(1, *(int(size) for size in step.ty.shape.values[1:]))
            else:
                elements = elements.transpose(ints(step.attrs.axes))
        yield var, elements


def _permuted_channels(reader: Reader, source: Var, var: Var, order: Array) -> Conv2d:
    """Output channel k is input channel ``order[k]``."""
    channels = len(order)
    weight = np.zeros((channels, 1, 1, channels), np.int8)
    weight[np.arange(channels), 0, 0, order] = 1
    bias = np.zeros(channels, np.int32)
    low, high = code_range(reader.graph, source)
    return Conv2d(
        name=var.name,
        source=reader.source(var.name),
        kind="shuffle",
        input=reader.need(source),
        output=reader.need(var),
        weight=weight,
        bias=bias,
        strides=(1, 1),
        padding=(0, 0, 0, 0),
        dilation=(1, 1),
        groups=1,
        input_zero_point=0,
        requantize=Requantize(0, bias + 1, bias, 0, low, high),
        max_sum=bound_sums(weight, bias, low, high).reach,
        weight_bits=weight_bits(weight),
    )


def read_table(reader: Reader, var: Var) -> Lut | str:
    """A table of 256 bytes; the entries are put in the order of the codes' bytes."""
    graph = reader.graph
    call = graph.value(var)
    table, index = array_of(call.args[0]), call.args[1]
    if (raised := graph.match(index, "add")) is not None:
        index = raised.args[0]
    cast = graph.match(index, "astype")
    if cast is None or not is_codes(cast.args[0]) or table.size != 256:
        return "looks up something else than 256 entries by a code"
    codes = cast.args[0]
    by_byte = np.roll(table, first_code(dtype_of(codes)))
    return Lut(
        var.name, reader.source(var.name), reader.need(codes), reader.need(var), by_byte.tobytes()
    )


def _piece(reader: Reader, box: _Box, at: Index) -> Piece:
    return Piece(reader.need(box.source), box.start, box.step, box.size, at)


def _box(graph: Graph, var: Var, whole: bool = True) -> _Box:
    """The box that a tensor is, as far back as slices go that nothing else reads."""
    call = graph.match(var, "strided_slice")
    if call is None or (not whole and (len(graph.users(var)) > 1 or graph.is_output(var))):
        return _Box(var, (0, 0, 0), (1, 1, 1), _image(shape_of(var)))
    inner = _box(graph, call.args[0], whole=False)
    start, step = list(inner.start), list(inner.step)
    rank = len(shape_of(var))
    axes, begin, _, strides = (ints(arg) for arg in call.args[1:5])
    for axis, first, stride in zip(axes, begin, strides, strict=True):
        place = axis - rank  # counted from the end: h, w, c are the last three axes
        start[place] += first * step[place]
        step[place] *= stride
    size = _image(shape_of(var))
    return _Box(inner.source, (start[0], start[1], start[2]), (step[0], step[1], step[2]), size)


def _image(shape: tuple[Expr, ...]) -> Index:
    """(H, W, C) of a tensor without its batch, as in ``Value.shape``."""
    h, w, c = (1,) * (4 - len(shape)) + tuple(shape[1:])
    return int(h), int(w), int(c)


def _image_index(values: list[int]) -> Index:
    h, w, c = [0] * (3 - len(values)) + values
    return h, w, c
