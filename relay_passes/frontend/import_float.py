"""A float graph of torch as a Relax function, by TVM's own importer.

What stays in float of a network is any operators of torch, and that importer knows some
three hundred; here are those that it lacks, or reads otherwise than torch means them. Whoever
imports compares the result with torch (``tvmq/float_ends.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.export import ExportedProgram
from torch.fx import Node
from tvm import IRModule, relax, topi
from tvm.relax.frontend.torch import from_exported_program

from relay_passes.relax_nodes import Expr
from targets.causes import first_line
from targets.errors import UnsupportedError

_Convert = Callable[[Node, Any], Expr]


def import_float(program: ExportedProgram, what: str = "what stays in float") -> IRModule:
    """Import a program whose weights are constants.

    Args:
        program: with a free batch on axis 0 of every input.
        what: it is, for messages: operators and their place.

    Returns:
        A module whose ``main`` takes tensors (N, ...) and returns a tuple of such.

    Raises:
        UnsupportedError: TVM has no operators for it; says which of torch's these are.
    """
    try:
        return from_exported_program(program, custom_convert_map=dict(_CONVERTERS))
    except Exception as error:  # whatever the importer of TVM asserts, or meets
        raise UnsupportedError(
            f"{what}: TVM can't compile it ({type(error).__name__}: {first_line(error)[:200]}). "
            "Write these operators otherwise, or leave them out of the exported network and "
            "compute them from its outputs."
        ) from error


def _reduced(reduce: Callable[..., Expr]) -> _Convert:
    def convert(node: Node, importer: Any) -> Expr:
        x, axes, keep = [*node.args, *[(), False][len(node.args) - 1 :]][:3]
        axes = [axes] if isinstance(axes, int) else list(axes)
        return importer.block_builder.emit(reduce(importer.env[x], axes or None, keep))

    return convert


def _select(node: Node, importer: Any) -> Expr:
    """One index of an axis, which torch may count from the end."""
    source, axis, index = node.args
    x = importer.env[source]
    if isinstance(index, int) and index < 0:
        size = source.meta["val"].shape[axis]
        index = index + (size if isinstance(size, int) else x.ty.shape[axis])
    taken = relax.op.take(x, relax.const(index, "int64"), axis)
    return importer.block_builder.emit(taken)


def _embedding(node: Node, importer: Any) -> Expr:
    """Rows of a table; NaN for a number that it doesn't have, where torch raises."""
    table, numbers = importer.env[node.args[0]], importer.env[node.args[1]]
    return importer.block_builder.emit(relax.op.take(table, numbers, axis=0, mode="nan"))


_METHODS = ("bilinear", "nearest", "bicubic")
_PADDINGS = ("zeros", "border", "reflection")


def _grid_sampler(node: Node, importer: Any) -> Expr:
    """Torch's coordinates are last; TVM's, whatever its operator says, behind the batch."""
    x, grid, method, padding, corners = node.args
    places = importer.block_builder.emit(relax.op.permute_dims(importer.env[grid], (0, 3, 1, 2)))
    return importer.block_builder.emit_te(
        topi.image.grid_sample,
        *(importer.env[x], places),
        method=_METHODS[method],
        padding_mode=_PADDINGS[padding],
        align_corners=corners,
    )


_CONVERTERS: dict[str, _Convert] = {
    "amax.default": _reduced(relax.op.max),
    "amin.default": _reduced(relax.op.min),
    "prod.dim_int": _reduced(relax.op.prod),
    "embedding.default": _embedding,
    "grid_sampler_2d.default": _grid_sampler,
    "select.int": _select,
}
