"""Which GEMMs or DWCs a convolution is made of: whole tiles, and those at the edges.

What a tile has no weights for is zero in memory and adds nothing. The fields say so all the same,
since lanes and columns without work are not counted as work.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from targets.npu.convolution.geometry import ConvGeometry
from targets.npu.convolution.product_passes import ProductPasses
from targets.npu.kinds.cost import ceil_div
from targets.npu.schedule.meanings import ProductFields


@dataclass(frozen=True)
class Variant:
    """One kind of product.

    Attributes:
        name: of its block in the schedule.
        last_k: whether it is that of the last k block, or of the others; None if all are alike.
        tail: whether it is that of a group's last column tile, or of the others; None likewise.
        fields: of the intrinsic.
        last_piece: whether it is that of the last piece of input channels, or of the others;
            likewise.
        shift: which of the factors it has; None if there is but one.
    """

    name: str
    last_k: bool | None
    tail: bool | None
    fields: ProductFields
    last_piece: bool | None = None
    shift: int | None = None


def product_variants(g: ConvGeometry, k0: int, fraction: int) -> list[Variant]:
    """The variants of a layer whose reduction is cut into blocks of ``k0`` tiles."""
    if g.passes is not None:
        return _scaled_variants(g, g.passes, fraction)
    k_blocks = ceil_div(g.reduction[2], k0)
    rest = g.reduction[2] - (k_blocks - 1) * k0
    kind = "dwconv" if g.depthwise else "gemm"
    lasts = [None] if k_blocks == 1 else [False, True]
    tails = _tails(g)
    variants: list[Variant] = []
    for last in lasts:
        for tail in tails:
            fields = ProductFields(
                lanes=0 if g.depthwise else g.lanes,
                columns=g.columns,
                act_bits=g.act_bits,
                wgt_bits=g.wgt_bits,
                dtype=g.input.dtype,
                fraction=fraction,
                kvalid=g.lanes if g.depthwise or last is False else g.last_valid,
                nvalid=g.columns if tail is False else g.tail,
                tiles=k0 if last is False else rest,
            )
            variants.append(Variant(f"{kind}_{len(variants)}", last, tail, fields))
    return variants


def _tails(g: ConvGeometry) -> list[bool | None]:
    return [None] if g.tail == g.columns or g.tiles_per_group == 1 else [False, True]


def _scaled_variants(g: ConvGeometry, passes: ProductPasses, fraction: int) -> list[Variant]:
    """One for each factor, length of a piece and width of a column tile."""
    alone = len(passes.shifts) == 1 and (passes.table >= 0).all()
    assert g.factors is not None
    variants: list[Variant] = []
    for length, last in passes.lengths():
        for tail in _tails(g):
            for n, shifts in enumerate(passes.shifts):
                if not _occurs(g, passes, last, tail, n):
                    continue  # TVM would drop its block, and nothing could be tensorized
                tiles = ceil_div(length, passes.lanes)
                fields = ProductFields(
                    lanes=g.lanes,
                    columns=g.columns,
                    act_bits=g.act_bits,
                    wgt_bits=g.wgt_bits,
                    dtype=g.input.dtype,
                    fraction=fraction + g.factors.fraction,
                    kvalid=length - (tiles - 1) * passes.lanes,
                    nvalid=g.columns if tail is False else g.tail,
                    tiles=tiles,
                    alpha_a=shifts.a,
                    alpha_b=shifts.b,
                    alpha_sign=shifts.sign,
                )
                name, shift = f"gemm_{len(variants)}", None if alone else n
                variants.append(Variant(name, None, tail, fields, last, shift))
    return variants


def _occurs(
    g: ConvGeometry, passes: ProductPasses, last: bool | None, tail: bool | None, shift: int
) -> bool:
    """Whether a tile and pass of this kind have the factor."""
    tiles, numbers = np.nonzero(passes.table == shift)
    in_last = numbers >= (passes.pieces - 1) * passes.each
    in_tail = (tiles + 1) % g.tiles_per_group == 0
    fits = np.ones(len(tiles), bool)
    for wanted, found in ((last, in_last), (tail, in_tail)):
        fits &= found == wanted if wanted is not None else True
    return bool(fits.any())
