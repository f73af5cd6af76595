"""Layers for the NPU's tests, and their meaning in plain NumPy, written apart from the product."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from relay_passes.forms.element_order import runs_of
from targets.layers import (
    Add,
    Constant,
    Conv2d,
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
from targets.product_factors import ProductFactors
from targets.rounding import FLOOR, HALF_UP, Rounding, RoundingMode
from targets.rows import derive_norm, exponentials, gain_step

FLAT = (0, 0, 0, 0)


def conv(
    shape,
    channels,
    kernel=(3, 3),
    *,
    strides=(1, 1),
    padding=(1, 1, 1, 1),
    dilation=(1, 1),
    groups=1,
    dtype="uint8",
    out="uint8",
    residual="",
    multiply=False,
    fraction=0,
    zero_point=0,
    bits=8,
    weight_bits=8,
    out_bits=8,
    rounding=HALF_UP,
    products=None,
    seed=0,
) -> Conv2d:
    """A convolution of random numbers; ``out`` "int32" leaves the sums as they are.

    ``products`` are (input channels, output channels) that have a factor of products in common.
    """
    rng = np.random.default_rng(seed)
    h, w, c = shape
    kh, kw = kernel
    oh = (h + padding[0] + padding[2] - (kh - 1) * dilation[0] - 1) // strides[0] + 1
    ow = (w + padding[1] + padding[3] - (kw - 1) * dilation[1] - 1) // strides[1] + 1
    most = (1 << (weight_bits - 1)) - 1
    weight = rng.integers(-most - (most < 127), most + 1, (channels, kh, kw, c // groups))
    weight = weight.astype(np.int8)
    output = Value("y", (oh, ow, channels), out, out_bits)
    requantize = None
    if out != "int32":
        low, high = code_limits(output)
        spread = rng.integers(0, 4, channels)
        narrow = (8 - weight_bits) + (8 - bits) - (8 - out_bits)
        shift = spread + (25 if multiply else 9) + fraction - min(narrow, 8)
        multiplier = rng.integers(1 << 15, 1 << 16, channels) if multiply else np.ones(channels)
        added = None
        if residual:
            left = spread + (8 if multiply else 1)
            value = Value("r", output.shape, residual, out_bits)
            added = Residual(value, 3, 40001 if multiply else 1, _i32(left))
        requantize = Requantize(
            fraction, _i32(multiplier), _i32(shift), zero_point, low, high, rounding, added
        )
    return Conv2d(
        name="layer",
        source="net.conv",
        kind="conv2d",
        input=Value("x", shape, dtype, bits),
        output=output,
        right=Weights(weight, weight_bits, products and _factors(rng, weight, groups, *products)),
        bias=_i32(rng.integers(-5000, 5000, channels)),
        strides=strides,
        padding=padding,
        dilation=dilation,
        groups=groups,
        input_zero_point=5 if bits == 8 else 1,
        requantize=requantize,
        max_sum=1 << 24,
    )


def _factors(rng, weight, groups, inputs, outputs):
    """Random factors of products, in sixteenths."""
    K, *_, C = weight.shape
    rows = groups * -(-(K // groups) // outputs)
    table = rng.choice([16, 8, 24, 12, 20, 14, 18, 15, 17], (rows, -(-C // inputs)))
    each = table.reshape(groups, -1, table.shape[1]).repeat(outputs, axis=1)[:, : K // groups]
    return ProductFactors(inputs, _i32(each.reshape(K, -1)))


def by_borders(rows: int, bits: int = 4, first: int = 0) -> Rounding:
    """Random borders of so many channels, or of all of them."""
    table = np.random.default_rng(rows).integers(1, 256, (rows, 2**bits - 1), np.uint8)
    return Rounding(RoundingMode.BORDER, tuple(row.tobytes() for row in table), first)


def ordered(shape: tuple[int, int, int], loops: tuple[int, ...], order: tuple[int, ...]) -> Move:
    """The elements of a tensor as ``loops``, transposed; each run reads a tensor of its own."""
    elements = np.arange(math.prod(shape)).reshape(loops).transpose(order)
    made = runs_of(elements)
    assert made is not None
    view, runs = made
    pieces = tuple(
        Piece(Value(f"x{n}", shape, "int8"), run.first, run.strides, run.size, run.at)
        for n, run in enumerate(runs)
    )
    output = Value("y", (1, 1, math.prod(shape)), "int8")
    return Move("layer", "net.permute", pieces, output, 0, view=view)


def matrices(
    tokens,
    others,
    channels,
    heads,
    pairing,
    *,
    dtype="int8",
    out="int8",
    bits=8,
    out_bits=8,
    residual="",
    multiply=False,
    fraction=0,
    rounding=HALF_UP,
    alike=True,
    windows=1,
    each=True,
) -> Conv2d:
    """A product of two tensors of tokens, head by head; ``others`` are the right one's tokens.

    ``channels`` are those of the right one: (windows, tokens, channels) x (windows, others,
    channels), or x (1, others, channels) unless ``each`` window has its own. In a plan all channels
    are requantized ``alike``.
    """
    rows = pairing is Pairing.ROWS
    left = channels if rows else heads * others
    made = heads * others if rows else channels
    layer = conv(
        *((windows, tokens, left), made, (1, 1)),
        padding=FLAT, dtype=dtype, out=out, bits=bits, out_bits=out_bits, residual=residual,
        multiply=multiply, fraction=fraction, rounding=rounding, seed=tokens,
    )  # fmt: skip
    right = (windows if each else 1, others, channels)
    factor = Factor(Value("f", right, "int8"), 0, pairing)
    layer = replace(layer, kind="matmul", right=factor, groups=heads, input_zero_point=0)
    q = layer.requantize
    if not alike or q is None:
        return layer
    if q.residual is not None:
        same = np.full_like(q.residual.shift, q.residual.shift[0])
        q = replace(q, residual=replace(q.residual, shift=same))
    multiplier, shift = (np.full_like(each, each[0]) for each in (q.multiplier, q.shift))
    q = replace(q, multiplier=multiplier, shift=shift)
    return replace(layer, bias=0 * layer.bias, requantize=q)


def elements(
    shape,
    right,
    dtypes=("uint8", "uint8", "uint8"),
    *,
    zeros=(7, 128),
    multiplier=1,
    fraction=0,
) -> Conv2d:
    """A tensor times another, which is as large or has 1 instead of an axis; left, right, out."""
    output = Value("y", shape, dtypes[2])
    ones = np.ones(shape[2], np.int32)
    shift = 8 + fraction + (15 if multiplier > 1 else 0)
    limits = code_limits(output)
    return Conv2d(
        name="layer",
        source="net.gate",
        kind="multiply",
        input=Value("x", shape, dtypes[0]),
        output=output,
        right=Factor(Value("f", right, dtypes[1]), zeros[1], Pairing.ELEMENTS),
        bias=0 * ones,
        strides=(1, 1),
        padding=FLAT,
        dilation=(1, 1),
        groups=shape[2],
        input_zero_point=zeros[0],
        requantize=Requantize(fraction, ones * multiplier, ones * shift, 3, *limits, HALF_UP),
        max_sum=1 << 16,
    )


def code_limits(value: Value) -> tuple[int, int]:
    """Lowest and highest code of a tensor."""
    if value.dtype == "uint8":
        return 0, (1 << value.bits) - 1
    return -(1 << (value.bits - 1)), (1 << (value.bits - 1)) - 1


def _i32(values) -> np.ndarray:
    return np.asarray(values).astype(np.int32)


def softmax(
    shape, heads=1, *, step=0.05, dtype="int8", out="uint8", multiplier=1, rounding=HALF_UP
) -> Softmax:
    """Softmax of codes that are ``step`` apart; shares come in units of about 2^-8."""
    shift = 22 if multiplier == 1 else 37
    ends = Requantize(
        0, _i32([multiplier]), _i32([shift]), 0, *code_limits(Value("y", shape, out)), rounding
    )
    values = Value("x", shape, dtype), Value("y", shape, out)
    return Softmax("layer", "net.softmax", *values, heads, exponentials(step), ends)


def norm(
    shape,
    *,
    step=0.05,
    epsilon=1e-5,
    dtype="int8",
    out="int8",
    multiplier=1,
    zero_point=0,
    rounding=HALF_UP,
    centred=True,
    input_zero_point=0,
    seed=0,
) -> Norm:
    """A norm with random factors and summands."""
    rng = np.random.default_rng(seed)
    gamma, beta = rng.normal(1, 0.5, shape[2]), rng.normal(0, 0.5, shape[2])
    unit = gain_step(gamma, beta)
    scale = derive_norm(
        gamma, beta, epsilon, step, unit, centred=centred, zero_point=input_zero_point
    )
    # a code counts 2^-5, or 2^16 / multiplier times that
    shift = round(-5 - np.log2(unit)) + scale.fraction + (0 if multiplier == 1 else 16)
    low, high = code_limits(Value("y", shape, out))
    ends = Requantize(0, _i32([multiplier]), _i32([shift]), zero_point, low, high, rounding)
    values = Value("x", shape, dtype), Value("y", shape, out)
    return Norm("layer", "net.norm", *values, scale, ends)


LAYERS: dict[str, Layer] = {
    "square": conv((8, 8, 32), 32),
    "signed_odd_channels": conv((9, 7, 17), 5, zero_point=3, dtype="int8", out="int8"),
    "stem_7x7_of_3_channels": conv((20, 20, 3), 18, (7, 7), strides=(2, 2), padding=(3, 3, 3, 3)),
    "depthwise": conv((10, 10, 20), 20, groups=20),
    "depthwise_strided_5x5": conv(
        (11, 13, 33), 33, (5, 5), groups=33, strides=(2, 1), padding=(2, 0, 1, 2)
    ),
    "grouped": conv((8, 8, 12), 40, groups=2),
    "grouped_one_tile_each": conv((6, 5, 15), 9, groups=3, out="int8"),
    "weights_in_blocks": conv((14, 14, 256), 320),
    "weights_of_4_bits": conv((8, 8, 40), 24, weight_bits=4),
    "weights_of_2_bits": conv((8, 8, 40), 24, weight_bits=2, out="int8"),
    "depthwise_of_4_bits": conv((10, 10, 20), 20, groups=20, weight_bits=4),
    "residual": conv((8, 8, 16), 20, residual="uint8"),
    "residual_with_multipliers": conv((8, 8, 16), 20, residual="int8", multiply=True),
    "residual_with_fraction": conv((8, 8, 16), 20, residual="uint8", fraction=2, dtype="int8"),
    "to_the_floor": conv((8, 8, 16), 20, residual="int8", multiply=True, rounding=FLOOR),
    "by_borders": conv(
        (8, 8, 16), 20, residual="int8", multiply=True, bits=4, out_bits=4, rounding=by_borders(20)
    ),
    "by_a_row_of_borders": conv(
        (6, 6, 16), 40, weight_bits=2, out="int8", out_bits=2, rounding=by_borders(1, 2, first=-2)
    ),
    "groups_by_a_row_of_borders": conv(
        (6, 5, 12), 60, groups=3, out_bits=4, residual="uint8", rounding=by_borders(1)
    ),
    "blocks_by_a_row_of_borders": conv(
        (14, 14, 256), 328, out_bits=4, multiply=True, rounding=by_borders(1)
    ),
    "depthwise_by_borders": conv(
        (6, 6, 20), 20, groups=20, out_bits=4, zero_point=3, rounding=by_borders(20)
    ),
    "pointwise_strided": conv((15, 15, 40), 24, (1, 1), strides=(2, 2), padding=FLAT),
    "dense_sums": conv((1, 1, 100), 10, (1, 1), padding=FLAT, out="int32"),
    "column_tiles_in_k_blocks": conv((1, 12, 64), 32, (1, 1), padding=FLAT),
    "dense_in_k_blocks": conv((1, 1, 30000), 40, (1, 1), padding=FLAT),
    "dilated_asymmetric": conv(
        (16, 16, 5), 100, strides=(1, 2), padding=(2, 1, 0, 3), dilation=(2, 3)
    ),
    "sums": conv((6, 6, 8), 20, out="int32"),
    "one_row_wide": conv((1, 700, 3), 4, (1, 5), padding=(0, 2, 0, 2)),
    "kernel_as_large_as_image": conv(
        (8, 8, 64), 64, (8, 8), groups=64, padding=FLAT, multiply=True
    ),
    "wide_border": conv((5, 5, 600), 7, (5, 5), padding=(2, 2, 2, 2)),
    "tall_border": conv((4, 4, 3), 4, (35, 1), padding=(17, 0, 17, 0)),
    "scaled_alike_by_all": conv((8, 8, 64), 20, products=(16, 20)),
    "scaled_by_column_tile": conv((7, 6, 70), 40, products=(32, 16), weight_bits=4),
    "scaled_by_output": conv((5, 5, 24), 20, products=(8, 1), dtype="int8", weight_bits=2),
    "scaled_in_one_group": conv((9, 9, 3), 20, (5, 5), padding=(2, 2, 2, 2), products=(3, 1)),
    "scaled_in_groups": conv((6, 6, 24), 20, groups=2, products=(5, 10), out="int8"),
    "scaled_with_a_residual": conv(
        (6, 6, 32), 32, products=(16, 16), residual="uint8", multiply=True, fraction=2
    ),
    "scaled_in_k_blocks": conv((1, 1, 9000), 40, (1, 1), padding=FLAT, products=(3000, 16)),
    "scaled_in_pieces": conv((4, 4, 900), 20, products=(900, 1), out="int32"),
    "scaled_sums": conv((1, 1, 100), 10, (1, 1), padding=FLAT, out="int32", products=(16, 10)),
    "add": Add(
        "layer",
        "net.add",
        Operand(Value("x", (9, 7, 5), "uint8"), 3, 1, 2),
        Operand(Value("r", (9, 7, 5), "int8"), -4, 40001, 3),
        Value("y", (9, 7, 5), "uint8"),
        shift=17,
        zero_point=1,
        low=0,
        high=255,
        rounding=HALF_UP,
    ),
    "lut": Lut(
        "layer",
        "net.silu",
        Value("x", (9, 7, 5), "int8"),
        Value("y", (9, 7, 5), "uint8"),
        bytes((7 * i + 3) % 256 for i in range(256)),
    ),
    "max_pool": MaxPool2d(
        "layer",
        "net.pool",
        Value("x", (12, 12, 20), "uint8"),
        Value("y", (6, 6, 20), "uint8"),
        (2, 2),
        (2, 2),
        FLAT,
    ),
    "max_pool_signed_overlapping": MaxPool2d(
        "layer",
        "net.pool",
        Value("x", (9, 7, 5), "int8"),
        Value("y", (5, 3, 5), "int8"),
        (3, 3),
        (2, 3),
        (1, 1, 1, 1),
    ),
    "max_pool_dilated": MaxPool2d(
        "layer",
        "net.pool",
        Value("x", (11, 12, 3), "int8"),
        Value("y", (7, 4, 3), "int8"),
        (3, 2),
        (1, 3),
        FLAT,
        (2, 2),
    ),
    "concat_slice_and_fill": Move(
        "layer",
        "net.cat",
        (
            Piece.box(Value("x", (9, 7, 5), "uint8"), (0, 1, 0), (2, 2, 1), (5, 3, 5), (1, 0, 2)),
            Piece.box(Value("r", (6, 4, 2), "uint8"), (0, 0, 0), (1, 1, 1), (6, 4, 2), (0, 0, 0)),
        ),
        Value("y", (6, 4, 9), "uint8"),
        fill=7,
    ),
    "windows": ordered((12, 8, 5), (3, 4, 2, 4, 5), (0, 2, 1, 3, 4)),
    "patches": ordered((8, 6, 5), (4, 2, 3, 2, 5), (1, 3, 0, 2, 4)),
    "patches_in_place": ordered((8, 6, 5), (2, 2, 4, 3, 5), (2, 0, 3, 1, 4)),
    "heads_in_front": ordered((1, 37, 24), (37, 3, 8), (1, 0, 2)),
    "rows_as_columns": ordered((1, 37, 24), (37, 24), (1, 0)),
    "rows_as_columns_by_heads": ordered((5, 30, 24), (5, 30, 3, 8), (0, 2, 3, 1)),
    "long_rows_as_columns": ordered((1, 1500, 270), (1500, 270), (1, 0)),
    "rows_of_heads": matrices(9, 13, 24, 3, Pairing.ROWS),
    "rows_wider_than_the_array": matrices(
        5, 70, 130, 2, Pairing.ROWS, dtype="uint8", out="uint8", multiply=True, alike=False
    ),
    "rows_in_blocks": matrices(3, 3000, 20, 1, Pairing.ROWS, fraction=1),
    "rows_of_one": matrices(6, 1, 8, 4, Pairing.ROWS, rounding=FLOOR),
    "rows_by_a_row_of_borders": matrices(
        9, 26, 24, 2, Pairing.ROWS, out_bits=4, rounding=by_borders(1, first=-8)
    ),
    "columns_of_heads": matrices(9, 13, 24, 3, Pairing.COLUMNS, dtype="uint8"),
    "columns_wider_than_the_array": matrices(
        5, 70, 130, 2, Pairing.COLUMNS, residual="int8", multiply=True, alike=False
    ),
    "columns_with_a_residual": matrices(5, 30, 70, 2, Pairing.COLUMNS, residual="int8"),
    "rows_of_many_tokens": matrices(2, 600, 24, 2, Pairing.ROWS, multiply=True),
    "columns_of_4_bits": matrices(6, 18, 32, 1, Pairing.COLUMNS, dtype="uint8", bits=4),
    "columns_in_k_blocks": matrices(2, 5000, 40, 1, Pairing.COLUMNS),
    "columns_that_lie_far_apart": matrices(1, 2100, 64, 1, Pairing.COLUMNS),
    "columns_of_large_windows": matrices(
        12, 2500, 20, 2, Pairing.COLUMNS, windows=3, dtype="uint8"
    ),
    "rows_of_windows": matrices(9, 9, 24, 3, Pairing.ROWS, windows=5),
    "rows_of_wide_windows": matrices(
        7, 40, 36, 2, Pairing.ROWS, windows=4, alike=False, residual="uint8"
    ),
    "columns_of_windows": matrices(9, 9, 24, 3, Pairing.COLUMNS, dtype="uint8", windows=5),
    "columns_of_windows_in_k_blocks": matrices(2, 5000, 20, 1, Pairing.COLUMNS, windows=3),
    "rows_that_meet_the_same": matrices(6, 9, 24, 3, Pairing.ROWS, windows=4, each=False),
    "depthwise_of_heads": matrices(7, 1, 6, 6, Pairing.ROWS),
    "sums_of_matrices": matrices(4, 20, 40, 2, Pairing.ROWS, out="int32"),
    "equal_shapes": elements((3, 5, 40), (3, 5, 40), multiplier=40001, fraction=2),
    "gates_of_channels": elements((6, 5, 20), (1, 1, 20), ("int8", "uint8", "int8"), zeros=(-3, 0)),
    "gates_of_pixels": elements((6, 5, 20), (6, 5, 1), ("uint8", "int8", "uint8"), zeros=(0, -9)),
    "gates_of_columns": elements((6, 5, 20), (1, 5, 1)),
    "gates_of_rows_and_channels": elements((6, 5, 20), (6, 1, 20)),
    "one_gate": elements((6, 5, 20), (1, 1, 1)),
    "softmax": softmax((1, 17, 17)),
    "softmax_of_heads": softmax((1, 9, 27), 3, dtype="uint8", multiplier=40001),
    "softmax_to_the_floor": softmax((5, 3, 40), 4, step=0.7, out="int8", rounding=FLOOR),
    "norm": norm((1, 17, 48)),
    "norm_of_odd_channels": norm((4, 3, 33), dtype="uint8", out="uint8", zero_point=121),
    "norm_to_the_floor": norm((1, 6, 20), multiplier=40001, zero_point=-3, rounding=FLOOR),
    "norm_in_four_parts": norm((1, 5, 2804), dtype="uint8", multiplier=40001),
    "norm_of_one_channel": norm((3, 3, 1), epsilon=0.1),
    "norm_without_the_mean": norm((1, 17, 48), centred=False),
    "norm_without_the_mean_of_shifted_codes": norm(
        (4, 3, 33), dtype="uint8", centred=False, input_zero_point=255
    ),
    "norm_without_the_mean_of_signed_codes": norm(
        (2, 5, 64), centred=False, input_zero_point=-128, out="uint8", zero_point=100
    ),
}


def random_inputs(layer: Layer, seed: int = 0) -> list[np.ndarray]:
    """Codes over the whole range, one array per input, with the extremes among them."""
    rng = np.random.default_rng(seed)
    arrays = []
    for value in layer.inputs:
        low, high = code_limits(value)
        codes = rng.integers(low, high + 1, value.shape).astype(value.dtype)
        edges = [low, high, 0, (low + high) // 2]
        codes.flat[: min(4, codes.size)] = edges[: min(4, codes.size)]
        arrays.append(codes)
    return arrays


def meaning(layer: Layer, inputs: list[np.ndarray]) -> np.ndarray:
    """What the layer computes, in int64."""
    return _MEANINGS[type(layer)](layer, [x.astype(np.int64) for x in inputs])


def _rounded(t, shift, rounding):
    shift = np.asarray(shift, np.int64)
    half = (np.int64(1) << shift) >> 1
    return (t + {HALF_UP: half, FLOOR: 0}[rounding]) >> shift


def _conv(layer: Conv2d, inputs):
    if isinstance(layer.right, Factor):
        return _requantized(layer, _products(layer, *inputs[:2]), inputs[2:])
    x = inputs[0]
    top, left, bottom, right = layer.padding
    x = np.pad(x, ((top, bottom), (left, right), (0, 0)), constant_values=layer.input_zero_point)
    oh, ow, k = layer.output.shape
    _, kh, kw, c = layer.weight_shape
    per_group = k // layer.groups
    acc = np.zeros((oh, ow, k), np.int64) + layer.bias
    for ky in range(kh):
        for kx in range(kw):
            rows = np.arange(oh) * layer.strides[0] + ky * layer.dilation[0]
            columns = np.arange(ow) * layer.strides[1] + kx * layer.dilation[1]
            window = x[rows][:, columns]
            for g in range(layer.groups):
                outputs = slice(g * per_group, (g + 1) * per_group)
                weight = layer.right.codes[outputs, ky, kx].astype(np.int64)
                if (scaled := layer.right.factors) is not None:
                    weight *= scaled.factors[outputs][:, np.arange(c) // scaled.channels]
                acc[..., outputs] += window[..., g * c : (g + 1) * c] @ weight.T
    return _requantized(layer, acc, inputs[1:])


def _products(layer: Conv2d, x, r):
    x, r = x - layer.input_zero_point, r - layer.right.zero_point
    if layer.right.pairing is Pairing.ELEMENTS:
        return x * r + layer.bias
    r = np.broadcast_to(r, (len(x), *r.shape[1:]))
    heads = (tokens.reshape(*tokens.shape[:2], layer.groups, -1) for tokens in (x, r))
    pairs = "wtgc,wugc->wtgu" if layer.right.pairing is Pairing.ROWS else "wtgu,wugc->wtgc"
    return np.einsum(pairs, *heads).reshape(layer.output.shape) + layer.bias


def _requantized(layer: Conv2d, acc, residual):
    q = layer.requantize
    if q is None:
        return acc.astype(np.int32)
    t = (acc << q.fraction) * q.multiplier
    if q.residual is not None:
        r = q.residual
        t = t + (((residual[0] - r.zero_point) * r.multiplier) << r.shift.astype(np.int64))
    return _codes(t, q).astype(layer.output.dtype)


def _codes(t, q):
    if q.rounding.borders:
        return q.low + (t[..., None] >= q.thresholds).sum(-1)
    return np.clip(_rounded(t, q.shift, q.rounding) + q.zero_point, q.low, q.high)


def _add(layer: Add, inputs):
    a, b = (
        ((x - o.zero_point) * o.multiplier) << o.shift
        for x, o in zip(inputs, (layer.a, layer.b), strict=True)
    )
    code = _rounded(a + b, layer.shift, layer.rounding) + layer.zero_point
    return np.clip(code, layer.low, layer.high).astype(layer.output.dtype)


def _lut(layer: Lut, inputs):
    table = np.frombuffer(layer.table, np.uint8).view(layer.output.dtype)
    return table[inputs[0] & 255]


def _pool(layer: MaxPool2d, inputs):
    lowest = 0 if layer.output.dtype == "uint8" else -128
    top, left, bottom, right = layer.padding
    x = np.pad(inputs[0], ((top, bottom), (left, right), (0, 0)), constant_values=lowest)
    oh, ow, _ = layer.output.shape
    windows = []
    for ky in range(layer.kernel[0]):
        for kx in range(layer.kernel[1]):
            rows = np.arange(oh) * layer.strides[0] + ky * layer.dilation[0]
            columns = np.arange(ow) * layer.strides[1] + kx * layer.dilation[1]
            windows.append(x[rows][:, columns])
    return np.stack(windows).max(0).astype(layer.output.dtype)


def _move(layer: Move, inputs):
    if layer.reshape:
        return inputs[0].reshape(layer.output.shape)
    out = np.full(layer.view or layer.output.shape, layer.fill, layer.output.dtype)
    for piece, x in zip(layer.pieces, inputs, strict=True):
        axes = zip(piece.strides, piece.size, strict=True)
        steps = np.meshgrid(*(stride * np.arange(count) for stride, count in axes), indexing="ij")
        written = tuple(slice(a, a + n) for a, n in zip(piece.at, piece.size, strict=True))
        out[written] = x.reshape(-1)[piece.offset + sum(steps)]
    return out.reshape(layer.output.shape)


def _constant(layer: Constant, inputs):
    return layer.codes


def _softmax(layer: Softmax, inputs):
    h, w, c = layer.input.shape
    x = inputs[0].reshape(h, w, layer.heads, c // layer.heads)
    counts = layer.table.astype(np.int64)[x.max(-1, keepdims=True) - x]
    return _shared_ends(layer, _quotients(counts, counts.sum(-1, keepdims=True), 30))


def _norm(layer: Norm, inputs):
    scale = layer.scale
    x = inputs[0] - (0 if scale.centred else scale.zero_point)
    count = x.shape[-1]
    total = x.sum(-1, keepdims=True) * scale.centred
    variance = count * (x * x).sum(-1, keepdims=True) - total**2
    root = np.vectorize(math.isqrt)((variance << (2 * scale.lift)) + scale.epsilon)
    places = scale.lift + scale.fraction
    normed = _quotients(count * x - total, root, places, half=True)
    return _shared_ends(layer, normed * scale.gain + scale.bias)


def _quotients(numbers, divisor, places, *, half=False):
    """``numbers * 2^places / divisor`` by a reciprocal of 16 bits."""
    bits = np.vectorize(lambda d: int(d).bit_length())(divisor)
    shift = 15 + bits - places
    product = numbers * (((1 << (15 + bits)) - 1) // divisor)
    return (product + ((1 << shift) // 2 if half else 0)) >> shift


def _shared_ends(layer, sums):
    q = layer.requantize
    t = (sums.reshape(layer.output.shape) << q.fraction) * q.multiplier
    code = _rounded(t, q.shift, q.rounding) + q.zero_point
    return np.clip(code, q.low, q.high).astype(layer.output.dtype)


_MEANINGS = {
    Conv2d: _conv,
    Add: _add,
    Lut: _lut,
    MaxPool2d: _pool,
    Move: _move,
    Constant: _constant,
    Softmax: _softmax,
    Norm: _norm,
}
