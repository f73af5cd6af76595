"""Which GEMMs or DWCs a convolution is made of: whole tiles, and those at the edges.

What a tile has no weights for is zero in memory and adds nothing. The fields say so all the same,
since lanes and columns without work are not counted as work.
"""

from __future__ import annotations

from dataclasses import dataclass

from targets.npu.convolution.geometry import ConvGeometry
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
    """

    name: str
    last_k: bool | None
    tail: bool | None
    fields: ProductFields


def product_variants(g: ConvGeometry, k0: int, fraction: int) -> list[Variant]:
    """The variants of a layer whose reduction is cut into blocks of ``k0`` tiles."""
    k_blocks = ceil_div(g.reduction[2], k0)
    rest = g.reduction[2] - (k_blocks - 1) * k0
    kind = "dwconv" if g.depthwise else "gemm"
    lasts = [None] if k_blocks == 1 else [False, True]
    tails = [None] if g.tail == g.columns or g.tiles_per_group == 1 else [False, True]
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
