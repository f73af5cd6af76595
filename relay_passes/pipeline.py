"""The pass pipeline, on one page: from the annotated graph in Relax to integers only.

Each pass says in its file what it needs and leaves. ``lower_to_integer`` runs them in this order,
verifies that the result is well formed, and can write ``NN-Name.py`` after each.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm import IRModule, relax

from relay_passes.passes.convert_to_nhwc import ConvertToNhwc
from relay_passes.passes.fold_activations import FoldActivations
from relay_passes.passes.fold_flatten import FoldFlatten
from relay_passes.passes.lower_add import LowerAdd
from relay_passes.passes.lower_convolution import LowerConvolution
from relay_passes.passes.lower_lookup import LowerLookup
from relay_passes.passes.lower_product import LowerProduct
from relay_passes.passes.lower_rows import LowerRows
from relay_passes.passes.name_values import NameValues
from relay_passes.passes.quantize_constants import QuantizeConstants
from relay_passes.passes.sink_dequantize import SinkDequantize
from relay_passes.passes.verify_integer import VerifyInteger
from targets.errors import TvmqError


@dataclass(frozen=True)
class Step:
    """One pass of the pipeline.

    Attributes:
        make: the pass's class; its name is that of the pass and of its dump.
        needs: steps that must have run before.
    """

    make: Any  # module_pass makes a class of it that mypy can't see
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Class name of the pass."""
        return str(getattr(self.make, "__name__", self.make))


_LOWERING = ("FoldActivations", "QuantizeConstants", "SinkDequantize", "ConvertToNhwc")

PIPELINE: tuple[Step, ...] = (
    Step(FoldActivations),
    Step(QuantizeConstants),
    Step(SinkDequantize),
    Step(ConvertToNhwc, needs=("SinkDequantize",)),
    Step(LowerConvolution, needs=_LOWERING),
    Step(FoldFlatten, needs=("LowerConvolution",)),
    Step(LowerAdd, needs=_LOWERING),
    Step(LowerProduct, needs=_LOWERING),
    Step(LowerRows, needs=_LOWERING),
    Step(LowerLookup, needs=_LOWERING),
    Step(
        NameValues,
        needs=("LowerConvolution", "LowerAdd", "LowerProduct", "LowerRows", "LowerLookup"),
    ),
    Step(VerifyInteger, needs=("NameValues",)),
)


def lower_to_integer(
    mod: IRModule,
    *,
    dump: Path | None = None,
    seconds: dict[str, float] | None = None,
) -> IRModule:
    """Run the pipeline.

    Args:
        mod: what ``import_torch`` gives; left as it was.
        dump: folder for one readable module per pass, ``00-Import.py`` first; made if missing.
        seconds: filled with the time of each pass, if given.

    Returns:
        The integer module, ``main`` from float32 (N, ...) to a tuple of float32 tensors.

    Raises:
        UnsupportedError: something can't be computed in integers; names the value and why.
        ArithmeticRangeError: a ratio of steps, a shift or a sum does not fit; names the layer.
        TvmqError: a pass left an ill-formed module; names the pass.
    """
    _dump(mod, dump, 0, "Import")
    done: set[str] = set()
    given = mod
    for index, step in enumerate(PIPELINE, start=1):
        missing = [need for need in step.needs if need not in done]
        if missing:
            raise TvmqError(f"{step.name}: must run after {', '.join(missing)}. Reorder PIPELINE.")
        began = time.perf_counter()
        mod = step.make()(mod)
        done.add(step.name)
        if seconds is not None:
            seconds[step.name] = time.perf_counter() - began
        _dump(mod, dump, index, step.name)
    if _fault(mod):
        raise _blamed(given)
    return mod


def _fault(mod: IRModule) -> str:
    """What is ill-formed about a module, or nothing; takes as long as a pass."""
    try:
        relax.analysis.well_formed(mod)
    except Exception as error:
        return str(error)
    return ""


def _blamed(mod: IRModule) -> TvmqError:
    """The error that names the first pass to leave an ill-formed module; runs them once more."""
    for step in PIPELINE:
        mod = step.make()(mod)
        if fault := _fault(mod):
            return TvmqError(
                f"{step.name}: left an ill-formed module: {fault}. Report this network: it is a "
                "fault of tvmq."
            )
    raise AssertionError("a pass gave two modules for one")


def _dump(mod: IRModule, folder: Path | None, index: int, name: str) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        text = mod.script(show_meta=False)
        (folder / f"{index:02d}-{name}.py").write_text(text, encoding="utf-8")
