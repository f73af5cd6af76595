"""Random layers, networks and machines, all of them legal, for the NPU's tests."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from npu_layers import (
    FLAT,
    by_borders,
    code_limits,
    conv,
    elements,
    matrices,
    meaning,
    norm,
    softmax,
)

from targets.layers import (
    Add,
    Constant,
    Conv2d,
    Layer,
    Lut,
    MaxPool2d,
    Move,
    Norm,
    Operand,
    Pairing,
    Piece,
    Softmax,
    Value,
)
from targets.npu.constraints import refusal
from targets.npu.machine.spec import NpuSpec, load_spec
from targets.rounding import FLOOR, HALF_UP, MAX_BORDER_BITS

MOST_LAYERS = 8
MOST_NUMBERS = 6000
"""Of a tensor: the NumPy simulator computes them one instruction after the other."""


@dataclass(frozen=True)
class Network:
    """Layers in order, what they read, and what is read of them."""

    layers: list[Layer]
    input: Value
    outputs: list[Value]

    def meaning(self, x: np.ndarray) -> np.ndarray:
        """The bytes of all outputs for an input, layer by layer in plain NumPy."""
        known = {self.input.name: x}
        for layer in self.layers:
            operands = [known[v.name].reshape(v.shape) for v in layer.inputs]
            output = layer.output
            known[output.name] = meaning(layer, operands).astype(output.dtype)
        arrays = [np.ascontiguousarray(known[v.name]).reshape(-1) for v in self.outputs]
        return np.concatenate([array.view(np.uint8) for array in arrays])


def pick(rng: np.random.Generator, *options):
    """One of the options."""
    return options[int(rng.integers(len(options)))]


def chance(rng: np.random.Generator, probability: float) -> bool:
    """True with that probability."""
    return bool(rng.random() < probability)


def machine(rng: np.random.Generator) -> NpuSpec:
    """Any array, memories from a few hundred bytes on, any latencies and queues."""
    content = load_spec(pick(rng, "e256", "m2048")).model_dump()
    array, memories = content["array"], content["sram"]
    precisions = pick(rng, [8], [8, 4], [8, 4, 2], [8, 2])
    per_byte = 8 // min(precisions)
    rows, columns = pick(rng, 2, 3, 5, 8, 16, 24, 64, 128), pick(rng, 2, 3, 7, 8, 16, 32, 64)
    array |= {
        "rows": -(-rows // per_byte) * per_byte,
        "cols": -(-columns // per_byte) * per_byte,
        "kind": pick(rng, "systolic", "tree"),
        "weight_buffers": pick(rng, 1, 2),
        "weight_rows_per_cycle": pick(rng, 1, 2, 7, 200),
        "min_rows": pick(rng, 1, 4, 9),
        "precisions": precisions,
        "dw": pick(rng, "stream", "window"),
    }
    row = 4 * array["cols"]
    memories["acc"]["bytes"] = min(pick(rng, 2, 3, 16, 57, 256, 1000), (1 << 20) // row) * row
    pixels = 2 * (array["rows"] + array["cols"] + max(array["rows"], array["cols"]))
    memories["act"]["bytes"] = pick(rng, pixels + int(rng.integers(20000)), 65536, 1 << 20)
    tiles = 2 * array["rows"] * array["cols"]
    memories["wgt"]["bytes"] = pick(rng, tiles + int(rng.integers(100000)), 1 << 20)
    memories["par"]["bytes"] = int(rng.integers(1600, 9000))
    content["dma"] |= {
        "bytes_per_cycle": pick(rng, 1, 3, 8, 100),
        "burst": pick(rng, 1, 7, 64, 256),
        "outstanding": pick(rng, 1, 2, 8),
        "arbiter": pick(rng, "fcfs", "private"),
    }
    content["issue"] |= {"queue_depth": pick(rng, 1, 2, 32), "token_depth": pick(rng, 1, 2, 8)}
    return NpuSpec.model_validate(content)


def network(rng: np.random.Generator, spec: NpuSpec) -> Network:
    """Layers that read each other's tensors in any order; what the machine refuses is left out."""
    makers = (_conv, _conv, _residual, _conv, _pool, _move, _add, _lut)
    return _network(rng, spec, _image(rng), makers)


def rows(rng: np.random.Generator, spec: NpuSpec) -> Network:
    """Likewise, every other layer a softmax or a layer norm."""
    makers = (_conv, _conv, _residual, _elements, _pool, _move, _add, _lut, *4 * (_softmax, _norm))
    return _network(rng, spec, _image(rng), makers)


def _image(rng: np.random.Generator) -> Value:
    shape = tuple(int(n) for n in rng.integers(1, (16, 16, 20)))
    return Value("input", shape, pick(rng, "uint8", "int8"), pick(rng, 8, 8, 8, 4, 2))


def products(rng: np.random.Generator, spec: NpuSpec) -> Network:
    """Likewise of layers that multiply tensors by each other: attention and gates."""
    windows, tokens = pick(rng, 1, 1, 3), int(rng.integers(1, 20))
    shape = (windows, tokens, int(rng.integers(1, 5)) * pick(rng, 1, 6, 12))
    first = Value("input", shape, "int8", pick(rng, 8, 8, 4))
    makers = (_matrices, _matrices, _dense, _elements, _matrices, _constant, _move, _add)
    return _network(rng, spec, first, makers)


def everything(rng: np.random.Generator, spec: NpuSpec) -> Network:
    """Likewise of layers of all kinds, on images or on tokens."""
    windows, tokens = pick(rng, 1, 1, 3), int(rng.integers(1, 20))
    deep = (windows, tokens, int(rng.integers(1, 5)) * pick(rng, 1, 6, 12))
    first = pick(rng, _image(rng), Value("input", deep, "int8", pick(rng, 8, 8, 4)))
    makers = (
        _conv, _residual, _dense, _matrices, _matrices, _elements, _constant, _pool, _move, _boxes,
        _boxes, _add, _lut, _softmax, _norm,
    )  # fmt: skip
    return _network(rng, spec, first, makers)


def _network(rng: np.random.Generator, spec: NpuSpec, first: Value, makers) -> Network:
    values = [first]
    layers: list[Layer] = []
    while len(layers) < MOST_LAYERS:
        value = values[-1] if chance(rng, 0.75) else pick(rng, *values)
        make = pick(rng, *makers)
        layer = make(rng, f"layer_{len(layers)}", value, values)
        if layer is None or refusal(layer, spec):
            if chance(rng, 0.1):
                break  # so that a machine that refuses nearly all ends too
            continue
        layers.append(layer)
        values.append(layer.output)
    read = {value.name for layer in layers for value in layer.inputs}
    outputs = [v for v in values[1:] if v.name not in read or chance(rng, 0.1)]
    return Network(layers, values[0], outputs)


def _conv(rng, name, value, values) -> Conv2d | None:
    h, w, c = value.shape
    kernel = pick(rng, (1, 1), tuple(int(n) for n in rng.integers(1, 5, 2)))
    dilation = tuple(int(n) for n in rng.integers(1, 4, 2)) if chance(rng, 0.3) else (1, 1)
    strides = tuple(int(n) for n in rng.integers(1, 4, 2)) if chance(rng, 0.4) else (1, 1)
    padding = tuple(int(n) for n in rng.integers(0, 4, 4)) if chance(rng, 0.8) else FLAT
    groups = pick(rng, 1, 1, c, pick(rng, *[d for d in range(1, c + 1) if c % d == 0]))
    channels = c if groups == c else groups * int(rng.integers(1, max(2, 40 // groups)))
    if h + padding[0] + padding[2] <= (kernel[0] - 1) * dilation[0]:
        return None
    if w + padding[1] + padding[3] <= (kernel[1] - 1) * dilation[1]:
        return None
    return _random_conv(
        rng, name, value, channels, kernel,
        strides=strides, padding=padding, dilation=dilation, groups=groups,
        out_bits=pick(rng, value.bits, value.bits, 8, 4, 2),
    )  # fmt: skip


def _residual(rng, name, value, values) -> Conv2d | None:
    """A convolution whose padding makes its output as large as the tensor that it adds."""
    h, w, _ = value.shape
    added = pick(rng, *values)
    kernel = tuple(int(n) for n in rng.integers(1, 4, 2))
    more = (added.shape[0] - h + kernel[0] - 1, added.shape[1] - w + kernel[1] - 1)
    if not all(0 <= n <= 8 for n in more):
        return None
    top, left = (int(rng.integers(0, n + 1)) for n in more)
    layer = _random_conv(
        rng, name, value, added.shape[2], kernel,
        padding=(top, left, more[0] - top, more[1] - left),
        out_bits=pick(rng, added.bits, 8), residual=added.dtype, fraction=pick(rng, 0, 0, 2),
    )  # fmt: skip
    if layer is None:
        return None
    residual = replace(layer.requantize.residual, value=added)
    return replace(layer, requantize=replace(layer.requantize, residual=residual))


def _random_conv(rng, name, value, channels, kernel, **options) -> Conv2d | None:
    layer = conv(
        value.shape, channels, kernel,
        dtype=value.dtype, bits=value.bits, weight_bits=pick(rng, 8, 8, 4, 2),
        out=pick(rng, "uint8", "int8"), multiply=chance(rng, 0.3), zero_point=pick(rng, 0, 1),
        seed=int(rng.integers(1 << 30)), **options,
    )  # fmt: skip
    if np.prod(layer.output.shape) > MOST_NUMBERS:
        return None
    zero_point = pick(rng, 0, layer.input_zero_point)
    output = replace(layer.output, name=name)
    requantize = layer.requantize
    if output.bits <= MAX_BORDER_BITS and channels % 4 > 1:  # even numbers may be packed
        low, _ = code_limits(output)
        rounding = by_borders(channels if channels % 3 else 1, output.bits, low)
        requantize = replace(requantize, rounding=rounding)
    return replace(
        layer,
        name=name,
        input=value,
        output=output,
        input_zero_point=zero_point,
        requantize=requantize,
    )


def _dense(rng, name, value, values) -> Conv2d | None:
    channels = int(rng.integers(1, 5)) * pick(rng, 1, 6, 12)
    layer = _random_conv(rng, name, value, channels, (1, 1), padding=FLAT)
    if layer is None or chance(rng, 0.3):
        return layer
    output = replace(layer.output, dtype="int8")
    low, high = code_limits(output)
    return replace(layer, output=output, requantize=replace(layer.requantize, low=low, high=high))


def _matrices(rng, name, value, values) -> Conv2d | None:
    windows, tokens, channels = value.shape
    pairs = []
    for right in values:
        _, others, deep = right.shape
        if right.shape[0] not in (1, value.shape[0]) or right.dtype != "int8":
            continue
        if deep == channels:
            heads = pick(rng, *[n for n in (1, 2, 3, 6) if deep % n == 0])
            pairs.append((right, heads, Pairing.ROWS))
        if channels % others == 0 and deep % (channels // others) == 0:
            pairs.append((right, channels // others, Pairing.COLUMNS))
    if not pairs:
        return None
    right, heads, pairing = pick(rng, *pairs)
    layer = matrices(
        *(tokens, right.shape[1], right.shape[2], heads, pairing),
        dtype=value.dtype, out=pick(rng, "int8", "int8", "uint8"), bits=value.bits,
        multiply=chance(rng, 0.3), fraction=pick(rng, 0, 0, 2), alike=chance(rng, 0.7),
        windows=windows,
    )  # fmt: skip
    if np.prod(layer.output.shape) > MOST_NUMBERS:
        return None
    factor = replace(layer.right, value=right)
    output = replace(layer.output, name=name)
    return replace(layer, name=name, input=value, right=factor, output=output)


def _elements(rng, name, value, values) -> Conv2d | None:
    fitting = [
        v for v in values if all(b in (1, a) for a, b in zip(value.shape, v.shape, strict=True))
    ]
    right = pick(rng, *fitting)
    layer = elements(
        value.shape, right.shape, (value.dtype, right.dtype, pick(rng, "uint8", "int8")),
        zeros=(int(rng.integers(-9, 9)) if value.dtype == "int8" else 9, pick(rng, 0, 1)),
        multiplier=pick(rng, 1, 1, 40001), fraction=pick(rng, 0, 3),
    )  # fmt: skip
    output = replace(layer.output, name=name)
    factor = replace(layer.right, value=right)
    return replace(layer, name=name, input=value, right=factor, output=output)


def _constant(rng, name, value, values) -> Constant:
    shape = pick(rng, value.shape, (1, 1, value.shape[2]), (1, int(rng.integers(1, 9)), 12))
    dtype = pick(rng, "int8", "int8", "uint8")
    output = Value(name, shape, dtype)
    low, high = code_limits(output)
    return Constant(name, "", output, rng.integers(low, high + 1, shape).astype(dtype))


def _pool(rng, name, value, values) -> MaxPool2d | None:
    h, w, c = value.shape
    kernel = tuple(int(n) for n in rng.integers(1, 4, 2))
    dilation = pick(rng, (1, 1), (1, 1), (2, 1))
    strides = tuple(int(n) for n in rng.integers(1, 4, 2))
    pad = [int(rng.integers(0, kernel[i % 2] // 2 + 1)) for i in range(4)]
    padding = tuple(pad) if chance(rng, 0.6) else FLAT
    oh = (h + padding[0] + padding[2] - (kernel[0] - 1) * dilation[0] - 1) // strides[0] + 1
    ow = (w + padding[1] + padding[3] - (kernel[1] - 1) * dilation[1] - 1) // strides[1] + 1
    if min(oh, ow) < 1:
        return None
    output = Value(name, (oh, ow, c), value.dtype, value.bits)
    return MaxPool2d(name, "", value, output, kernel, strides, padding, dilation)


def _move(rng, name, value, values) -> Move:
    h, w, c = value.shape
    origin, ones = (0, 0, 0), (1, 1, 1)
    if chance(rng, 0.5):
        shape = pick(rng, (1, 1, h * w * c), (h * w, 1, c), (w, h, c), (1, h, w * c))
        whole = (Piece.box(value, origin, ones, value.shape, origin),)
        output = Value(name, shape, value.dtype, value.bits)
        return Move(name, "", whole, output, 0, reshape=True)
    size = tuple(int(rng.integers(1, n + 1)) for n in value.shape)
    start = tuple(int(rng.integers(0, n - s + 1)) for n, s in zip(value.shape, size, strict=True))
    at = tuple(int(n) for n in rng.integers(0, 3, 3))
    shape = tuple(a + s + int(rng.integers(0, 2)) for a, s in zip(at, size, strict=True))
    low, high = code_limits(value)
    output = Value(name, shape, value.dtype, value.bits)
    fill = int(rng.integers(low, high + 1))
    return Move(name, "", (Piece.box(value, start, ones, size, at),), output, fill)


def _boxes(rng, name, value, values) -> Move:
    """Strided boxes of several tensors, side by side along an axis, and a border around them."""
    alike = [v for v in values if (v.dtype, v.bits) == (value.dtype, value.bits)]
    axis, pieces, shape = int(rng.integers(3)), [], [0, 0, 0]
    low, high = code_limits(value)
    for source in (value, *(pick(rng, *alike) for _ in range(int(rng.integers(0, 3))))):
        step = tuple(pick(rng, 1, 1, 2, 3) for _ in range(3))
        start = tuple(int(rng.integers(0, n)) for n in source.shape)
        most = [-(-(n - s) // t) for n, s, t in zip(source.shape, start, step, strict=True)]
        size = tuple(pick(rng, n, int(rng.integers(1, n + 1))) for n in most)
        at = [int(rng.integers(0, 2)) for _ in range(3)]
        at[axis] += shape[axis]
        if np.prod(np.maximum(shape, np.add(at, size))) > MOST_NUMBERS:
            break
        pieces.append(Piece.box(source, start, step, size, tuple(at)))
        shape = [max(n, a + m) for n, a, m in zip(shape, at, size, strict=True)]
    output = Value(name, tuple(shape), value.dtype, value.bits)
    return Move(name, "", tuple(pieces), output, int(rng.integers(low, high + 1)))


def _add(rng, name, value, values) -> Add:
    other = pick(rng, *[v for v in values if v.shape == value.shape])
    output = Value(name, value.shape, pick(rng, "uint8", "int8"), pick(rng, value.bits, 8))
    first = Operand(value, int(rng.integers(0, 2)), 1, int(rng.integers(0, 4)))
    second = Operand(other, 1, pick(rng, 1, 40001), int(rng.integers(0, 3)))
    shift = int(rng.integers(0, 8))
    return Add(name, "", first, second, output, shift, 1, *code_limits(output), HALF_UP)


def _softmax(rng, name, value, values) -> Softmax:
    channels = value.shape[2]
    heads = pick(rng, 1, *[d for d in range(1, channels + 1) if channels % d == 0])
    layer = softmax(
        value.shape, heads, step=float(rng.uniform(0.01, 1)), **_row_options(rng, value)
    )
    return _placed(rng, layer, name, value)


def _norm(rng, name, value, values) -> Norm:
    layer = norm(
        value.shape,
        step=float(rng.uniform(0.01, 1)),
        epsilon=pick(rng, 1e-6, 1e-3, 1.0),
        zero_point=pick(rng, 0, 3),
        seed=int(rng.integers(1 << 30)),
        **_row_options(rng, value),
    )
    return _placed(rng, layer, name, value)


def _row_options(rng, value):
    return {
        "dtype": value.dtype,
        "out": pick(rng, "uint8", "int8"),
        "multiplier": pick(rng, 1, 40001),
        "rounding": pick(rng, HALF_UP, FLOOR),
    }


def _placed(rng, layer: Softmax | Norm, name, value) -> Softmax | Norm:
    fraction = pick(rng, 0, 0, 1)
    ends = replace(layer.requantize, fraction=fraction, shift=layer.requantize.shift + fraction)
    output = replace(layer.output, name=name)
    return replace(layer, name=name, input=value, output=output, requantize=ends)


def _lut(rng, name, value, values) -> Lut:
    output = Value(name, value.shape, pick(rng, "uint8", "int8"), 8)
    return Lut(name, "", value, output, rng.integers(0, 256, 256).astype(np.uint8).tobytes())
