"""Model file -> FloatModel: recognise, rewrite, fold batch norms, prove it is the same function.

The proof is by running: the captured graph against the exported program, and two images together
against each alone, because a batch size baked in by the exporter would not show otherwise: what is
made for one size fails at one of these two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from targets.causes import in_words
from targets.errors import InputError, TvmqError, UnsupportedError
from tvmq.capture.canonicalize import CanonicalProgram, WrittenIsland, canonicalize
from tvmq.capture.crop_convolutions import crop_convolutions
from tvmq.capture.fold_batch_norm import fold_batch_norm
from tvmq.capture.load_model import load_model
from tvmq.capture.write_ends import WrittenEnds
from tvmq.float_model import (
    BatchNormStats,
    FloatEnds,
    FloatModel,
    Origin,
    TensorSpec,
    fingerprint_of,
)
from tvmq.noise import noise_like

__all__ = ["BatchNormStats", "FloatModel", "Origin", "TensorSpec", "capture", "capture_program"]

# Relative to the largest output; float32 sums in another order differ by about 1e-6 per layer.
_TOLERANCE = 1e-3


def capture(
    path: str | Path,
    *,
    model_factory: str | None = None,
    trust_pickle: bool = False,
    input_shapes: str | None = None,
    float_islands: bool = False,
) -> FloatModel:
    """Read a trained network from a file.

    Args:
        path: ExportedProgram archive, pickled module or state dict.
        model_factory: ``package.module:factory`` that makes the network of a state dict.
        trust_pickle: unpickle freely, which runs code of the file.
        input_shapes: ``x:1x3x32x32``, for modules and state dicts.
        float_islands: let operators that can't be expressed run in float in the network's middle.

    Raises:
        InputError: if the file or a flag is wrong.
        UnsupportedError: if the network has operators that can't be expressed; lists all.
    """
    loaded = load_model(
        path, model_factory=model_factory, trust_pickle=trust_pickle, input_shapes=input_shapes
    )
    try:
        return capture_program(
            loaded.program, kind=loaded.kind, notes=loaded.notes, float_islands=float_islands
        )
    except TvmqError:
        raise
    except Exception as error:  # torch raises whatever a graph of unknown origin leads it to
        words = in_words(error, "Check that torch runs it with two images, and export it again.")
        raise UnsupportedError(f"{path}: this network can't be captured: {words}") from error


def capture_program(
    program: ExportedProgram,
    *,
    kind: str = "ExportedProgram",
    notes: tuple[str, ...] = (),
    float_islands: bool = False,
) -> FloatModel:
    """Rewrite an exported program in the canonical operators, with batch norms folded.

    Raises:
        InputError: a weight is NaN or infinite.
        UnsupportedError: as ``capture``; also if the result is not the same function.
    """
    canonical = canonicalize(program, float_islands=float_islands)
    _verify_finite(canonical)
    graph_module, origins = crop_convolutions(canonical.graph_module, canonical.origins)
    graph_module, batch_norms, origins = fold_batch_norm(graph_module, origins)
    # The target is the name the exporter gave; torch.fx renames nodes such as "input".
    inputs = tuple(
        TensorSpec(str(node.target), tuple(node.meta["val"].shape))
        for node in graph_module.graph.find_nodes(op="placeholder")
    )
    (output,) = graph_module.graph.find_nodes(op="output")
    outputs = tuple(
        TensorSpec(name, tuple(node.meta["val"].shape))
        for name, node in zip(canonical.output_names, output.args[0], strict=True)
    )
    with torch.no_grad():
        if canonical.ends is None and not canonical.islands:
            _verify_function(program, graph_module, inputs)
        elif canonical.ends is None:
            _verify_around(canonical.program, graph_module, inputs, canonical.islands)
        else:
            _verify_parts(canonical.program, graph_module, canonical.ends, canonical.islands)
    return FloatModel(
        graph_module=graph_module,
        inputs=inputs,
        outputs=outputs,
        origins=origins,
        batch_norms=batch_norms,
        fingerprint=fingerprint_of(graph_module),
        kind=kind,
        notes=notes + canonical.notes,
        ends=None if canonical.ends is None else _float_ends(canonical.ends),
    )


def _float_ends(ends: WrittenEnds) -> FloatEnds:
    inputs = tuple(_spec_of(str(node.target), node.meta["val"]) for node in ends.inputs)
    results = zip(ends.output_names, ends.results, strict=True)
    outputs = tuple(_spec_of(name, node.meta["val"]) for name, node in results)
    return FloatEnds(ends.head, ends.tail, inputs, outputs)


def _verify_finite(canonical: CanonicalProgram) -> None:
    damaged = [
        f"{node.target} ({canonical.origins[next(iter(node.users)).name]})"
        for node in canonical.graph_module.graph.find_nodes(op="get_attr")
        if not getattr(canonical.graph_module, str(node.target)).isfinite().all()
    ]
    if damaged:
        raise InputError(
            f"NaN or infinite values in {', '.join(damaged)}; did the training diverge? "
            "Export a network whose weights are finite"
        )


def _verify_function(
    program: ExportedProgram, graph_module: GraphModule, inputs: tuple[TensorSpec, ...]
) -> None:
    """The graph computes what the program does, and of each image alone what it does of several."""
    batch = inputs[0].shape[0]
    samples = noise_like(inputs, max(batch, 2))
    outputs = graph_module(*samples)
    expected = _run_exported(program, [sample[:batch] for sample in samples])
    for index, (want, got) in enumerate(zip(expected, outputs, strict=True)):
        if not _close(want.float(), got[:batch]):
            raise UnsupportedError(
                f"output {index} of the captured graph differs from the exported program by "
                f"{_difference(want.float(), got[:batch])}. Report this network: it is a fault of "
                "tvmq."
            )
    _verify_images_alone(
        graph_module, samples, outputs, [f"output {i}" for i in range(len(outputs))]
    )


def _verify_around(
    program: ExportedProgram,
    graph_module: GraphModule,
    inputs: tuple[TensorSpec, ...],
    islands: Sequence[WrittenIsland],
) -> None:
    """As ``_verify_function``, of a network with float islands, as ``_verify_parts``."""
    batch = inputs[0].shape[0]
    samples = noise_like(inputs, max(batch, 2))
    kept: dict[Node, torch.Tensor] = {}
    given = [sample[:batch] for sample in samples]
    expected = _run_exported(program, given, _of_islands(islands), kept)
    around = _Around(graph_module, islands, kept)
    names = [f"output {i}" for i in range(len(expected))]
    _compare(names, expected, around.run(*given))
    around.verify_islands()
    _verify_images_alone(graph_module, samples, graph_module(*samples), names)


def _verify_parts(
    program: ExportedProgram,
    graph_module: GraphModule,
    ends: WrittenEnds,
    islands: Sequence[WrittenIsland],
) -> None:
    """As ``_verify_function``, of a network with float ends: part by part.

    What a tail chooses, as an argmax does, may be another thing for sums that differ by a rounding;
    so it is given the program's own.
    """
    inputs = tuple(_spec_of(node.name, node.meta["val"]) for node in ends.inputs)
    batch = inputs[0].shape[0]
    samples = noise_like(inputs, max(batch, 2))
    kept: dict[Node, torch.Tensor] = {}
    wanted = [*ends.read, *ends.passing, *ends.sources]
    expected = _run_exported(
        program, [sample[:batch] for sample in samples], [*wanted, *_of_islands(islands)], kept
    )
    given = ends.head.graph_module(*samples)
    read, passing = given[: len(ends.read)], given[len(ends.read) :]
    around = _Around(graph_module, islands, kept)
    between = around.run(*(tensor[:batch] for tensor in read))
    own = [kept[node] for node in (*ends.sources, *ends.passing)]
    names = {node: f"'{node.name}'" for node in wanted}
    outputs = [f"output {name}" for name in ends.output_names]
    _compare([names[n] for n in wanted], [kept[n] for n in wanted], [*given, *between])
    _compare(outputs, expected, ends.tail.graph_module(*own))
    around.verify_islands()
    of_head = [names[node] for node in (*ends.read, *ends.passing)]
    _verify_images_alone(ends.head.graph_module, samples, given, of_head)
    between = graph_module(*read)
    results = ends.tail.graph_module(*between, *passing)
    _verify_images_alone(graph_module, read, between, [names[node] for node in ends.sources])
    _verify_images_alone(ends.tail.graph_module, [*between, *passing], results, outputs)


def _compare(
    names: Sequence[str], expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor]
) -> None:
    """Raise where a part of the captured network makes something else than the program."""
    for which, want, got in zip(names, expected, found, strict=True):
        made = got[: len(want)].float()
        if not _close(want.float(), made):
            raise UnsupportedError(
                f"{which} of the captured graph differs from the exported program by "
                f"{_difference(want.float(), made)}. Export it with a dynamic batch "
                "on axis 0; if it is, report this network: it is a fault of tvmq."
            )


def _of_islands(islands: Sequence[WrittenIsland]) -> list[Node]:
    return [node for island in islands for node in (*island.read, *island.made)]


class _Around(Interpreter):  # type: ignore[misc]  # torch has no types for mypy
    """Runs a graph whose islands give what the program's own operators gave."""

    def __init__(
        self,
        graph_module: GraphModule,
        islands: Sequence[WrittenIsland],
        kept: Mapping[Node, torch.Tensor],
    ) -> None:
        super().__init__(graph_module)
        self.islands, self.kept = islands, kept
        self.made = {
            result.name: (kept[node], island)
            for island in islands
            for node, result in zip(island.made, island.results, strict=True)
        }

    def run_node(self, n: Node) -> Any:
        if n.name not in self.made:
            return super().run_node(n)
        result, island = self.made[n.name]
        read, _ = self.fetch_args_kwargs_from_env(n)
        _compare(_names(island.read), [self.kept[node] for node in island.read], read)
        return result

    def verify_islands(self) -> None:
        """Each computes what the program does, and of each image alone what of several."""
        for island in self.islands:
            read, wanted = ([self.kept[n] for n in nodes] for nodes in (island.read, island.made))
            made = island.end.graph_module(*read)
            _compare(_names(island.made), wanted, made)
            if len(read[0]) > 1:
                _verify_images_alone(island.end.graph_module, read, made, _names(island.made))


def _names(nodes: Sequence[Node]) -> list[str]:
    return [f"'{node.name}'" for node in nodes]


def _verify_images_alone(
    graph_module: GraphModule,
    samples: Sequence[torch.Tensor],
    outputs: Sequence[torch.Tensor],
    names: Sequence[str],
) -> None:
    """Each image alone gives what it gives beside another."""
    singles = [graph_module(*[sample[i : i + 1] for sample in samples]) for i in range(2)]
    for index, together in enumerate(outputs):
        alone = torch.cat([single[index] for single in singles])
        if not _close(alone.float(), together[:2].float()):
            raise UnsupportedError(
                f"{names[index]} of an image depends on the other images of its batch. Only "
                "networks that treat every image alone can be compiled: export it without what "
                "mixes them."
            )


def _run_exported(
    program: ExportedProgram,
    samples: list[torch.Tensor],
    wanted: Sequence[Node] = (),
    kept: dict[Node, torch.Tensor] | None = None,
) -> list[torch.Tensor]:
    """Outputs of a program, without the module that torch would make around a copy.

    In float32, as the captured graph is: half precision rounds more than that could differ by.
    ``kept`` is filled with the values of the nodes that are ``wanted``.
    """
    left = iter(samples)
    arguments = []
    for spec in program.graph_signature.input_specs:
        if isinstance(spec.arg, ConstantArgument):  # a number, which the graph holds already
            value = spec.arg.value
        elif spec.kind is InputKind.USER_INPUT:
            value = next(left).clone()  # which it may write to
        elif spec.target in program.state_dict:
            value = program.state_dict[spec.target]
        else:
            value = program.constants[spec.target]
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            value = value.float()
        arguments.append(value)
    interpreter = _InFloat32(program.graph_module, wanted)
    outputs: list[torch.Tensor] = interpreter.run(*arguments)
    if kept is not None:
        kept.update(interpreter.kept)
    return outputs


class _InFloat32(Interpreter):  # type: ignore[misc]  # torch.fx has no types for mypy
    """Runs a program whose tensors are float32; types of floats that it names become that."""

    def __init__(self, graph_module: GraphModule, wanted: Sequence[Node]) -> None:
        super().__init__(graph_module)
        self.wanted = {node.name: node for node in wanted}
        self.kept: dict[Node, torch.Tensor] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n.name in self.wanted:
            self.kept[self.wanted[n.name]] = result
        return result

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = pytree.tree_map(_as_float32, (args, kwargs))
        return super().call_function(target, args, kwargs)


def _as_float32(value: object) -> object:
    lower_or_higher = isinstance(value, torch.dtype) and value.is_floating_point
    return torch.float32 if lower_or_higher else value


def _spec_of(name: str, value: torch.Tensor) -> TensorSpec:
    """Of a tensor of a program: a free batch is taken as 2, all floats as float32."""
    batch, *sizes = value.shape
    dtype = "float32" if value.is_floating_point() else str(value.dtype).removeprefix("torch.")
    return TensorSpec(name, (batch if isinstance(batch, int) else 2, *map(int, sizes)), dtype)


def _difference(want: torch.Tensor, got: torch.Tensor) -> str:
    if want.shape != got.shape:
        return f"its shape, {list(got.shape)} for {list(want.shape)}"
    return f"{(want - got).abs().max():.3g}"


def _close(want: torch.Tensor, got: torch.Tensor) -> bool:
    if want.shape != got.shape:
        return False
    # Noise is no image: a logarithm or a root may be no number of it, in both alike.
    finite = want.isfinite() & got.isfinite()
    scale = float(want[finite].abs().max()) if finite.any() else 0.0
    close = (want - got).abs() <= _TOLERANCE * scale + 1e-6
    return bool((close | (want == got) | (want.isnan() & got.isnan())).all())
