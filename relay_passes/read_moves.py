"""Read moves (slices, paddings, concatenations, reshapes) and tables back from Relax.

A slice of a slice is one strided box; a padding or concatenation takes the boxes in front of it
along, so that ``pad(x[:, ::2, ::2])`` is one move.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from relay_passes.lookup import first_code
from relay_passes.read_products import Reader
from relay_passes.relax_nodes import (
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
from targets.layers import Lut, Move, Piece

Index = tuple[int, int, int]


@dataclass(frozen=True)
class _Box:
    """A strided box of a tensor, (h, w, c)."""

    source: Var
    start: Index
    step: Index
    size: Index


def read_move(reader: Reader, var: Var) -> Move | str:
    """A slice, padding, concatenation or reshape."""
    graph = reader.graph
    call = graph.value(var)
    op = op_of(call)
    if op == "permute_dims":
        return "transposes a tensor; layers only move rows of channels"
    pieces, fill, reshape = [], 0, False
    if op == "reshape":
        source = call.args[0]
        size = reader.need(source).shape
        pieces = [_piece(reader, _Box(source, (0, 0, 0), (1, 1, 1), size), (0, 0, 0))]
        reshape = True
    elif op == "nn.pad":
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
    return Move(var.name, reader.source(var.name), tuple(pieces), output, fill, reshape=reshape)


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
