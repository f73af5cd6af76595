"""Rewrite an exported program into few ATen operators that run with any batch.

The exported graph is read node by node and written anew: constants are computed ahead, and every
operator goes through its rule in ``operator_rules``. Where there is mutation, or an operator
without a rule, torch.export traces the program again first, which removes both or names the
operator. Batch norm is left as ``aten.batch_norm``, for ``fold_batch_norm``. All operators that
have no rule, or whose rule refuses, are reported together, unless they can stay in float: at an end
of the network (``network_ends.py``), so that the canonical graph is of what lies between, or, where
that is wanted, on islands in its middle (``network_islands.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from relay_passes.frontend.pointwise import is_pointwise
from targets.errors import TvmqError, UnsupportedError
from targets.refusal import Refusal, listed
from tvmq.capture.canonical_graph import (
    BATCH_STAYS,
    CanonicalGraph,
    as_refusal,
    in_one_line,
    is_constant,
)
from tvmq.capture.constant_masks import MASK_RULES
from tvmq.capture.group_norm_rules import GROUP_NORM_RULES
from tvmq.capture.layout_rules import LAYOUT_RULES
from tvmq.capture.moved_batch import ALONG_LAST, MOVED_RULES, Moved, batch_aware
from tvmq.capture.network_ends import MOST_MACS, NetworkEnds, Program, ends_of
from tvmq.capture.network_islands import NetworkIsland, islands_of, may_be_read, schedule
from tvmq.capture.norm_rules import NORM_RULES
from tvmq.capture.one_dimension_rules import ONE_DIMENSION_RULES
from tvmq.capture.operator_rules import OPERATOR_RULES, pointwise
from tvmq.capture.operators_without_rule import refusal_of
from tvmq.capture.padding_rules import PADDING_RULES
from tvmq.capture.pooling_rules import POOLING_RULES
from tvmq.capture.program_nodes import (
    batch_size,
    has_images_of_floats,
    is_tensor_valued,
    named_arguments,
    operator_name,
    origin_of,
    size_of_one,
    stand_in,
    values_read_by,
)
from tvmq.capture.program_outputs import output_paths, refuse_constant, refuse_moved, unique
from tvmq.capture.resampling_rules import RESAMPLING_RULES
from tvmq.capture.rule_table import Rule
from tvmq.capture.selection_rules import SELECTION_RULES
from tvmq.capture.token_rules import TOKEN_RULES
from tvmq.capture.write_ends import (
    FloatWriter,
    WrittenEnds,
    is_batch_first,
    read_by,
    write_ends,
)
from tvmq.float_model import FloatEnd, FloatIsland, Origin

_PLAIN_RULES = (
    OPERATOR_RULES
    | POOLING_RULES
    | PADDING_RULES
    | LAYOUT_RULES
    | TOKEN_RULES
    | MASK_RULES
    | NORM_RULES
    | RESAMPLING_RULES
    | ONE_DIMENSION_RULES
    | SELECTION_RULES
    | GROUP_NORM_RULES
)
RULES = _PLAIN_RULES | {
    name: batch_aware(name, _PLAIN_RULES.get(name)) for name in (*MOVED_RULES, *ALONG_LAST)
}

_POINTWISE = batch_aware("", pointwise)
_BATCH_AWARE = (*(RULES[name] for name in (*MOVED_RULES, *ALONG_LAST, "getitem")), _POINTWISE)


@dataclass(frozen=True)
class WrittenIsland:
    """What runs in float in the middle of the canonical graph.

    Attributes:
        name: of the island.
        end: what it computes.
        read: nodes of the program that it reads.
        made: nodes of the program that are its results.
        results: what stands for these in the canonical graph.
    """

    name: str
    end: FloatEnd
    read: tuple[Node, ...]
    made: tuple[Node, ...]
    results: tuple[Node, ...]


@dataclass(frozen=True)
class CanonicalProgram:
    """A canonical graph with batch norms, its output names and origins by node name.

    ``program`` is what it was written from, ``ends`` what of that stays in float around it,
    ``islands`` what does within.
    """

    graph_module: GraphModule
    output_names: tuple[str, ...]
    origins: dict[str, Origin]
    notes: tuple[str, ...]
    program: ExportedProgram
    ends: WrittenEnds | None
    islands: tuple[WrittenIsland, ...]


def canonicalize(program: ExportedProgram, *, float_islands: bool = False) -> CanonicalProgram:
    """Write the program anew in the canonical operators.

    Args:
        program: exported in evaluation mode; the first axis of every input is the batch, which may
            be static or dynamic.
        float_islands: leave what can't be expressed in float in the network's middle, too.

    Raises:
        UnsupportedError: lists every operator that can't be expressed and can't stay in float, with
            module and line.
    """
    _refuse_training_mode(program)
    facts = Program(program)
    if not all(_is_plain(node, facts) for node in program.graph.nodes):
        program = _decomposed(program)
        facts = Program(program)
    refused: dict[Node, tuple[str, Refusal]] = {}
    along: set[Node] = set()
    while True:
        reasons = {node: why for node, (_, why) in refused.items()}
        ends, middle = ends_of(facts, reasons, islands=float_islands)
        islands: tuple[NetworkIsland, ...] = ()
        left = set(middle)
        if middle and float_islands:
            islands, left = islands_of(facts, middle, along, ends)
        if left:
            raise _refusal_of_all(
                {
                    node: refused.get(node, (f"{node.target} ({origin_of(node)})", why))
                    for node, why in middle.items()
                    if node in left
                },
                facts,
                may_be_islands=not float_islands and _islands_help(program),
            )
        writer = _Writer(program, facts, ends, islands, reasons)
        writer.write_operators()
        if not writer.refused and not writer.along:
            return writer.finished()
        if writer.refused.keys() <= refused.keys() and writer.along <= along:
            raise _refusal_of_all(writer.refused or refused, facts)
        refused |= writer.refused  # what lies behind these has been looked at with a stand-in
        along |= writer.along


def _islands_help(program: ExportedProgram) -> bool:
    """Whether the network can be written with islands; only trying shows all that they read."""
    try:
        canonicalize(program, float_islands=True)
    except TvmqError:
        return False
    return True


def _refusal_of_all(
    found: dict[Node, tuple[str, Refusal]], facts: Program, *, may_be_islands: bool = False
) -> UnsupportedError:
    share = facts.share_behind(found)
    place = (
        f" {share:.0%} of the network's multiply-accumulates are behind that; what has less than "
        f"{MOST_MACS:.0%} behind it may stay in float."
        if share >= MOST_MACS
        else ""
    )
    if may_be_islands:
        place += (
            " Or let them run in float on the host, between what is quantized: --float-islands."
        )
    refused = [why for node, why in found.items() if not _only_feeds(node, found)]
    count = len(refused)
    return UnsupportedError(
        f"{count} operator{'s' if count > 1 else ''} can't be quantized: {listed(refused)}{place}"
    )


def _only_feeds(node: Node, refused: dict[Node, tuple[str, Refusal]]) -> bool:
    """Whether it makes a tensor for refused operators alone, as an LSTM's first state is."""
    makes = not any(map(is_tensor_valued, node.all_input_nodes))
    return makes and all(user in refused for user in node.users)


def _decomposed(program: ExportedProgram) -> ExportedProgram:
    try:
        return program.run_decompositions(_composites(program))
    except Exception as error:  # torch raises whatever it meets in a program that isn't coherent
        raise UnsupportedError(
            f"torch can't trace the network again ({in_one_line(error)}). Export it anew, with "
            f"torch {torch.__version__}."
        ) from error


_OF_BITS = frozenset({"__and__", "__or__", "__xor__"})
"""Python's operators, as masks are put together; the others with such names aren't for users."""

_COMPOSED = frozenset(
    {"einsum", "tensordot", "inner", "movedim", "moveaxis", "swapaxes", "swapdims", "ravel"}
    | {"hstack", "vstack", "dstack", "column_stack", "fliplr", "flipud"}
    | {"atleast_1d", "atleast_2d", "atleast_3d"}
)
"""Operators that torch composes of such as have rules."""


def _composites(program: ExportedProgram) -> dict[Any, Any]:
    """How torch composes those of the program."""
    known = torch.export.default_decompositions()
    targets = {node.target for node in program.graph.nodes if node.op == "call_function"}
    composed = [target for target in targets if operator_name(target) in _COMPOSED]
    torchs = {target: known[target] for target in composed if target in known}
    normed = [target for target in targets if operator_name(target) == "_weight_norm"]
    return torchs | dict.fromkeys(normed, _normed_weight)


def _normed_weight(v: torch.Tensor, g: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """What `weight_norm` makes of direction and size, without trusting that their shapes match."""
    others = [axis for axis in range(v.ndim) if axis != dim % v.ndim] if dim != -1 else []
    return v * (g / torch.linalg.vector_norm(v, dim=others or None, keepdim=True))


def _is_plain(node: Node, facts: Program) -> bool:
    """Whether the node can be read as it is: changes no tensor, and is computed or has a rule."""
    if node.op != "call_function" or not is_tensor_valued(node):
        return True
    schema = getattr(node.target, "_schema", None)
    if schema and schema.is_mutable:
        return False
    computed = schema and node not in facts.live and _is_for_users(operator_name(node.target))
    return bool(computed) or _rule_of(node) is not None


def _is_for_users(name: str) -> bool:
    """Whether an operator may be called with what a file says; others trust their arguments."""
    return name in RULES or name in _OF_BITS or not name.startswith("_")


def _rule_of(node: Node) -> Rule | None:
    """How the operator of a node is written; None if it can't be."""
    known = RULES.get(operator_name(node.target))
    return known or (_POINTWISE if is_pointwise(node.target) else None)


def _refuse_training_mode(program: ExportedProgram) -> None:
    """Refuse exports made without ``model.eval()``: their statistics depend on the batch."""
    for node in program.graph.nodes:
        target = node.target
        if node.op != "call_function" or not hasattr(target, "_schema"):
            continue
        for argument, value in zip(target._schema.arguments, node.args, strict=False):
            if argument.name in ("training", "train") and value is True:
                raise _in_training_mode(node)
        if str(target) in _TRAINING_FORMS:
            raise _in_training_mode(node)


def _in_training_mode(node: Node) -> UnsupportedError:
    return UnsupportedError(
        f"{node.target} ({origin_of(node)}) uses the statistics of the batch, as in training. "
        "Export model.eval(), whose batch norms have track_running_stats=True."
    )


_TRAINING_FORMS = frozenset(
    {"aten._native_batch_norm_legit_functional.default", "aten._native_batch_norm_legit.no_stats"}
)


class _Writer:
    """Reads one program, writes one canonical graph of what is between its ends."""

    def __init__(
        self,
        program: ExportedProgram,
        facts: Program,
        ends: NetworkEnds,
        islands: tuple[NetworkIsland, ...],
        why: Mapping[Node, Refusal],
    ) -> None:
        self.program, self.facts, self.ends, self.islands = program, facts, ends, islands
        self.on_islands = frozenset(node for island in islands for node in island.nodes)
        self.why = why
        self.along: set[Node] = set()  # what an island can't read as it is held here
        self.written: list[WrittenIsland] = []
        self.values: dict[Node, Any] = {}  # what stands for a node: Node, list of Nodes or number
        self.read: list[Node] = []  # what stands for each input of the graph
        self.lost: set[Node] = set()  # values behind a refused operator
        self.refused: dict[Node, tuple[str, Refusal]] = {}
        self.notes: list[str] = []
        self.graph = CanonicalGraph(self._example_batch(), self._program_batch())

    def write_operators(self) -> None:
        """Write all but the outputs; what can't be written is ``refused``."""
        self._write_inputs()
        for item in schedule(self.facts, self.islands):
            if isinstance(item, NetworkIsland):
                self._write_island(item)
            elif self._is_written(item):
                self._write_call(item)

    def _is_written(self, node: Node) -> bool:
        if self._is_float(node) or not node.users:  # indices that nobody reads have no users
            return False
        return node in self.facts.live or not all(map(self._is_float, node.users))

    def _is_float(self, node: Node) -> bool:
        return node in self.ends or node in self.on_islands

    def _write_island(self, island: NetworkIsland) -> None:
        read = read_by(self.facts, island.results, island.nodes)
        others = [
            node
            for node in read
            if not (may_be_read(node) and is_batch_first(self.values.get(node), node))
        ]
        if others or not read:
            self.along.update(node for node in others if node not in self.lost)
            for node in island.results:
                self._stand_in(node)
            return
        name = f"island_{len(self.written)}"
        floats = FloatWriter(self.facts, [[node] for node in read], island.nodes, self.why)
        end = floats.write(island.results)
        for index, result in enumerate(island.results):
            self.graph.origin = origin_of(result)
            self.values[result] = self.graph.float_island(
                result.name,
                FloatIsland(name, end, index),
                [self.values[node] for node in read],
                result.meta["val"].shape[1:],
            )
        results = tuple(self.values[result] for result in island.results)
        self.written.append(WrittenIsland(name, end, tuple(read), island.results, results))

    def finished(self) -> CanonicalProgram:
        """The outputs, and what is around them."""
        ends = None
        if self.ends:
            ends = write_ends(
                self.facts, self.ends, self.read, self.values, output_paths(self.program)
            )
            self.graph.graph.output(tuple(ends.quantized))
            names = tuple(node.name for node in ends.quantized)
        else:
            names = self._write_outputs()
        return CanonicalProgram(
            self.graph.module(),
            names,
            self.graph.origins,
            tuple(dict.fromkeys(self.notes)),
            self.program,
            ends,
            tuple(self.written),
        )

    def _example_batch(self) -> int:
        """Batch of the fake tensors: the exported one, or a small one where it is dynamic."""
        for node in self.facts.inputs:
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor) and value.ndim and isinstance(value.shape[0], int):
                return value.shape[0]
        return 2

    def _program_batch(self) -> int:
        """Size of axis 0 of the program's inputs, or what stands for it."""
        sizes = [n.meta["val"].shape for n in self.facts.inputs if is_tensor_valued(n)]
        return batch_size(sizes[0][0]) if sizes and sizes[0] else 1

    def _write_inputs(self) -> None:
        # Before the constants: where torch.fx writes code, an input may then have a weight's name.
        for node in self.facts.inputs:
            self._check_input(node)
            if self._is_read(node):
                self._write_user_input(node)
        for node in self.program.graph.nodes:
            if node in self.ends.head and self._is_read(node) and has_images_of_floats(node):
                self._write_head_value(node)
        for spec in self.program.graph_signature.input_specs:
            if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
                self._write_constant(spec)
            elif spec.kind != InputKind.USER_INPUT:
                raise UnsupportedError(
                    f"the program has an input of kind {spec.kind.name}. Export it again with "
                    "tensors as the only inputs."
                )

    def _write_constant(self, spec: Any) -> None:
        node = self.facts.placeholders[spec.arg.name]
        stored = self.program.state_dict.get(spec.target)
        value = self.program.constants[spec.target] if stored is None else stored
        if value.is_floating_point() and value.dtype != torch.float32:
            self.notes.append(f"weights of type {str(value.dtype)[6:]} were converted to float32")
        self.values[node] = self.graph.constant(spec.target, value.cpu())

    def _is_read(self, node: Node) -> bool:
        """Whether the canonical graph reads it; without ends it has all inputs of the network."""
        return not self.ends or any(
            user.op == "call_function" and is_tensor_valued(user) and user not in self.ends
            for user in node.users
        )

    def _check_input(self, node: Node) -> None:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            raise UnsupportedError(
                f"input {node.name} is {value!r}; networks take tensors alone. Make the number a "
                "constant of the network, and export again."
            )
        if value.ndim < 1 or (value.ndim < 2 and self._is_read(node)):
            raise UnsupportedError(
                f"input {node.name} of shape {list(value.shape)} has no batch axis. Export with "
                "inputs whose axis 0 is the batch; make what is the same for all images a buffer."
            )
        moving = [axis for axis, size in enumerate(value.shape[1:], 1) if not isinstance(size, int)]
        if moving:
            raise UnsupportedError(
                f"input {node.name} has dynamic axes {moving}; only the batch may be dynamic. "
                "Export with fixed sizes, once for each size that is needed."
            )
        batch = value.shape[0]
        if isinstance(batch, int) and batch != self.graph.batch:
            raise UnsupportedError(
                f"input {node.name} has {batch} on axis 0 where others have {self.graph.batch}. "
                "Export with the batch on axis 0 of every input."
            )

    def _write_user_input(self, node: Node) -> None:
        value = node.meta["val"]
        if not value.is_floating_point():
            raise UnsupportedError(
                f"input {node.name} is {str(value.dtype)[6:]}; only tensors of floats can be "
                "quantized. Give the network floats (embeddings, casts and numbers belong before "
                "it), and export again."
            )
        shape = (self.graph.batch, *value.shape[1:])
        try:
            self.values[node] = self.graph.input(node.name, shape)
        except (Refusal, RuntimeError) as error:
            refusal = as_refusal(error)
            raise UnsupportedError(f"input {node.name} of {list(shape)}: {refusal}") from error
        self.read.append(node)

    def _write_head_value(self, node: Node) -> None:
        self.values[node] = self.graph.input(
            node.name, (self.graph.batch, *node.meta["val"].shape[1:])
        )
        self.read.append(node)

    def _write_call(self, node: Node) -> None:
        if not is_tensor_valued(node):
            return
        name = operator_name(node.target)
        self.graph.origin = origin_of(node)
        lost = any(source in self.lost for source in node.all_input_nodes)
        try:
            if lost:
                if _rule_of(node) is None:
                    raise refusal_of(name)
                self.lost.add(node)
            else:
                self.values[node] = self._apply(name, node)
        except MemoryError:
            raise
        except Exception as error:
            # A file may give an operator any arguments, and torch raises what it pleases.
            name = node.target if hasattr(node.target, "_schema") else f"reading {node.args[0]}"
            self.refused[node] = f"{name} ({self.graph.origin})", as_refusal(error)
            self._stand_in(node)

    def _stand_in(self, node: Node) -> None:
        """Let the operators behind a refused one be looked at, too, where its shape suffices."""
        value = node.meta["val"]
        tensors = list(value) if isinstance(value, tuple | list) else [value]
        if not all(map(self._has_images_of_floats, tensors)):
            self.lost.add(node)
            return
        try:
            made = [
                self.graph.input(f"{node.name}_{i}", (self.graph.batch, *tensor.shape[1:]))
                for i, tensor in enumerate(tensors)
            ]
        except (Refusal, RuntimeError):
            self.lost.add(node)
            return
        self.values[node] = made if isinstance(value, tuple | list) else made[0]

    def _has_images_of_floats(self, tensor: Any) -> bool:
        if not isinstance(tensor, torch.Tensor) or not tensor.ndim:
            return False
        batch, *sizes = tensor.shape
        free = not isinstance(batch, int) or batch == self.graph.batch
        return free and tensor.is_floating_point() and all(isinstance(n, int) for n in sizes)

    def _apply(self, name: str, node: Node) -> Any:
        args = torch.fx.map_arg(node.args, self._stands_for)
        kwargs = torch.fx.map_arg(node.kwargs, self._stands_for)
        if node not in self.facts.live and len(values_read_by(node)) < len(node.all_input_nodes):
            known, named = torch.fx.map_arg((node.args, node.kwargs), self._constant_of)
            return self.graph.constant(node.name, node.target(*known, **named))
        if (
            _is_for_users(name)
            and hasattr(node.target, "_schema")
            and _only_constants(args, kwargs)
        ):
            value = self.graph.compute(node.target, args, kwargs)
            if isinstance(value, torch.Tensor):
                return self.graph.constant(node.name, value)
            if isinstance(value, tuple | list) and all(isinstance(v, torch.Tensor) for v in value):
                return [self.graph.constant(f"{node.name}_{i}", v) for i, v in enumerate(value)]
        rule = _rule_of(node)
        if rule is None:
            raise refusal_of(name)
        if rule not in _BATCH_AWARE and any(isinstance(x, Moved) for x in pytree.tree_leaves(args)):
            raise Refusal("works on a value whose batch is not on axis 0", BATCH_STAYS)
        if hasattr(node.target, "_schema"):
            named = named_arguments(node.target, args, kwargs)
            return rule(self.graph, node, named)
        return rule(self.graph, node, {"values": args[0], "index": args[1]})

    def _constant_of(self, node: Node) -> Any:
        """The tensor that a node is; one of its size and type, where no more of it is read."""
        value = self.values.get(node)
        if is_constant(value):
            return self.graph.value(value)
        return stand_in(node) if is_tensor_valued(node) else self._stands_for(node)

    def _stands_for(self, node: Node) -> Any:
        """What a node of the program is here; a size of the batch is that of one image."""
        if node in self.values or is_tensor_valued(node):
            return self.values.get(node)
        sources = [self.values.get(source) for source in node.all_input_nodes]
        if sources and all(map(is_constant, sources)):  # an element of a tensor
            return node.target(*torch.fx.map_arg(node.args, self._constant_of))
        return size_of_one(node.meta.get("val"))

    def _write_outputs(self) -> tuple[str, ...]:
        results: list[Node] = []
        paths = output_paths(self.program)
        output = next(iter(self.program.graph.find_nodes(op="output")))
        for index, source in enumerate(output.args[0]):
            value = self.values.get(source) if isinstance(source, Node) else None
            if isinstance(value, Moved):
                refuse_moved(paths[index] or index)
            if not isinstance(value, Node) or is_constant(value):
                refuse_constant(paths[index] or index)
            results.append(value)
        self.graph.graph.output(tuple(results))
        return unique(path or value.name for path, value in zip(paths, results, strict=True))


def _only_constants(args: Any, kwargs: Any) -> bool:
    """Whether nothing that is read depends on the input; tensors of zeros read nothing."""
    leaves = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Node | Moved)]
    return all(is_constant(leaf) for leaf in leaves)
