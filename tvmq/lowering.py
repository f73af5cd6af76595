"""The annotated network in integers; what passes refuse is said with the place in the source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch.fx import GraphModule
from tvm import IRModule

from relay_passes.float_islands import join_islands
from relay_passes.frontend.import_torch import import_torch
from relay_passes.pipeline import lower_to_integer
from targets.errors import TvmqError
from tvmq.float_islands import compilable_islands, islands_in
from tvmq.float_model import FloatModel


def lower(
    model: FloatModel,
    annotated: GraphModule,
    islands: Mapping[str, IRModule] | None = None,
    *,
    dump: Path | None = None,
) -> IRModule:
    """Lower an annotated network.

    Args:
        model: the float network, which knows where its nodes are from.
        annotated: of it, with ``fake_quantize``.
        islands: what runs in float in its middle, from ``compilable_islands``, which is asked where
            this is None.
        dump: folder for the module after each pass.

    Raises:
        TvmqError: a pass can't do it; begins with the place, if it is about a node.
    """
    try:
        integer = lower_to_integer(import_torch(annotated), dump=dump)
    except TvmqError as error:
        origin = model.origins.get(error.node)
        if origin is not None:
            error.args = (f"{origin}: {error}",)
        raise
    known = compilable_islands(model) if islands is None else islands
    return join_islands(integer, islands_in(annotated, known))
