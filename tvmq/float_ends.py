"""The float ends of a network, from torch to functions of the library.

Both are exported and imported by TVM. That importer is not ours, so what it makes is run on noise
beside torch before anything is built on it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tvm
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node
from tvm import IRModule, relax

from relay_passes.float_ends import join_ends
from relay_passes.frontend.import_float import import_float
from relay_passes.host_pipeline import host_pipeline
from targets.causes import first_line
from targets.cpu.host import host_target
from targets.errors import UnsupportedError
from tvmq.float_model import FloatEnd, FloatEnds, FloatModel, copy_of
from tvmq.noise import noise_like

IMAGES = 3
"""Images of an example: neither one, which an exporter takes for fixed, nor a common size."""

NAME = "name_in_plan"
"""Entry of a saved node's ``custom`` data."""

TOLERANCE = 1e-4
"""Of what TVM computes, relative to the largest number: other sums in another order."""

MOST_OTHERS = 0.01
"""Share of numbers that may differ by more: where two are equal but for rounding, one is chosen."""


@dataclass(frozen=True)
class CompilableEnds:
    """Both ends as Relax, each a module with a ``main``."""

    head: IRModule
    tail: IRModule

    def around(self, placed: IRModule) -> IRModule:
        """The whole network, of which ``placed`` is what is between."""
        return join_ends(placed, self.head, self.tail)


def compilable_ends(model: FloatModel) -> CompilableEnds | None:
    """The ends of a network in Relax; None if it has none.

    Raises:
        UnsupportedError: TVM has no operators for them, or others than torch.
    """
    if model.ends is None:
        return None
    inputs = model.ends.inputs
    made = model.ends.head.graph_module(*noise_like(inputs, IMAGES))
    read, passing = made[: len(model.inputs)], made[len(model.inputs) :]
    with torch.no_grad():
        between = model.graph_module(*read)
    head = imported(model.ends.head, noise_like(inputs, IMAGES), "in front of the first layer")
    tail = imported(model.ends.tail, [*between, *passing], "behind the last layer")
    return CompilableEnds(head, tail)


def whole_program(model: FloatModel) -> ExportedProgram:
    """The network, float ends included, as a program for any batch."""
    zeros = [
        torch.zeros((IMAGES, *spec.shape[1:]), dtype=getattr(torch, spec.dtype))
        for spec in model.network_inputs
    ]
    middle = copy_of(model.graph_module)
    for node in middle.graph.nodes:
        node.meta["custom"] = {NAME: node.name}
    with torch.fx.traceback.preserve_node_meta():
        return exported(whole_network(model, middle), zeros)


def name_in_plan(node: Node) -> str:
    """What a node of a saved network was called before it was exported, which numbers them anew.

    That of a float island has all nodes of the island, of which the last one makes its result; ""
    at the float ends.
    """
    return str(node.meta.get("custom", {}).get(NAME, ""))


def whole_network(model: FloatModel, between: torch.nn.Module) -> torch.nn.Module:
    """A network of whose quantized part ``between`` takes the place."""
    return between if model.ends is None else _Whole(model, model.ends, between)


def exported(module: torch.nn.Module, examples: Sequence[torch.Tensor]) -> ExportedProgram:
    """Export a graph whose inputs have a free batch on axis 0."""
    shapes = tuple({0: Dim("batch")} for _ in examples)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        if isinstance(module, _Whole):
            shapes = (shapes,)  # type: ignore[assignment]  # of the one parameter that takes all
        return torch.export.export(module, tuple(examples), dynamic_shapes=shapes, strict=False)


class _Whole(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """Head, what is quantized, tail."""

    def __init__(self, model: FloatModel, ends: FloatEnds, between: torch.nn.Module) -> None:
        super().__init__()
        self.head, self.between = ends.head.graph_module, between
        self.tail, self.count = ends.tail.graph_module, len(model.inputs)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        made = self.head(*inputs)
        between = self.between
        if isinstance(between, GraphModule):  # nodes that are traced have what is known of these
            between = torch.fx.Interpreter(between).run
        results: tuple[torch.Tensor, ...] = self.tail(
            *between(*made[: self.count]), *made[self.count :]
        )
        return results


def imported(end: FloatEnd, examples: Sequence[torch.Tensor], where: str) -> IRModule:
    """What stays in float somewhere in a network, as Relax.

    Args:
        end: what it computes.
        examples: of its inputs, IMAGES of each.
        where: in the network, in words.

    Raises:
        UnsupportedError: TVM has no operators for it, or others than torch.
    """
    what = f"{_operators(end)}, in float {where}"
    try:
        program = exported(end.graph_module, examples)
    except Exception as error:  # torch raises whatever it meets
        raise UnsupportedError(
            f"{what}: torch can't export it for any batch ({first_line(error)[:200]}). Export the "
            "network with a dynamic batch on axis 0, or without it."
        ) from error
    mod = import_float(program, what)
    try:
        executable = tvm.compile(mod, target=host_target(), relax_pipeline=host_pipeline())
    except Exception as error:  # TVM raises whatever it meets
        raise UnsupportedError(
            f"{what}: TVM can't compile it ({first_line(error)[:200]}). Write these operators "
            "otherwise, or leave them out of the exported network and compute them outside of it."
        ) from error
    machine: Any = relax.VirtualMachine(executable, tvm.cpu())
    # of equal numbers, such as a ReLU's zeros, either may sort another one first: try unequal ones
    if _differing(end, machine, examples) is not None:
        index = _differing(end, machine, _unequal(examples))
        if index is not None:
            raise UnsupportedError(
                f"{what}: TVM computes result {index} otherwise than torch. Leave these operators "
                "out of the exported network and compute them outside of it; and report it, it is "
                "a fault of TVM or tvmq."
            )
    return mod


@torch.no_grad()  # type: ignore[untyped-decorator]
def _differing(end: FloatEnd, machine: Any, examples: Sequence[torch.Tensor]) -> int | None:
    """The first result that TVM computes otherwise than torch."""
    expected = end.graph_module(*examples)
    found = machine["main"](*(tvm.runtime.tensor(example.numpy()) for example in examples))
    for index, (want, got) in enumerate(zip(expected, found, strict=True)):
        if not agrees(want.numpy(), got.numpy()):
            return index
    return None


def _unequal(examples: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The same with a little noise, where they are no integers."""
    generator = torch.Generator().manual_seed(0)
    return [
        x + x.abs().mean() * torch.rand(x.shape, generator=generator) / 100
        if x.is_floating_point()
        else x
        for x in examples
    ]


def agrees(want: np.ndarray[Any, Any], got: np.ndarray[Any, Any]) -> bool:
    """Whether two results are the same but for rounding, and what that decides."""
    if want.shape != got.shape or want.dtype != got.dtype:
        return False
    a, b = want.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(a)
    scale = float(np.abs(a[finite]).max(initial=0.0))
    with np.errstate(invalid="ignore"):
        close = np.abs(a - b) <= TOLERANCE * scale
    same = close | (a == b) | (np.isnan(a) & np.isnan(b))
    return bool(same.mean() >= 1 - MOST_OTHERS) if same.size else True


def _operators(end: FloatEnd) -> str:
    kinds = list(dict.fromkeys(operator.kind for operator in end.operators))
    place = f" ({end.operators[0].source})" if end.operators else ""
    return ", ".join(kinds[:8]) + (", ..." if len(kinds) > 8 else "") + place
