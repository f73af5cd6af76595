"""Convolutions for the tests of CPU kernels, and what they should give, in NumPy int64."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
from cpu_kernels import RANGE, rounded
from npu_layers import by_borders

from targets.layers import Conv2d, Requantize, Residual, Value, Weights
from targets.product_factors import ProductFactors
from targets.rounding import FLOOR, HALF_UP
from targets.sum_bounds import bound_sums


def conv_reference(layer: Conv2d, inputs: list[np.ndarray]) -> np.ndarray:
    x = inputs[0].astype(np.int64)
    n = len(x)
    k, r, s, c = layer.weight_shape
    ho, wo, _ = layer.output.shape
    (sy, sx), (dy, dx), (t, left, b, right) = layer.strides, layer.dilation, layer.padding
    x = np.pad(x, ((0, 0), (t, b), (left, right), (0, 0)), constant_values=layer.input_zero_point)
    acc = np.zeros((n, ho, wo, k), np.int64)
    for ko in range(k):
        first = ko // (k // layer.groups) * c
        for i, j in itertools.product(range(r), range(s)):
            window = x[:, i * dy :, j * dx :, first : first + c]
            window = window[:, : (ho - 1) * sy + 1 : sy, : (wo - 1) * sx + 1 : sx]
            each = layer.right.codes[ko, i, j].astype(np.int64)
            if (scaled := layer.right.factors) is not None:
                each *= scaled.factors[ko, np.arange(c) // scaled.channels]
            acc[..., ko] += window @ each
    acc += layer.bias
    q = layer.requantize
    if q is None:
        return acc.astype(np.int32)
    total = (acc << q.fraction) * q.multiplier.astype(np.int64)
    if q.residual is not None:
        r64 = inputs[1].astype(np.int64) - q.residual.zero_point
        total += (r64 * q.residual.multiplier) << q.residual.shift.astype(np.int64)
    if q.rounding.borders:
        code = q.low + (total[..., None] >= q.thresholds).sum(-1)
    else:
        code = rounded(total, q.shift, q.rounding) + q.zero_point
    return np.clip(code, q.low, q.high).astype(layer.output.dtype)


def conv(
    shape=(8, 8, 16),
    k=16,
    kernel=(3, 3),
    strides=(1, 1),
    padding=(1, 1, 1, 1),
    dilation=(1, 1),
    groups=1,
    dtype="int8",
    out_dtype=None,
    residual=None,
    multiplier=False,
    raw=False,
    fraction=0,
    zero_point=0,
    rounding=HALF_UP,
    seed=0,
    weight_bits=8,
    products=0,
    limits=None,
) -> Conv2d:
    """A layer with random weights whose codes spread over the whole output range."""
    rng = np.random.default_rng(seed)
    h, w, c = shape
    (kr, ks), (sy, sx), (dy, dx), (t, left, b, right) = kernel, strides, dilation, padding
    ho = (h + t + b - dy * (kr - 1) - 1) // sy + 1
    wo = (w + left + right - dx * (ks - 1) - 1) // sx + 1
    most = 1 << (weight_bits - 1)
    weight = rng.integers(-most, most, (k, kr, ks, c // groups)).astype(np.int8)
    right = Weights(weight)
    if products:
        factors = rng.choice([16, 8, 24, 12, 15, 17], (k, -(-c // groups // products)))
        right = Weights(weight, 8, ProductFactors(products, factors.astype(np.int32)))
    out_dtype = "int32" if raw else out_dtype or dtype
    output = Value("y", (ho, wo, k), out_dtype)
    bias = rng.integers(-5000, 5000, k).astype(np.int32)
    requantize = None
    if not raw:
        low, high = RANGE[out_dtype]
        spread = int(np.log2(74 * 74 * np.sqrt(kr * ks * c // groups) / 50))
        m = rng.integers(1, 65536, k).astype(np.int32) if multiplier else np.ones(k, np.int32)
        bits = np.floor(np.log2(m)).astype(np.int32)
        shift = np.maximum(spread + rng.integers(-1, 2, k) + bits + fraction, 0).astype(np.int32)
        skip = None
        if residual:
            rm = int(rng.integers(1, 65536)) if multiplier else 1
            rs = np.maximum(shift - (int(np.log2(rm))) - 1, 0).astype(np.int32)
            rz = int(rng.integers(RANGE[residual][0], RANGE[residual][1] + 1))
            skip = Residual(Value("r", (ho, wo, k), residual), rz, rm, rs)
        zy = int(rng.integers(low, high + 1)) if zero_point else 0
        ends = limits or (low + 1, high - 2)
        requantize = Requantize(fraction, m, shift, zy, *ends, rounding, skip)
    return Conv2d(
        "conv", "test", "conv2d", Value("x", shape, dtype), output, right, bias, strides,
        padding, dilation, groups, zero_point, requantize,
        bound_sums(right.scaled, bias, *RANGE[dtype]).reach,
    )  # fmt: skip


def extreme_conv(dtype: str, pairs: list[tuple[int, int]] | None = None) -> Conv2d:
    """Raw sums with weights of one sign at the end of their range, by output channel.

    Args:
        dtype: of the input.
        pairs: the weights of two input channels instead, by output channel.
    """
    weight = np.full((32, 1, 1, 64), -128, np.int8)
    weight[::2] = 127
    if pairs:
        weight[:, 0, 0] = np.tile(np.resize(np.array(pairs, np.int8), (32, 2)), 32)
    bias = np.zeros(32, np.int32)
    return Conv2d(
        "conv", "test", "conv2d", Value("x", (1, 3, 64), dtype), Value("y", (1, 3, 32), "int32"),
        Weights(weight), bias, (1, 1), (0,) * 4, (1, 1), 1, 0, None,
        bound_sums(weight, bias, *RANGE[dtype]).reach,
    )  # fmt: skip


def extreme_depthwise(dtype: str, pairs: list[tuple[int, int]]) -> Conv2d:
    """The same, depthwise, with ``pairs`` in rows 0 and 1, and 2 and 3, of the window."""
    rows = np.resize(np.array(pairs, np.int8), (32, 2))
    weight = np.repeat(np.tile(rows, 2)[:, :, None, None], 3, axis=2)
    layer = extreme_conv(dtype)
    x, y = Value("x", (5, 6, 32), dtype), Value("y", (2, 4, 32), "int32")
    reach = bound_sums(weight, layer.bias, *RANGE[dtype]).reach
    return replace(layer, input=x, output=y, right=Weights(weight), groups=32, max_sum=reach)


CONVS = {
    "square": {},
    "stem": {"shape": (17, 15, 3), "k": 24, "strides": (2, 2), "dtype": "uint8"},
    "three channels 7x7": {"shape": (20, 20, 3), "kernel": (7, 7), "padding": (3, 3, 3, 3)},
    "odd channels": {"shape": (5, 7, 5), "k": 17, "zero_point": -3},
    "hundred channels": {"shape": (4, 4, 100), "k": 100, "residual": "int8"},
    "dense": {"shape": (1, 1, 70), "k": 10, "kernel": (1, 1), "padding": (0,) * 4, "raw": True},
    "dense wide": {"shape": (1, 1, 64), "k": 128, "kernel": (1, 1), "padding": (0,) * 4},
    "dense residual": {
        "shape": (1, 1, 9), "k": 33, "kernel": (1, 1), "padding": (0,) * 4, "residual": "uint8",
    },
    "1x1 plane, 3x3 kernel": {"shape": (1, 1, 8), "k": 32, "zero_point": 5, "dtype": "uint8"},
    "pointwise": {"shape": (6, 6, 32), "k": 48, "kernel": (1, 1), "padding": (0,) * 4},
    "pointwise ragged": {
        "shape": (5, 23, 24), "k": 40, "kernel": (1, 1), "padding": (0,) * 4, "residual": "int8",
    },
    "pointwise strided": {
        "shape": (8, 8, 16), "k": 32, "kernel": (1, 1), "padding": (0,) * 4, "strides": (2, 2),
    },
    "pointwise padded": {
        "shape": (3, 5, 16), "k": 16, "kernel": (1, 1), "padding": (1, 0, 2, 1), "zero_point": 7,
    },
    "asymmetric": {
        "shape": (9, 10, 6), "k": 20, "kernel": (2, 5), "padding": (0, 3, 2, 1), "dilation": (3, 2),
        "strides": (1, 2), "zero_point": -100,
    },
    "depthwise": {"shape": (9, 9, 32), "k": 32, "groups": 32, "zero_point": 11},
    "scaled products in bytes": {
        "shape": (6, 7, 20), "k": 20, "products": 8, "weight_bits": 2, "fraction": 1,
        "zero_point": 9, "residual": "int8",
    },
    "scaled products in words": {"shape": (6, 7, 21), "k": 33, "products": 4, "dtype": "uint8"},
    "scaled products in groups": {
        "shape": (5, 6, 24), "k": 20, "groups": 2, "products": 5, "multiplier": True,
        "zero_point": -7,
    },
    "scaled products, dense": {
        "shape": (1, 1, 70), "k": 10, "kernel": (1, 1), "padding": (0,) * 4, "raw": True,
        "products": 16,
    },
    "depthwise ragged": {
        "shape": (7, 11, 19), "k": 19, "groups": 19, "strides": (2, 1), "dtype": "uint8",
        "zero_point": 130, "residual": "uint8", "multiplier": True,
    },
    "depthwise pool": {
        "shape": (8, 8, 64), "k": 64, "groups": 64, "kernel": (8, 8), "padding": (0,) * 4,
        "multiplier": True,
    },
    "depthwise 5x5": {
        "shape": (9, 14, 48), "k": 48, "groups": 48, "kernel": (5, 5), "padding": (2, 2, 2, 2),
        "dtype": "uint8", "multiplier": True, "zero_point": 200,
    },
    "depthwise strided": {
        "shape": (13, 12, 32), "k": 32, "groups": 32, "strides": (2, 2), "dilation": (2, 1),
        "padding": (1, 0, 3, 1), "zero_point": -90, "residual": "uint8",
    },
    "channel multiplier": {"shape": (6, 6, 4), "k": 8, "groups": 4},
    "grouped": {"shape": (6, 6, 24), "k": 36, "groups": 3, "residual": "int8"},
    "grouped by blocks": {"shape": (4, 5, 6), "k": 51, "groups": 3, "residual": "uint8"},
    "grouped full": {"shape": (6, 8, 64), "k": 64, "groups": 2, "residual": "int8"},
    "multiplier": {"multiplier": True, "zero_point": 3, "fraction": 4, "residual": "uint8"},
    "residual": {"residual": "int8", "fraction": 3},
    "raw": {"raw": True, "shape": (3, 3, 16), "k": 32},
    "mixed types": {"dtype": "uint8", "out_dtype": "int8", "residual": "uint8", "zero_point": 9},
    "pointwise unsigned": {
        "shape": (7, 7, 64), "k": 64, "kernel": (1, 1), "padding": (0,) * 4, "dtype": "uint8",
    },
    "pointwise, rows of no whole tiles": {
        "shape": (14, 14, 192), "k": 64, "kernel": (1, 1), "padding": (0,) * 4, "dtype": "uint8",
    },
    "whole rows between zeros": {"shape": (7, 7, 64), "k": 64, "dtype": "uint8"},
    "zeros at some sides": {
        "shape": (9, 10, 6), "k": 20, "kernel": (2, 5), "padding": (2, 3, 2, 1), "dilation": (3, 2),
        "strides": (2, 2), "dtype": "uint8",
    },
    "nothing but zeros around": {"shape": (1, 1, 8), "k": 32, "dtype": "uint8"},
    "unpadded unsigned": {"shape": (9, 9, 16), "k": 32, "padding": (0,) * 4, "dtype": "uint8"},
    "by borders": {
        "multiplier": True, "residual": "int8", "rounding": by_borders(16, first=-7),
        "limits": (-6, 7), "zero_point": 3,
    },
    "by a row of borders": {
        "shape": (5, 7, 5), "k": 17, "out_dtype": "uint8", "rounding": by_borders(1),
        "limits": (0, 15),
    },
    "to the floor": {"multiplier": True, "residual": "int8", "rounding": FLOOR},
    "tall": {"shape": (64, 3, 16), "k": 16},
    "deep": {"shape": (7, 7, 128), "k": 256},
    "of 4 bits": {"shape": (5, 7, 13), "k": 24, "weight_bits": 4, "zero_point": 6},
    "factors beyond 4 bits": {
        "shape": (6, 7, 20), "k": 32, "products": 8, "weight_bits": 3, "dtype": "uint8",
        "raw": True,
    },
    "depthwise of 4 bits": {
        "shape": (9, 9, 32), "k": 32, "groups": 32, "dtype": "uint8", "weight_bits": 4,
        "zero_point": 11,
    },
}  # fmt: skip
