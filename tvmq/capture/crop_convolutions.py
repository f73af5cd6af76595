"""Convolutions of which a slice cuts off what their padding made: padded less, and not cut.

A causal convolution is written with padding on both sides and a slice behind it; it is one with all
padding in front. So the ReLU or the batch norm behind the slice is next to its convolution.

    conv(x, padding p)[a:b]  =  conv(pad(x, p - a * stride in front, what is left behind))

Functions of single elements and batch norms between the two stay where they are.

Needs: a canonical graph.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.fx import GraphModule, Node

from relay_passes.frontend.pointwise import is_pointwise
from tvmq.capture.canonical_graph import result_of, shape_of, tidy
from tvmq.float_model import Origin, copy_of

aten = torch.ops.aten

_OF_CHANNELS = (aten.batch_norm.default, aten.relu.default, aten.clamp.default)
_PAD = aten.constant_pad_nd.default


def crop_convolutions(
    graph_module: GraphModule, origins: Mapping[str, Origin]
) -> tuple[GraphModule, dict[str, Origin]]:
    """Return a copy without such slices, and the origins with the new nodes."""
    module, known = copy_of(graph_module), dict(origins)
    for cut in module.graph.find_nodes(op="call_function", target=aten.slice.Tensor):
        _crop(module, cut, known)
    tidy(module)
    return module, known


def _crop(module: GraphModule, cut: Node, origins: dict[str, Origin]) -> None:
    between: list[Node] = []
    source = cut.args[0]
    assert isinstance(source, Node)
    while len(source.users) == 1 and (source.target in _OF_CHANNELS or is_pointwise(source.target)):
        between.insert(0, source)
        (source,) = source.all_input_nodes[:1]
    if source.target is not aten.conv2d.default or len(source.users) > 1:
        return
    x, weight, bias, stride, *_, dilation, groups = source.args
    pads = _less_padded(source, cut)
    if pads is None:
        return
    if x.target is _PAD:
        x = x.args[0]
    (top, bottom), (left, right) = pads
    padding = [top, left]
    if padding != [bottom, right]:
        arguments, padding = (x, [left, right, top, bottom], 0.0), [0, 0]
        with module.graph.inserting_before(source):
            x = module.graph.call_function(_PAD, arguments)
        x.meta["val"] = result_of(_PAD, arguments, {})
        origins[x.name] = origins.get(source.name, Origin())
    source.args = (x, weight, bias, stride, padding, dilation, groups)
    for node in (source, *between):
        node.meta["val"] = result_of(node.target, node.args, node.kwargs)
    cut.replace_all_uses_with(cut.args[0])
    module.graph.erase_node(cut)
    origins.pop(cut.name, None)


def _less_padded(conv: Node, cut: Node) -> list[tuple[int, int]] | None:
    """(before, behind) of height and width that leave what the slice does, or None."""
    x, weight, _, stride, padding, dilation, _ = conv.args
    _, axis, start, _, step = cut.args
    if axis not in (2, 3) or step != 1:
        return None
    read, pads = x, [[p, p] for p in padding]
    if x.target is _PAD:
        read, widths = x.args[:2]
        if len(widths) > 4:  # of channels
            return None
        left, right, top, bottom = [*widths, 0, 0][:4]
        pads = [[pads[0][0] + top, pads[0][1] + bottom], [pads[1][0] + left, pads[1][1] + right]]
    place = axis - 2
    first = start if start >= 0 else start + shape_of(cut.args[0])[axis]
    taps = dilation[place] * (shape_of(weight)[axis] - 1) + 1
    before = pads[place][0] - first * stride[place]
    whole = (shape_of(cut)[axis] - 1) * stride[place] + taps
    pads[place] = [before, whole - before - shape_of(read)[axis]]
    return None if min(map(min, pads)) < 0 else [(a, b) for a, b in pads]
