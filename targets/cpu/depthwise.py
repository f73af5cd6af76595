"""Depthwise convolutions, rows of the window joined in words.

A dot product wants the factors of one sum side by side; in an image, those of a depthwise sum are
rows and columns apart. So a row of the output is staged first: what its window has in one column,
all rows of it, in a word of 32 bits per channel. The window then goes over these words by columns,
and each of them is used by as many pixels as the window is wide.
"""

from __future__ import annotations

import itertools

import numpy as np
from tvm import s_tir, te, tirx

from targets.cpu.cuts import Cut, CutSpace
from targets.cpu.elements import placeholder
from targets.cpu.geometry import divisors, product_of, stored_weight
from targets.cpu.host import CpuFeatures
from targets.cpu.intrinsics import DotProduct
from targets.cpu.kernel import Kernel
from targets.cpu.padding import inside
from targets.cpu.requantize import Epilogue, Expr
from targets.layers import Conv2d, Weights

TASK_MACS = 125_000  # a quarter of other convolutions', since each takes longer


def joins_rows(layer: Conv2d, host: CpuFeatures) -> bool:
    """Whether a layer is one for these kernels: whole vectors, and columns used more than once."""
    if not layer.depthwise or not isinstance(layer.right, Weights):
        return False
    _, rows, columns, _ = layer.weight_shape
    whole = layer.output.shape[2] % host.instructions.lanes == 0
    reused = layer.output.shape[1] > 1 and layer.strides[1] < columns and layer.dilation[1] == 1
    product = product_of(layer, host)[0]
    # words of two rows cost more to make than they save
    return whole and rows > 1 and reused and product is not None and product.depth > 2


def depthwise_cuts(layer: Conv2d, host: CpuFeatures) -> CutSpace:
    """Any parts of rows and of pixels, as many as registers hold."""
    height, width, _ = layer.output.shape
    pixels = [d for d in divisors(width) if d <= host.instructions.registers]
    tasks = max(1, min(2 * host.cores, layer.macs // TASK_MACS))
    rows = max(d for d in divisors(height) if d == 1 or height // d >= tasks)
    cuts = tuple(Cut(*each) for each in itertools.product(divisors(height), pixels))
    return CutSpace(Cut(rows, max(pixels)), cuts)


def build_depthwise(layer: Conv2d, host: CpuFeatures, cut: Cut | None = None) -> Kernel:
    """The scheduled kernel and its packed constants."""
    product, raised = product_of(layer, host)
    assert product is not None
    assert isinstance(layer.right, Weights)
    lanes, depth = product.lanes, product.depth
    channels, rows, columns, _ = layer.weight_shape
    blocks, words = channels // lanes, -(-rows // depth)

    stored = stored_weight(layer.right)[..., 0]
    bias = layer.bias.astype(np.int64) - raised * stored.sum(axis=(1, 2), dtype=np.int64)
    epilogue = Epilogue.of(layer, bias.astype(np.int32), lambda c: c.reshape(blocks, lanes))
    padded = np.pad(stored, ((0, 0), (0, words * depth - rows), (0, 0)))
    packed = padded.reshape(blocks, lanes, words, depth, columns).transpose(0, 2, 4, 1, 3)
    packed = np.ascontiguousarray(packed)

    n = tirx.Var("n", "int64")
    inputs = [placeholder(n, value, f"input{i}") for i, value in enumerate(layer.inputs)]
    weight = te.placeholder(packed.shape, str(packed.dtype), name="weight")
    constants = [
        te.placeholder(array.shape, "int32", name=f"constant{i}")
        for i, array in enumerate(epilogue.constants)
    ]
    stage = _stage(layer, product, raised, inputs[0], words)
    height, width, _ = layer.output.shape
    word = te.reduce_axis((0, words), name="r")
    column = te.reduce_axis((0, columns), name="s")

    def summed(b: Expr, y: Expr, p: Expr, block: Expr, lane: Expr) -> Expr:
        pixel = p * layer.strides[1] + column
        weights = [weight[block, word, column, lane, place] for place in range(depth)]
        found = product.products(stage[b, y, block, pixel, word, lane], weights)
        return te.sum(found, axis=[word, column])

    sums = te.compute((n, height, width, blocks, lanes), summed, name="sums")

    def code(b: Expr, y: Expr, p: Expr, channel: Expr) -> Expr:
        block = (channel // lanes, channel % lanes)
        residual = inputs[1][b, y, p, channel] if len(inputs) > 1 else None
        of_channel = [constant[block] for constant in constants]
        return epilogue(sums[(b, y, p, *block)], of_channel, residual)

    out = te.compute((n, *layer.output.shape), code, name="out")
    tensors = [*inputs, weight, *constants, out]
    func = te.create_prim_func(tensors, index_dtype_override="int64")
    scheduled = _schedule(func, product, cut or depthwise_cuts(layer, host).rule)
    return Kernel(scheduled, (packed, *epilogue.constants))


def _stage(layer: Conv2d, product: DotProduct, raised: int, x: te.Tensor, words: int) -> te.Tensor:
    """Words of what sums read: int32[images, rows, blocks, columns, words, lanes]."""
    (sy, sx), (dy, _), (top, left, _, _) = layer.strides, layer.dilation, layer.padding
    h, w, channels = layer.input.shape
    height, width, _ = layer.output.shape
    rows, columns = layer.weight_shape[1:3]
    lanes, depth = product.lanes, product.depth
    pixels = (width - 1) * sx + columns
    zero = tirx.const(layer.input_zero_point + raised, product.left)

    def joined(b: Expr, y: Expr, block: Expr, p: Expr, word: Expr, lane: Expr) -> Expr:
        def element(row: int) -> Expr:
            # The last word's rows may be beyond the window, too.
            at = y * sy + (word * depth + row) * dy
            last = (height - 1) * sy + ((words - 1) * depth + row) * dy
            holds = inside(at, (row * dy, last), top, h) + inside(p, (0, pixels - 1), left, w)
            code = x[b, at - top, p - left, block * lanes + lane]
            if raised:
                code = code.astype("uint8") ^ tirx.const(128, "uint8")
            code = code.astype(product.left)
            return tirx.if_then_else(tirx.all(*holds), code, zero) if holds else code

        return product.join([element(row) for row in range(min(depth, rows))])

    shape = (x.shape[0], height, channels // lanes, pixels, words, lanes)
    return te.compute(shape, joined, name="stage")


def _schedule(func: tirx.PrimFunc, dot: DotProduct, cut: Cut) -> tirx.PrimFunc:
    """Rows of images to all cores; a row of a block of channels staged, then summed by tiles."""
    sch = s_tir.Schedule(func)
    out, sums, stage = (sch.get_sblock(name) for name in ("out", "sums", "stage"))
    b, y, p, channel = sch.get_loops(out)
    task, y = sch.split(y, [None, cut.rows])
    block, lane = sch.split(channel, [None, dot.lanes])
    tile, p = sch.split(p, [None, cut.pixels])
    sch.reorder(b, task, y, block, tile, p, lane)
    sch.parallel(sch.fuse(b, task))
    sch.unroll(p)
    sch.vectorize(lane)

    sch.compute_at(sums, tile, preserve_unit_loops=True)
    sch.compute_at(stage, block, preserve_unit_loops=True)
    *_, word, lane = sch.get_loops(stage)
    sch.unroll(word)
    sch.vectorize(lane)

    *_, p, _, lane, r, s = sch.get_loops(sums)
    sch.reorder(r, s, p, lane)
    init = sch.decompose_reduction(sums, r)
    sch.vectorize(sch.get_loops(init)[-1])
    sch.tensorize(lane, dot.joined)
    for loop in (r, s, p, sch.get_loops(init)[-3]):
        sch.unroll(loop)
    return sch.mod["main"].without_attr("global_symbol")
