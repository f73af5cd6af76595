"""Cross-layer equalization by powers of two: channels between layers made as large as suits all.

Where the channels of a layer are read by other layers only, with nothing but ReLU, pooling,
padding, concatenation or moves of pixels between, channel c can be made 2**-k[c] times as large
there and its weights in the layers that read it 2**k[c] times: the float network gives the same
bits. A clamp such as ReLU6 stands in the way: its bound would have to differ by channel. A layer
norm makes channels too, by its factors and summands: what it has normalized knows nothing of them.

Three tensors have a step that all channels share: the weights that make the channels, the
activation between, and the weights that read them. Of each, let a, d and e in (0, 1] be the size of
a channel relative to the largest. What rounding takes from it, relative to what it carries,
grows with 1/a**2 + 1/d**2 + 1/e**2; with k it is

    4**k * (1/a**2 + 1/d**2) + 4**-k / e**2,    least at 2**k = sqrt(m / e), m**-2 = a**-2 + d**-2

(arXiv 1906.04721 has the case without d; arXiv 2212.08254 that of layer norms, without e). The
factors of a layer norm, which have 16 bits, and weights with a step per channel count without a.
The activation is what images show, or batch norms: it knows the bias. No channel grows beyond the
largest of its tensor, so no step becomes coarser, and channels that are dead (no weights that make
or read them, or never anything but 0) stay.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch.fx import GraphModule, Node

from targets.arithmetic import MAX_SHIFT_SPREAD
from targets.errors import InputError
from tvmq.calibrate.channel_ranges import ChannelRange, channel_axis
from tvmq.float_model import (
    BatchNormStats,
    Equalization,
    FloatModel,
    by_input_channel,
    constant_of,
)
from tvmq.regions import PRODUCTS, op_of, shape_of

aten = torch.ops.aten

MAKERS = (*PRODUCTS, aten.layer_norm)

BY_ELEMENT = (aten.relu, aten.leaky_relu, aten.clamp)
"""Operators with f(2**k * x) = 2**k * f(x), exactly; but for clamp."""

POOLS = (aten.max_pool2d, aten.avg_pool2d)
"""Those that do likewise with each channel of an image."""

MAX_SHIFT = 15
"""Scales stay within 2**-15 to 2**15, far from where float32 loses bits."""

SWEEPS = 40
"""Scales of neighbouring links depend on each other; they settle within a few sweeps."""


@dataclass(frozen=True)
class Reader:
    """A layer that reads all channels of another; the first of them is its own ``offset``."""

    node: Node
    offset: int


@dataclass(frozen=True)
class Link:
    """A layer and all that reads its channels.

    Attributes:
        maker: a layer whose rows make the channels, or a layer norm.
        readers: at least one.
        tensors: names of nodes between, all channels of which share a step, and the place of the
            first channel there.
    """

    maker: Node
    readers: tuple[Reader, ...]
    tensors: tuple[tuple[str, int], ...]

    @property
    def channels(self) -> int:
        """How many there are."""
        return shape_of(self.maker)[channel_axis(len(shape_of(self.maker)))]


def equalize(
    model: FloatModel, ranges: Mapping[str, ChannelRange], *, per_channel: bool = False
) -> FloatModel:
    """The same function with channels as equal as powers of two make them.

    Args:
        model: left as it is.
        ranges: by name of node, of images or batch norms.
        per_channel: each output channel has a weight step of its own, so that the weights that
            make channels may differ.

    Returns:
        A model with another fingerprint, if anything changed, and ``equalization`` that says what.
    """
    graph_module = copy.deepcopy(model.graph_module)
    links, clamped = find_links(graph_module)
    settled = _Settling(graph_module, links, ranges, per_channel=per_channel).settle()
    exponents = {
        link.maker.name: tuple(shift.tolist()) for link, shift in settled.items() if shift.any()
    }
    layers = "1 layer" if len(links) == 1 else f"{len(links)} layers"
    reason = f"no channels of {layers} to change"
    if exponents:
        largest = max(max(map(abs, row)) for row in exponents.values())
        reason = f"channels of {len(exponents)} of {layers} changed, by up to 2^{largest}"
    if clamped:
        reason += f"; {clamped} more have a clamp such as ReLU6 behind them, which forbids it"
    return _rewritten(model, graph_module, Equalization(exponents, reason))


def equalize_as(model: FloatModel, equalization: Equalization) -> FloatModel:
    """The same function with channels changed as it was done before.

    Raises:
        InputError: this network has no such layer, or not so many channels.
    """
    graph_module = copy.deepcopy(model.graph_module)
    links = {link.maker.name: link for link in find_links(graph_module)[0]}
    for name, exponents in equalization.exponents.items():
        if name not in links or links[name].channels != len(exponents):
            raise InputError(
                f"equalization.exponents.{name} does not fit the network: it has no layer of that "
                f"name whose {len(exponents)} channels could be scaled. Remove the entry."
            )
        if max(map(abs, exponents)) > MAX_SHIFT:
            raise InputError(
                f"equalization.exponents.{name} holds more than {MAX_SHIFT} either way; give less."
            )
        _scale(graph_module, links[name], torch.tensor(exponents))
    return _rewritten(model, graph_module, equalization)


def _rewritten(
    model: FloatModel, graph_module: GraphModule, equalization: Equalization
) -> FloatModel:
    stats = dict(model.batch_norms)
    for name, exponents in equalization.exponents.items():
        known = stats.get(name)
        if known is not None:
            scale = torch.exp2(-torch.tensor(exponents, dtype=torch.float32))
            stats[name] = BatchNormStats(known.gamma * scale, known.beta * scale)
    return model.changed(graph_module, batch_norms=stats, equalization=equalization)


def find_links(graph_module: GraphModule) -> tuple[list[Link], int]:
    """The links, in order, and how many a clamp prevents."""
    used: dict[str, int] = {}
    for constant in graph_module.graph.find_nodes(op="get_attr"):
        used[constant.target] = used.get(constant.target, 0) + len(constant.users)
    links, clamped = [], 0
    for node in graph_module.graph.nodes:
        if op_of(node) not in MAKERS or not _owns_constants(node, used):
            continue
        walk = _Walk(used)
        if not walk.follow(node, channel_axis(len(shape_of(node))), 0, ()):
            continue
        if walk.clamps:
            clamped += 1
        else:
            tensors = tuple(dict.fromkeys(walk.tensors))
            links.append(Link(node, tuple(walk.readers), tensors))
    return links, clamped


def _constants_of(node: Node) -> list[Node]:
    """The weight of a layer, or the factors of a layer norm; then its bias, if it has one."""
    args = node.args[2:4] if op_of(node) is aten.layer_norm else node.args[1:3]
    return [arg for arg in args if isinstance(arg, Node)]


def _owns_constants(node: Node, used: Mapping[str, int]) -> bool:
    """Whether nothing else uses its weight and bias."""
    return all(used[arg.target] == 1 for arg in _constants_of(node))


class _Walk:
    """From a layer to all that reads its channels."""

    def __init__(self, used: Mapping[str, int]) -> None:
        self.used = used
        self.readers: list[Reader] = []
        self.tensors: list[tuple[str, int]] = []
        self.clamps = False

    def follow(
        self, node: Node, axis: int, offset: int, behind: tuple[tuple[str, int], ...]
    ) -> bool:
        """Whether nothing but layers reads the channels of a node.

        Args:
            node: holds them.
            axis: along which they lie.
            offset: place of the first one.
            behind: tensors on the way that share a step with ``node``.
        """
        if axis == channel_axis(len(shape_of(node))):
            behind = (*behind, (node.name, offset))
        for user in node.users:
            op = op_of(user)
            if op in PRODUCTS:
                read = 1 if op is aten.conv2d else len(shape_of(node)) - 1
                alone = user.args[0] is node and _owns_constants(user, self.used)
                if not alone or axis != read:
                    return False
                self.readers.append(Reader(user, offset))
                self.tensors += behind
            elif op is aten.cat:
                if int(user.args[1]) % len(shape_of(user)) != axis:
                    return False
                first = 0
                for part in user.args[0]:
                    # what is joined has another step than its parts, the one that counts
                    if part is node and not self.follow(user, axis, first + offset, ()):
                        return False
                    first += shape_of(part)[axis]
            else:
                self.clamps |= op is aten.clamp
                passed = op in BY_ELEMENT or (op in POOLS and axis == 1)
                kept = axis if passed else _axis_behind(user, axis)
                if kept is None or not self.follow(user, kept, offset, behind):
                    return False
        return bool(node.users)


def _axis_behind(node: Node, axis: int) -> int | None:
    """Where a move leaves the channels, all of them and in order; None where it doesn't.

    Args:
        node: pads with zeros, or takes some pixels, or gives them another order or shape.
        axis: where the channels lie in what it reads.
    """
    op = op_of(node)
    if op not in (aten.constant_pad_nd, aten.slice, aten.permute, aten.reshape):
        return None
    before, after = shape_of(node.all_input_nodes[0]), shape_of(node)
    if op is aten.constant_pad_nd:
        value = node.args[2] if len(node.args) > 2 else 0
        return axis if value == 0 and before[axis] == after[axis] else None
    if op is aten.slice:
        return axis if int(node.args[1]) % len(before) != axis else None
    if op is aten.permute:
        return [i % len(before) for i in node.args[1]].index(axis)
    same = (
        i
        for i in range(1, len(after))
        if after[i] == before[axis] and math.prod(after[i:]) == math.prod(before[axis:])
    )
    return next(same, None)


class _Settling:
    """Constants that are scaled until nothing changes."""

    def __init__(
        self,
        graph_module: GraphModule,
        links: list[Link],
        ranges: Mapping[str, ChannelRange],
        *,
        per_channel: bool,
    ) -> None:
        self.graph_module, self.per_channel = graph_module, per_channel
        names = {name for link in links for name, _ in link.tensors if name in ranges}
        self.reach = {name: ranges[name].reach.double() for name in names}
        held = (
            replace(link, tensors=tuple(t for t in link.tensors if t[0] in names)) for link in links
        )
        self.links = [link for link in held if link.tensors]

    def settle(self) -> dict[Link, torch.Tensor]:
        """The sum of all shifts of each link, int64[C]."""
        shifts = {link: torch.zeros(link.channels, dtype=torch.long) for link in self.links}
        for _ in range(SWEEPS):
            moved = False
            for link in self.links:
                total = (shifts[link] + self._wanted(link)).clamp(-MAX_SHIFT, MAX_SHIFT)
                more = total - shifts[link]
                if more.any():
                    self._scale(link, more)
                    shifts[link], moved = total, True
            if not moved:
                break
        return shifts

    def _wanted(self, link: Link) -> torch.Tensor:
        """How often to halve each channel, int64[C]; what is within a factor of four is left."""
        norm = op_of(link.maker) is aten.layer_norm
        weight = constant_of(self.graph_module, _constants_of(link.maker)[0])
        rows = weight.flatten(1).abs().amax(1).double() if not norm else weight.abs().double()
        made = rows / rows.max()
        held, read = torch.zeros_like(made), torch.zeros_like(made)
        for name, offset in link.tensors:
            reach = self.reach[name]
            held = held.maximum(reach[offset : offset + len(made)] / reach.max())
        for reader in link.readers:
            weight = constant_of(self.graph_module, reader.node.args[1])
            columns = by_input_channel(weight, reader.node).abs().amax((1, 3)).flatten().double()
            part = columns[reader.offset : reader.offset + len(made)]
            read = read.maximum(part / columns.max())
        dead = 2.0**-MAX_SHIFT_SPREAD
        alive = (made > dead) & (held > dead) & (read > 0)
        made, held, read = (torch.where(alive, x, 1.0) for x in (made, held, read))
        largest = held if self.per_channel else torch.maximum(made, held)
        noise = held**-2 if self.per_channel or norm else made**-2 + held**-2
        wanted = (torch.log2(noise**-0.5 / read) / 2).trunc()
        doubled, halved = ((-torch.log2(size) + 1e-9).floor() for size in (largest, read))
        return torch.where(alive, wanted.maximum(-doubled).minimum(halved), 0.0).long()

    def _scale(self, link: Link, shift: torch.Tensor) -> None:
        _scale(self.graph_module, link, shift)
        for name, offset in link.tensors:
            self.reach[name][offset : offset + link.channels] *= torch.exp2(-shift.double())


def _scale(graph_module: GraphModule, link: Link, shift: torch.Tensor) -> None:
    """Divide the channels that a layer makes by 2**shift, multiply those that are read."""
    down = torch.exp2(-shift.float())
    for node in _constants_of(link.maker):
        constant = constant_of(graph_module, node)
        constant.mul_(down.reshape(-1, *[1] * (constant.ndim - 1)))
    for reader in link.readers:
        weight = constant_of(graph_module, reader.node.args[1])
        columns = by_input_channel(weight, reader.node)
        factors = torch.ones(columns.shape[0] * columns.shape[2])
        factors[reader.offset : reader.offset + len(down)] = 1 / down
        columns.mul_(factors.reshape(columns.shape[0], 1, columns.shape[2], 1))
