"""What the layers of an exported program cost, in multiply-accumulates."""

from __future__ import annotations

import math

from torch.fx import Node

from tvmq.capture.program_nodes import numeric_shape, operator_name

_CONVOLUTIONS = (
    *("conv1d", "conv2d", "conv3d", "convolution", "_convolution"),
    *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
)
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_PRODUCTS = ("matmul", "mm", "bmm", "linear", "addmm", "baddbmm", "mv", "einsum")
_ATTENTION = ("scaled_dot_product_attention",)
_NORMS = ("batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm", "layer_norm")
_POOLS = ("avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "mean")

WITHOUT_WEIGHTS = (*_NORMS, *_POOLS)
"""Layers that take no multiply-accumulates worth counting."""

LAYERS = frozenset({*_CONVOLUTIONS, *_RECURRENT, *_PRODUCTS, *_ATTENTION, *WITHOUT_WEIGHTS})
"""What makes a layer of an integer network, or would."""


def macs_of(node: Node) -> int:
    """Multiply-accumulates of a call of an operator of ``LAYERS``, for two images."""
    name = operator_name(node.target)
    if name in WITHOUT_WEIGHTS:
        return 0
    shapes = [numeric_shape(source, 2) for source in node.all_input_nodes]
    if name in _CONVOLUTIONS:
        transposed = "transpose" in name or (name.endswith("convolution") and node.args[6])
        pixels = shapes[0] if transposed else numeric_shape(node, 2)
        return math.prod(pixels) * math.prod(shapes[1][1:])
    if name in _RECURRENT:
        return math.prod(shapes[0][:-1]) * sum(math.prod(s) for s in shapes[1:] if len(s) == 2)
    if name in _ATTENTION:
        return 2 * math.prod(shapes[0]) * shapes[1][-2]
    if name == "einsum":
        return math.prod(numeric_shape(node, 2)) * max(max(s, default=1) for s in shapes)
    left = shapes[1] if name in ("addmm", "baddbmm") else shapes[0]
    return math.prod(numeric_shape(node, 2)) * left[-1]
