"""Fold batch norms into the convolution or linear layer before them.

    y = gamma * (conv(x, w) + b - mean) / sqrt(var + eps) + beta
      = conv(x, w * s) + (b - mean) * s + beta            with s = gamma / sqrt(var + eps)

A batch norm that has no such layer before it, or whose layer has other consumers, becomes a
depthwise 1x1 convolution. Factors and summands per channel, which ``canonicalize`` writes as batch
norms marked ``affine``, are folded the same way. Sums are float64, rounded once.

Needs: a canonical graph. Leaves: no batch_norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Node

from tvmq.capture.canonical_graph import result_of, tidy
from tvmq.float_model import BatchNormStats, Origin, constant_of, copy_of

aten = torch.ops.aten


def fold_batch_norm(
    graph_module: GraphModule, origins: Mapping[str, Origin]
) -> tuple[GraphModule, dict[str, BatchNormStats], dict[str, Origin]]:
    """Return a copy without batch norms; the given module is left as it was.

    Args:
        graph_module: canonical graph, batch norms in the form of ``aten.batch_norm``.
        origins: where each node comes from.

    Returns:
        the folded module; the statistics of every node that now carries the output of a batch
        norm; the origins with the new nodes.
    """
    folder = _Folder(copy_of(graph_module), dict(origins))
    for node in list(folder.module.graph.nodes):
        if node.target is aten.batch_norm.default:
            folder.fold(node)
    tidy(folder.module)
    return folder.module, folder.stats, folder.origins


_PRODUCTS = (torch.ops.tvmq.matmul_rows.default, torch.ops.tvmq.matmul_columns.default)


_NORMS = {aten.layer_norm.default: 2, torch.ops.tvmq.rms_norm.default: 1}
"""Where the factors stand among the arguments."""


def _fits(norm: Node, shift: torch.Tensor) -> bool:
    """Whether a norm has a place for what is added to its channels."""
    return norm.target is aten.layer_norm.default or not bool(shift.any())


def _is_number(scale: torch.Tensor, shift: torch.Tensor) -> bool:
    return bool((scale == scale[0]).all()) and not bool(shift.any())


class _Folder:
    def __init__(self, module: GraphModule, origins: dict[str, Origin]) -> None:
        self.module = module
        self.origins = origins
        self.stats: dict[str, BatchNormStats] = {}

    def fold(self, norm: Node) -> None:
        gamma, beta, mean, variance = (self._double(arg) for arg in norm.args[1:5])
        scale = gamma / torch.sqrt(variance + float(norm.args[7]))
        shift = beta - mean * scale
        source = norm.args[0]
        assert isinstance(source, Node)
        layer = self._layer_behind(source)
        if layer is not None and self._folds_into(layer):
            self._scale_layer(layer, scale, shift)
            carrier, result = layer, source
        elif layer is not None and layer.target in _NORMS and _fits(layer, shift):
            self._scale_norm(layer, scale, shift)
            carrier, result = layer, source
        elif layer is not None and _is_number(scale, shift) and layer.target in _PRODUCTS:
            self._scale_product(layer, float(scale[0]))
            carrier, result = layer, source
        else:
            carrier, result = self._depthwise(norm, source, scale, shift)
        self._record(norm, source, carrier, scale, shift, gamma, beta)
        if result is not carrier:  # tokens, moved to and fro for the batch norm
            for user in list(norm.users):
                if user.target is result.target and user.args[1:] == result.args[1:]:
                    user.replace_all_uses_with(carrier)
        norm.replace_all_uses_with(result)
        self.module.graph.erase_node(norm)
        self.origins.pop(norm.name, None)

    def _layer_behind(self, source: Node) -> Node | None:
        """The layer whose channels a batch norm reads, which nothing else does; or None."""
        if len(source.users) != 1:
            return None
        if source.target is aten.permute.default and list(source.args[1]) == [0, 2, 1]:
            source = source.args[0]  # tokens, which have their channels last
            return source if len(source.users) == 1 else None
        by_row = (aten.linear.default, *_NORMS)
        rows = source.target in by_row and len(source.meta["val"].shape) == 3
        return None if rows else source  # of which the batch norm's channels are no channels

    def _folds_into(self, layer: Node) -> bool:
        return layer.target in (aten.conv2d.default, aten.linear.default)

    def _scale_product(self, product: Node, factor: float) -> None:
        """Multiply a product of tensors by a number: in the weights that made its left one."""
        left = product.args[0]
        assert isinstance(left, Node)
        if left.target is aten.linear.default and len(left.users) == 1:
            channels = left.meta["val"].shape[-1]
            scale = torch.full((channels,), factor, dtype=torch.float64)
            self._scale_layer(left, scale, torch.zeros_like(scale))
        else:
            product.args = (*product.args[:3], product.args[3] * factor, product.args[4])

    def _scale_layer(self, layer: Node, scale: torch.Tensor, shift: torch.Tensor) -> None:
        x, weight, *rest = layer.args
        bias = rest[0] if rest else None
        folded = self._double(weight)
        folded = folded * scale.reshape(-1, *[1] * (folded.ndim - 1))
        offset = shift if bias is None else self._double(bias) * scale + shift
        with self.module.graph.inserting_before(layer):
            layer.args = (
                x,
                self._constant(f"{layer.name}_weight", folded),
                self._constant(f"{layer.name}_bias", offset),
                *rest[1:],
            )

    def _scale_norm(self, norm: Node, scale: torch.Tensor, shift: torch.Tensor) -> None:
        """Multiply the factors of a norm of tokens, and add to its summands."""
        first = _NORMS[norm.target]
        args = list(norm.args)
        with self.module.graph.inserting_before(norm):
            args[first] = self._constant(f"{norm.name}_factor", self._double(args[first]) * scale)
            if norm.target is aten.layer_norm.default:
                summand = self._double(args[first + 1]) * scale + shift
                args[first + 1] = self._constant(f"{norm.name}_summand", summand)
        norm.args = tuple(args)

    def _depthwise(
        self, norm: Node, source: Node, scale: torch.Tensor, shift: torch.Tensor
    ) -> tuple[Node, Node]:
        """A 1x1 convolution per channel; values without height and width get them for it."""
        channels, shape = len(scale), source.meta["val"].shape
        flat = len(shape) < 4
        with self.module.graph.inserting_before(norm):
            sizes = [-1, channels, *shape[2:], *[1] * (4 - len(shape))]
            image = self._call(norm, aten.reshape.default, source, sizes) if flat else source
            weight = self._constant(f"{norm.name}_weight", scale.reshape(-1, 1, 1, 1))
            bias = self._constant(f"{norm.name}_bias", shift)
            carrier = self._call(
                norm, aten.conv2d.default, image, weight, bias, [1, 1], [0, 0], [1, 1], channels
            )
            sizes = [-1, channels, *shape[2:]]
            back = self._call(norm, aten.reshape.default, carrier, sizes) if flat else carrier
        return carrier, back

    def _record(
        self, norm: Node, source: Node, carrier: Node, scale: torch.Tensor, shift: torch.Tensor,
        gamma: torch.Tensor, beta: torch.Tensor,
    ) -> None:  # fmt: skip
        if norm.meta.get("affine"):  # moves the distribution that is known before it, if any
            before = self.stats.get(source.name)
            if before is None:
                return
            gamma, beta = before.gamma.double() * scale, before.beta.double() * scale + shift
        self.stats[carrier.name] = BatchNormStats(gamma.abs().float(), beta.float())

    def _call(self, norm: Node, target: Any, *args: Any) -> Node:
        name = target._schema.name.partition("::")[2]
        node = self.module.graph.create_node("call_function", target, args, {}, name=name)
        node.meta["val"] = result_of(target, args, {})
        self.origins[node.name] = self.origins.get(norm.name, Origin())
        return node

    def _constant(self, name: str, value: torch.Tensor) -> Node:
        while hasattr(self.module, name):
            name += "_"
        value = value.float().contiguous()
        self.module.register_buffer(name, value)
        node = self.module.graph.get_attr(name)
        node.meta["val"] = value.to("meta")
        return node

    def _double(self, node: object) -> torch.Tensor:
        return constant_of(self.module, node).double()
