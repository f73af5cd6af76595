"""Elements of tensors at other places: no arithmetic.

strided_slice(x, axes, begin, end, strides)      one strided box
nn.pad(slice(x), widths, fill)                   a box inside a filled tensor
concat(slice(x), slice(y), ...)                  boxes side by side
reshape(x)                                       the same bytes under another shape
reshape(permute_dims(reshape(x)))                the same bytes, or elements in another order

A slice of a slice that nothing else reads is one box; a padding or concatenation takes the boxes in
front of it along, so that ``pad(x[:, ::2, ::2])`` is one move, and so is a concatenation of
concatenations. A row of reshapes and
transpositions that puts the channels of each pixel into another order, as ShuffleNet's shuffle
does, is a ``Shuffle``: an array of multipliers moves single bytes faster than a DMA unit. Any other
order is a ``Rearrangement`` where few runs of bytes make it (``element_order.py``): windows of an
image, patches, heads, rows that become columns.

The operators are those of the float network, applied to codes, so ``emit_move`` has little to do;
``match_move`` reads N H W C.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tvm import relax

from relay_passes.forms.element_order import Run, runs_of
from relay_passes.operators import RESHAPES
from relay_passes.relax_nodes import Array, Expr, Graph, Var, ints, op_of, shape_of
from targets.layers import Index


@dataclass(frozen=True)
class Box:
    """A strided box of a tensor and where it lands in the result; all (h, w, c)."""

    codes: Var
    start: Index
    step: Index
    size: Index
    at: Index = (0, 0, 0)


@dataclass(frozen=True)
class Move:
    """Boxes, and the code of what none of them covers.

    Attributes:
        boxes: at least one.
        fill: 0 where they cover everything.
        reshape: the one box is the whole tensor, its bytes stay under another shape.
    """

    boxes: tuple[Box, ...]
    fill: int = 0
    reshape: bool = False


@dataclass(frozen=True)
class Shuffle:
    """Channel k of each pixel is channel ``order[k]`` of the same pixel of ``codes``."""

    codes: Var
    order: tuple[int, ...]


@dataclass(frozen=True)
class Rearrangement:
    """All elements of ``codes`` in another order.

    Attributes:
        view: (H, W, C) as which the result is written.
        runs: that write it.
    """

    codes: Var
    view: Index
    runs: tuple[Run, ...]


def emit_move(call: Expr, codes: Sequence[Expr], zero_point: int) -> Expr:
    """The same move of codes that ``call`` is of real numbers; 0.0 becomes ``zero_point``."""
    if op_of(call) == "concat":
        return relax.op.concat(list(codes), int(call.attrs.axis))
    if op_of(call) == "nn.pad":
        return relax.op.nn.pad(codes[0], ints(call.attrs.pad_width), "constant", zero_point)
    return relax.Call(call.op, [codes[0], *call.args[1:]], call.attrs, call.ty_args)


def match_move(graph: Graph, var: Var) -> Move | Shuffle | Rearrangement | str:
    """The move that a tensor is the result of, or why it is none."""
    call = graph.value(var)
    op = op_of(call)
    if op in RESHAPES:
        return _rearrangement(graph, var)
    if op == "strided_slice":
        box = _box(graph, var)
        return "its slice reads backwards" if box.codes is var else Move((box,))
    if op == "nn.pad":
        before = _last_three(ints(call.attrs.pad_width)[2::2], 0)
        box = _box(graph, call.args[0])
        return Move((replace(box, at=before),), int(call.attrs.pad_value))
    if op == "concat":
        return Move(tuple(_side_by_side(graph, var)))
    return f"no layer is made of '{op}'"


def _side_by_side(graph: Graph, var: Var) -> Iterator[Box]:
    """The boxes of a concatenation, and of those in it that nothing else reads, and it once."""
    todo: list[tuple[Var, list[int]]] = [(var, [0, 0, 0])]
    first = True
    while todo:
        part, at = todo.pop()
        call = graph.match(part, "concat")
        if call is None or not (
            first or (len(graph.users(part)) == 1 and not graph.is_output(part))
        ):
            box = _box(graph, part)
            yield replace(box, at=(at[0], at[1], at[2]))
            continue
        first = False
        axis = int(call.attrs.axis) - len(shape_of(part))
        inner = []
        for field in call.args[0].fields:
            inner.append((field, list(at)))
            at[axis] += _last_three(shape_of(field)[1:], 1)[axis]
        todo += reversed(inner)


def _box(graph: Graph, var: Var) -> Box:
    """The box that a tensor is: its own slice, then slices further back that nothing else reads."""
    rank = len(shape_of(var))
    size = _last_three(shape_of(var)[1:], 1)
    start, step = [0, 0, 0], [1, 1, 1]
    first = True
    while (call := graph.match(var, "strided_slice")) is not None:
        if not first and (len(graph.users(var)) > 1 or graph.is_output(var)):
            break
        axes, begin, _, *given = (ints(arg) for arg in call.args[1:])
        strides = given[0] if given else [1] * len(axes)
        if any(stride < 1 for stride in strides):
            break
        sizes = shape_of(call.args[0])
        for axis, offset, stride in zip(axes, begin, strides, strict=True):
            place = axis % rank - rank  # counted from the end: h, w, c are the last three axes
            first_read = offset if offset >= 0 else offset + int(sizes[place])
            start[place] = first_read + start[place] * stride
            step[place] *= stride
        var, first = call.args[0], False
    return Box(var, (start[0], start[1], start[2]), (step[0], step[1], step[2]), size)


def _rearrangement(graph: Graph, var: Var) -> Move | Shuffle | Rearrangement | str:
    """A reshape that moves nothing, channels in another order, or all elements in another order.

    Of the tensors in front that it can be read from it takes the furthest, so that what is moved
    there and back is not moved at all.
    """
    reshape: Move | None = None
    shuffle: Shuffle | None = None
    furthest: tuple[Var, Array] | None = None
    for source, elements in _sources(graph, var):
        furthest = source, elements
        if np.array_equal(elements.ravel(), np.arange(elements.size)):
            reshape = _reshape(source)
            continue
        h, w, c = _last_three(shape_of(source)[1:], 1)
        pixels, channels = np.divmod(elements.reshape(-1, elements.shape[-1]), c)
        stay = len(pixels) == h * w and (pixels == np.arange(h * w)[:, None]).all()
        # the pixels of a product stay in place, and what it gives is an image
        sizes = shape_of(var)[1:]
        stay &= len(sizes) <= 3 and _last_three(sizes, 1)[:2] == (h, w)
        if stay and (channels == channels[0]).all():
            shuffle = Shuffle(source, tuple(int(k) for k in channels[0]))
    if reshape is not None or shuffle is not None:
        return reshape or shuffle  # type: ignore[return-value]
    written = None if furthest is None else runs_of(furthest[1])
    if furthest is None or written is None:
        return "puts elements into an order of too many short runs"
    return Rearrangement(furthest[0], *written)


def _reshape(source: Var) -> Move:
    size = _last_three(shape_of(source)[1:], 1)
    return Move((Box(source, (0, 0, 0), (1, 1, 1), size),), reshape=True)


def _sources(graph: Graph, var: Var) -> Iterator[tuple[Var, Array]]:
    """Images that reshapes and transpositions make a tensor of, the nearest first.

    With each comes, in the shape of the tensor, which element of the image each of its is.
    """
    calls: list[Expr] = []
    while (call := graph.match(var, *RESHAPES)) is not None:
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


def _last_three(sizes: Sequence[Expr], missing: int) -> Index:
    """(h, w, c) of what a tensor without its batch has of them, as in ``targets.layers.Value``."""
    h, w, c = (missing,) * (3 - len(sizes)) + tuple(int(size) for size in sizes)
    return h, w, c
