"""Decide what runs where, and build the module that does it.

    integer main  -->  main of calls: NPU programs for runs of layers, CPU kernels for what
                       the NPU refuses, ordinary Relax operators for the rest

Every layer on the CPU of an NPU build carries the constraint it violates, in words. Both sides
compute the same integers; the float operators at the module's ends stay as they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from tvm import IRModule, relax
from tvm.target import Target

from relay_passes.read_layers import AnyLayer, IntegerNetwork, IslandLayer, OpaqueLayer
from relay_passes.relax_nodes import (
    Expr,
    Graph,
    Var,
    constant,
    is_tuple,
    is_var,
    picked_from,
    shape_of,
    variables_in,
)
from targets.cpu.cuts import NO_CUTS, Cut
from targets.cpu.host import CpuFeatures, host_target
from targets.cpu.kernels import make_kernel
from targets.layers import Layer, Value
from targets.npu.choices import NO_CHOICES, Choices
from targets.npu.compiler import compile_layers
from targets.npu.constraints import refusal
from targets.npu.execute.compiled import executor_symbol
from targets.npu.execute.host_calls import pack_inputs, unpack_output
from targets.npu.input_blocks import in_blocks
from targets.npu.machine.program import Program
from targets.npu.machine.spec import NpuSpec
from targets.npu.schedule.storage import Blocks, host_bytes
from targets.refusal import Refusal


@dataclass(frozen=True)
class Placement:
    """Where a layer runs.

    Attributes:
        name: of the layer.
        source: module path and source line of the user's model.
        kind: "conv2d", "add", ...
        device: "npu", "cpu", or "float" for what isn't quantized and runs on the host.
        refusal: why the NPU doesn't run it; None where it does, or where nobody asked it.
        macs: multiply-accumulates of one image.
        program: index of its NPU program, None on the CPU.
    """

    name: str
    source: str
    kind: str
    device: str
    refusal: Refusal | None
    macs: int
    program: int | None = None

    @property
    def reason(self) -> str:
        """Why it is on the CPU, in words; "" on the NPU."""
        if self.device == "npu":
            return ""
        return "the target is the CPU" if self.refusal is None else str(self.refusal)

    def as_json(self) -> dict[str, Any]:
        """One entry of an artifact's layers.json."""
        return {
            "name": self.name,
            "source": self.source,
            "kind": self.kind,
            "device": self.device,
            "reason": self.reason,
            "macs": self.macs,
            "program": self.program,
        }


@dataclass(frozen=True)
class PlacedModule:
    """A module whose ``main`` goes from float inputs to float outputs on its devices.

    Attributes:
        mod: ready for ``tvm.compile`` with the CPU's target.
        placements: one per layer, in order.
        programs: the NPU programs that ``main`` executes, in order.
    """

    mod: IRModule
    placements: tuple[Placement, ...]
    programs: tuple[Program, ...]


NO_INPUT = Refusal(
    "A program reads a tensor of the image, and nothing beside this layer on the NPU does.",
    "Let the CPU keep it: the same for every image, it costs no time there.",
)
"""Why the CPU takes constants that would be a program by themselves."""


def _refusal(layer: AnyLayer, spec: NpuSpec) -> Refusal | None:
    if isinstance(layer, IslandLayer):
        return in_float(layer)
    return layer.refusal if isinstance(layer, OpaqueLayer) else refusal(layer, spec)


def in_float(layer: IslandLayer) -> Refusal:
    """Why a float island is none of the NPU's."""
    return Refusal(
        f"in float in the middle of the network, on the host: {layer.operators}.",
        "Write it in operators that can be quantized.",
    )


def refusals(network: IntegerNetwork, spec: NpuSpec) -> list[Refusal | None]:
    """Per layer None where the NPU runs it, or why it doesn't."""
    found = [_refusal(layer, spec) for layer in network.layers]
    begin = 0
    for taken, run in groupby(list(found), key=lambda why_not: why_not is None):
        end = begin + len(list(run))
        layers = network.layers[begin:end]
        made = {layer.output.name for layer in layers}
        if taken and all(value.name in made for layer in layers for value in layer.inputs):
            found[begin:end] = [NO_INPUT] * (end - begin)
        begin = end
    return found


def placements(network: IntegerNetwork, spec: NpuSpec | None) -> tuple[Placement, ...]:
    """Where each layer runs, in order; nothing is compiled.

    Args:
        network: from ``read_layers``.
        spec: the NPU, or None to run everything on the CPU.
    """
    placed: list[Placement] = []
    programs = 0
    refused = (
        [in_float(layer) if isinstance(layer, IslandLayer) else None for layer in network.layers]
        if spec is None
        else refusals(network, spec)
    )
    for layer, why_not in zip(network.layers, refused, strict=True):
        on_npu = spec is not None and why_not is None
        if on_npu and not (placed and placed[-1].device == "npu"):
            programs += 1
        placed.append(
            Placement(
                name=layer.name,
                source=layer.source,
                kind=layer.kind,
                device="npu" if on_npu else "float" if isinstance(layer, IslandLayer) else "cpu",
                refusal=why_not,
                macs=layer.macs,
                program=programs - 1 if on_npu else None,
            )
        )
    return tuple(placed)


@dataclass(frozen=True)
class ProgramParts:
    """What a program is compiled of.

    Attributes:
        layers: in order.
        inputs: that come from outside, as the host packs them.
        outputs: that are needed outside.
        images: the inputs as the network has them.
        blocks: how the host packs these.
    """

    layers: Sequence[Layer]
    inputs: Sequence[Value]
    outputs: Sequence[Value]
    images: Sequence[Value]
    blocks: Mapping[str, Blocks]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        return sum(layer.macs for layer in self.layers)


def program_parts(
    layers: Iterable[AnyLayer], readers: Mapping[str, set[str]], spec: NpuSpec
) -> ProgramParts:
    """What the program of a run of layers is compiled of.

    Args:
        layers: all on the NPU.
        readers: of the whole network, from ``readers_of``.
        spec: the NPU.
    """
    run = integer_layers(layers)
    images, outputs = boundary(run, readers)
    blocked = in_blocks(run, images, outputs, spec)
    return ProgramParts(blocked.layers, blocked.inputs, outputs, images, blocked.blocks)


def programs_of(network: IntegerNetwork, spec: NpuSpec) -> list[ProgramParts]:
    """What the programs of a network are compiled of, in order."""
    readers = readers_of(network)
    found = segments(network.layers, placements(network, spec))
    return [program_parts(layers, readers, spec) for on_npu, layers in found if on_npu]


def place(
    mod: IRModule,
    network: IntegerNetwork,
    spec: NpuSpec | None,
    target: Target | None = None,
    choices: Sequence[Choices] = (),
    cuts: Mapping[str, Cut] = NO_CUTS,
) -> PlacedModule:
    """Build the placed module.

    Args:
        mod: the integer module; left as it was.
        network: its layers, from ``read_layers``.
        spec: the NPU, or None to run everything on the CPU.
        target: of the CPU; None is this machine's.
        choices: of each program, in order, that take the place of the compiler's own.
        cuts: of kernels on the CPU, by what their layers make, that take the place of the rules'.

    Raises:
        CapacityError: a choice or a cut doesn't fit.
    """
    placed = placements(network, spec)
    builder = _PlacedBuilder(mod, network, spec, target or host_target(), choices, cuts)
    new_mod, programs = builder.build(segments(network.layers, placed))
    return PlacedModule(new_mod, placed, tuple(programs))


def segments(
    layers: Sequence[AnyLayer], placed: Sequence[Placement]
) -> list[tuple[bool, list[AnyLayer]]]:
    """The layers of each NPU program (True), and single layers on the CPU (False)."""
    segments: list[tuple[bool, list[AnyLayer]]] = []
    for layer, placement in zip(layers, placed, strict=True):
        on_npu = placement.program is not None
        if on_npu and segments and segments[-1][0]:
            segments[-1][1].append(layer)
        else:
            segments.append((on_npu, [layer]))
    return segments


class _PlacedBuilder:
    """Emits ``main`` anew: layers in order, everything else when somebody reads it."""

    def __init__(
        self,
        mod: IRModule,
        network: IntegerNetwork,
        spec: NpuSpec | None,
        target: Target,
        choices: Sequence[Choices],
        cuts: Mapping[str, Cut],
    ) -> None:
        self.graph = Graph(mod)
        self.network, self.spec, self.choices, self.cuts = network, spec, choices, cuts
        self.target = target
        self.features = CpuFeatures.of(target)
        islands = mod.clone()  # beside main
        del islands["main"]
        self.builder = relax.BlockBuilder(islands)
        self.old = {var.name: var for var, _ in self.graph.bindings}
        self.new: dict[Var, Expr] = {param: param for param in self.graph.params}
        self.programs: list[Program] = []
        self.readers = readers_of(network)

    def build(self, segments: list[tuple[bool, list[AnyLayer]]]) -> tuple[IRModule, list[Program]]:
        params = list(self.graph.params)
        with self.builder.function("main", params):
            with self.builder.dataflow():
                for on_npu, layers in segments:
                    if on_npu:
                        self._emit_program(layers)
                    else:
                        self._emit_on_cpu(layers[0])
                outputs = relax.Tuple([self._read(output) for output in self.graph.outputs])
                result = self.builder.emit_output(outputs)
            self.builder.emit_func_output(result)
        mod = self.builder.get()
        if self.graph.function.attrs is not None:
            mod["main"] = mod["main"].with_attrs(dict(self.graph.function.attrs.items()))
        return mod, self.programs

    # --- values

    def _read(self, var: Var) -> Var:
        """The new variable for an old one; emits what it needs that is no layer's output."""
        todo = [var]
        while todo:
            wanted = todo[-1]
            missing = []
            if wanted not in self.new:
                sources = variables_in(self.graph.value(wanted))
                missing = [source for source in sources if source not in self.new]
                if not missing:
                    self.new[wanted] = self._copy(wanted)
            if missing:
                todo += missing
            else:
                todo.pop()
        return self.new[var]

    def _copy(self, var: Var) -> Var:
        """Emit the same call, or the same item of a tuple, of the new variables."""
        value = self.graph.value(var)
        if (picked := picked_from(value)) is not None:
            item = relax.TupleGetItem(self.new[picked[0]], picked[1])
            return self.builder.emit(item, name_hint=var.name)
        args = [self._renewed(arg) for arg in value.args]
        call = relax.Call(value.op, args, value.attrs, value.ty_args)
        return self.builder.emit(call, name_hint=var.name)

    def _renewed(self, arg: Expr) -> Expr:
        if is_tuple(arg):
            return relax.Tuple([self._renewed(field) for field in arg.fields])
        return self.new[arg] if is_var(arg) else arg

    def _image(self, value: Value) -> Expr:
        """A quantized tensor as [n, H, W, C]."""
        old = self.old[value.name]
        new = self._read(old)
        if len(shape_of(old)) == 1 + len(value.shape):
            return new
        shape = relax.ShapeExpr([self._batch(old), *value.shape])
        return self.builder.emit(relax.op.reshape(new, shape), name_hint=f"{value.name}_image")

    def _define(self, value: Value, image: Expr) -> None:
        """Let the old variable of ``value`` be ``image``, in the old variable's shape."""
        old = self.old[value.name]
        if len(shape_of(old)) != 1 + len(value.shape):
            image = relax.op.reshape(image, old.ty.shape)
        self.new[old] = self.builder.emit(image, name_hint=value.name)

    def _batch(self, var: Var) -> Any:
        return var.ty.shape.values[0]

    def _call(self, func: Any, name: str, args: list[Expr], types: list[tuple[Any, str]]) -> Expr:
        gvar = self.builder.add_func(func.without_attr("global_symbol"), name)
        out = [relax.TensorType(shape, dtype) for shape, dtype in types]
        return relax.call_tir(gvar, args, out[0] if len(out) == 1 else out)

    # --- devices

    def _emit_on_cpu(self, layer: AnyLayer) -> None:
        """Emit a kernel of ours, or nothing: the layer stays Relax, emitted where it is read."""
        if isinstance(layer, OpaqueLayer | IslandLayer):
            return
        kernel = make_kernel(layer, self.features, self.cuts.get(layer.output.name))
        if kernel is None:
            return
        args = [self._image(value) for value in layer.inputs]
        args += [constant(array, str(array.dtype)) for array in kernel.constants]
        shape = [self._batch(self.old[layer.output.name]), *layer.output.shape]
        call = self._call(kernel.func, f"cpu_{layer.kind}", args, [(shape, layer.output.dtype)])
        self._define(layer.output, self.builder.emit(call, name_hint=f"{layer.name}_cpu"))

    def _emit_program(self, layers: list[AnyLayer]) -> None:
        """One call that executes the layers' program on every image of the batch."""
        assert self.spec is not None
        parts = program_parts(layers, self.readers, self.spec)
        inputs, outputs = parts.images, parts.outputs
        (choices,) = self.choices[len(self.programs) :][:1] or (NO_CHOICES,)
        program = compile_layers(parts.layers, parts.inputs, outputs, self.spec, choices)
        name = f"npu_program_{len(self.programs)}"
        self.programs.append(program)
        batch = self._batch(self.old[inputs[0].name])
        images = [self._image(value) for value in inputs]
        pack = pack_inputs(inputs, parts.blocks)
        packed = self._call(pack, f"{name}_pack", images, [([batch, program.input_bytes], "int8")])
        arguments = [
            relax.prim_value(len(self.programs) - 1),
            constant(program.words(), "int32"),
            constant(np.frombuffer(program.constants or bytes(1), np.int8), "int8"),
            relax.prim_value(program.arena_bytes),
            self.builder.emit(packed),
        ]
        made = relax.TensorType([batch, program.output_bytes], "int8")
        execute = relax.call_dps_packed(executor_symbol(self.spec, self.target), arguments, made)
        bytes_out = self.builder.emit(execute, name_hint=name)
        offset = 0
        for value in outputs:
            unpack = unpack_output(value, offset, program.output_bytes)
            image = [([batch, *value.shape], str(value.dtype))]
            call = self._call(unpack, f"{name}_unpack", [bytes_out], image)
            self._define(value, self.builder.emit(call))
            offset += host_bytes(value)


def integer_layers(layers: Iterable[AnyLayer]) -> list[Layer]:
    """Those that have a definition in integers."""
    return [layer for layer in layers if not isinstance(layer, OpaqueLayer | IslandLayer)]


def boundary(
    layers: Sequence[Layer], readers: Mapping[str, set[str]]
) -> tuple[list[Value], list[Value]]:
    """Tensors that a run of layers reads from outside, and those that the outside reads.

    Args:
        layers: of one program.
        readers: of the whole network, from ``readers_of``.
    """
    made = {layer.output.name for layer in layers}
    inputs = _unique(v for layer in layers for v in layer.inputs if v.name not in made)
    outputs = _unique(layer.output for layer in layers if not readers[layer.output.name] <= made)
    return inputs, outputs


def readers_of(network: IntegerNetwork) -> dict[str, set[str]]:
    """Who reads each value: outputs of layers, and "" for whoever calls the network."""
    readers: dict[str, set[str]] = defaultdict(set)
    for layer in network.layers:
        for value in layer.inputs:
            readers[value.name].add(layer.output.name)
    for value in network.outputs:
        readers[value.name].add("")
    return readers


def _unique(values: Iterable[Value]) -> list[Value]:
    return list({value.name: value for value in values}.values())
