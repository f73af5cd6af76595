"""Padding: where it is, and products with zeros of it left out of a scheduled convolution.

A row of the window that lies in the padding adds nothing to a row of sums. Where a tile is a whole
row of the image, a column of the window adds nothing to a pixel at its end, either. Of 7 x 7 pixels
and a window of 3 x 3 that is 18 % of all products.

    for r                               for r
        for s                               if row y * stride + r is no padding
            for c                               for s, unrolled
                for p                               for c
                    sums[p] += ...                      for p
                                                            if column p * stride + s is none
                                                                sums[p] += ...
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import s_tir, tirx

from targets.cpu.geometry import share_inside
from targets.cpu.requantize import Expr
from targets.layers import Conv2d

WORTH_A_BRANCH = 0.06
"""Share of a depthwise window's rows in padding from which on asking for it takes less time."""


def without_padding(func: tirx.PrimFunc, layer: Conv2d, *, whole_rows: bool) -> tirx.PrimFunc:
    """A convolution that doesn't multiply padding; the same sums where padding is zeros.

    Args:
        func: scheduled; its block ``sums_update`` has iterators y, p, r and s, each a loop or, of
            y and p, an expression of loops around those of r and s.
        layer: what it computes.
        whole_rows: tiles have all pixels of a row, and p is a loop that is unrolled.
    """
    found: list[s_tir.SBlockRealize] = []
    _changed(func.body, lambda loop: loop, found.append)
    (update,) = (each for each in found if each.block.name_hint.startswith("sums_update"))
    names = [var.var.name.removesuffix("_o") for var in update.block.iter_vars]
    y, p, r, s = (update.iter_values[names.index(f"v_{name}")] for name in "yprs")
    (h, w, _), (top, left, _, _) = layer.input.shape, layer.padding
    (sy, sx), (dy, dx) = layer.strides, layer.dilation
    (height, width, _), (_, R, S, _) = layer.output.shape, layer.weight_shape
    rows = inside(y * sy + r * dy, (0, (height - 1) * sy + (R - 1) * dy), top, h)
    if layer.depthwise and share_inside(layer, axis=0) > 1 - WORTH_A_BRANCH:
        rows = []
    columns = inside(p * sx + s * dx, (0, (width - 1) * sx + (S - 1) * dx), left, w)
    if not whole_rows:
        columns = []

    def change(loop: tirx.For) -> tirx.For:
        if rows and loop.loop_var.same_as(r):
            return _rebuilt(loop, tirx.IfThenElse(tirx.all(*rows), loop.body, None))
        if columns and loop.loop_var.same_as(p):
            return _rebuilt(loop, tirx.IfThenElse(tirx.all(*columns), loop.body, None))
        if columns and loop.loop_var.same_as(s):
            return _rebuilt(loop, loop.body, tirx.ForKind.UNROLLED)
        return loop

    return func.with_body(_changed(func.body, change))


def inside(at: Expr, reach: tuple[int, int], before: int, size: int) -> list[Expr]:
    """Conditions by which a row or column of the padded image is one of the image.

    Only those that can fail: the others would cost time in the innermost loops.

    Args:
        at: its place.
        reach: the first place that ``at`` can be, and the last.
        before: padding in front.
        size: of the image.
    """
    first, last = reach
    found = [at >= before] if first < before else []
    return [*found, at < before + size] if last >= before + size else found


def _changed(
    stmt: tirx.Stmt,
    change: Callable[[tirx.For], tirx.For],
    see: Callable[[s_tir.SBlockRealize], None] = lambda _: None,
) -> tirx.Stmt:
    """A statement with its loops changed, the inner ones first; shown all blocks."""

    def of(inner: tirx.Stmt) -> tirx.Stmt:
        return _changed(inner, change, see)

    if isinstance(stmt, tirx.SeqStmt):
        return tirx.SeqStmt([of(each) for each in stmt.seq])
    if isinstance(stmt, tirx.For):
        return change(_rebuilt(stmt, of(stmt.body)))
    if isinstance(stmt, s_tir.SBlockRealize):
        see(stmt)
        old = stmt.block
        block = s_tir.SBlock(
            *(old.iter_vars, old.reads, old.writes, old.name_hint, of(old.body), old.init),
            *(old.alloc_buffers, old.match_buffers, old.annotations),
        )
        return s_tir.SBlockRealize(stmt.iter_values, stmt.predicate, block)
    return stmt


def _rebuilt(loop: tirx.For, body: tirx.Stmt, kind: tirx.ForKind | None = None) -> tirx.For:
    return tirx.For(
        *(loop.loop_var, loop.min, loop.extent, loop.kind if kind is None else kind, body),
        *(loop.thread_binding, loop.annotations),
    )
