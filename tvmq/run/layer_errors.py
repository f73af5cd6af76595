"""Where a built network leaves the float one: device by device, and layer by layer.

The float network, the reference, CPU and NPU see the same images. Devices must give the reference's
bits; the reference may differ from float, and how much of that each layer makes is measured twice:

* **by itself**: everything that it reads is replaced by the float network's numbers, rounded to the
  codes of what they stand for. What is left is what this layer adds: rounded weights and inputs,
  and its output's codes.
* **in all**: as the network runs, with the errors of everything in front of it.

Both are signal to noise, of all images together. A layer is bad where it has less than
``DB_PER_BIT`` dB by itself for each bit of its weights or codes, whichever are fewer: about half of
what codes have that fit numbers which are spread like a normal distribution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import tvm

from relay_passes.float_ends import HEAD, INTEGERS, TAIL
from relay_passes.passes.convert_to_nhwc import TO_NHWC
from relay_passes.passes.name_values import CODES
from relay_passes.read_layers import AnyLayer, IslandLayer, read_layers
from relay_passes.relax_nodes import Graph
from targets.errors import InputError
from targets.rounding import round_reals
from tvmq import token_operators  # noqa: F401  registers operators that the float network may have
from tvmq.artifact.artifact import Artifact
from tvmq.float_ends import name_in_plan
from tvmq.plan.plan_schema import PlanFile, ValueEntry
from tvmq.run.reference import run_reference
from tvmq.run.session import Array, LibraryRunner, check_inputs, require_finite

DB_PER_BIT = 2.5
MOST_BEYOND = 0.01
"""Share of a tensor's numbers beyond its codes from which on that is thought to be the reason."""


@dataclass(frozen=True)
class DeviceError:
    """What a device gives beside what it is compared with.

    Attributes:
        device: "reference", "cpu" or "npu".
        against: "float" for the reference, which is the definition, "reference" for the others.
        numbers: of all outputs.
        different: how many of these are not the same to the bit.
        db: signal to noise of the finite ones among its floats; infinite where none of these
            differs, NaN where there are none.
    """

    device: str
    against: str
    numbers: int
    different: int
    db: float


@dataclass(frozen=True)
class LayerError:
    """What a layer adds to the error, and what has come together behind it.

    Attributes:
        name: of the layer; of the tensor, for an input of the network.
        kind: "conv2d", "input", ...
        source: module path and source line.
        bits: of its weights or of the codes that it makes, whichever are fewer.
        own_db: signal to noise of what it makes of the float network's numbers.
        total_db: the same as the network runs.
        beyond: share of its float output's numbers that are beyond its codes, in [0, 1].
        advice: what to try, for a bad one.
    """

    name: str
    kind: str
    source: str
    bits: int
    own_db: float
    total_db: float
    beyond: float
    advice: str

    @property
    def is_bad(self) -> bool:
        """Whether it loses more than its bits explain."""
        return self.own_db < DB_PER_BIT * self.bits


@dataclass(frozen=True)
class Errors:
    """Devices and layers, in order."""

    images: int
    devices: tuple[DeviceError, ...]
    layers: tuple[LayerError, ...]

    @property
    def first_bad_layer(self) -> LayerError | None:
        """In the order of execution."""
        return next((layer for layer in self.layers if layer.is_bad), None)

    @property
    def first_bad_stage(self) -> str | None:
        """A device that doesn't give the reference's bits; "quantization" where a layer is bad."""
        for each in self.devices:
            if each.against == "reference" and each.different:
                return each.device
        return "quantization" if self.first_bad_layer is not None else None


def layer_errors(
    artifact: Artifact,
    batches: Iterable[Mapping[str, npt.NDArray[np.generic]]],
    report: Callable[[int], None] = lambda _: None,
) -> Errors:
    """Run images through the float network and every device.

    Args:
        artifact: of a version that keeps the names of the plan in its float network.
        batches: [N, ...] by input name, preprocessed.
        report: told how many images are done.

    Raises:
        InputError: the artifact is for another processor or older, or an input doesn't fit.
    """
    networks = _Networks(artifact)
    for inputs in batches:
        networks.run(check_inputs(artifact, inputs))
        report(networks.images)
    return networks.errors()


@dataclass
class _Sums:
    """Squares of a tensor, over all images."""

    signal: float = 0.0
    own: float = 0.0
    total: float = 0.0
    beyond: int = 0
    numbers: int = 0


@dataclass
class _Outputs:
    """Of a device, over all images."""

    signal: float = 0.0
    noise: float = 0.0
    compared: int = 0
    different: int = 0
    numbers: int = 0

    def add(self, found: Sequence[Array], expected: Sequence[Array]) -> None:
        for one, other in zip(found, expected, strict=True):
            unequal = one != other
            self.numbers += other.size
            if other.dtype.kind == "f":
                unequal &= ~(np.isnan(one) & np.isnan(other))
                real = np.isfinite(one) & np.isfinite(other)  # a float end may give anything
                self.compared += int(real.sum())
                self.signal += _power(other[real])
                self.noise += _power(other[real].astype(np.float64) - one[real])
            self.different += int(unequal.sum())


@dataclass
class _Networks:
    """An artifact on all devices, and what came together so far."""

    artifact: Artifact
    images: int = 0
    sums: dict[str, _Sums] = field(default_factory=dict)
    outputs: dict[str, _Outputs] = field(default_factory=dict)

    def __post_init__(self) -> None:
        artifact = self.artifact
        with artifact.reading("plan.json") as path:
            self.plan = PlanFile.model_validate_json(path.read_bytes())
        with artifact.reading("integer.json") as path:
            self.integer = tvm.ir.load_json(path.read_text())
        with artifact.reading("float.pt2") as path:
            self.float = _FloatNetwork(path, artifact)
        with artifact.library("cpu.so") as path:
            self.libraries = {"cpu": LibraryRunner(path)}
        if artifact.has("npu.toml"):
            with artifact.library("model.so") as path:
                self.libraries["npu"] = LibraryRunner(path, artifact.programs())
        self.params = [param.name for param in Graph(self.integer).params]

    def run(self, arrays: Sequence[Array]) -> None:
        """One batch."""
        exact, values = self.float(arrays)
        passing: list[Array] = []
        read = list(arrays)
        with_ends = self.artifact.manifest.float_ends is not None
        cpu = self.libraries["cpu"]
        if with_ends:
            count = cpu.parameters_of(INTEGERS)
            given = cpu(arrays, HEAD)
            read, passing = given[:count], given[count:]
            require_finite(read)
        values |= dict(zip(self.params, read, strict=True))
        inputs = dict(zip(self.params, read, strict=True))

        def in_all(variable: str, made: Array) -> Array:
            self._add(variable, values, made, "total")
            return made

        def by_itself(variable: str, made: Array) -> Array:
            self._add(variable, values, made, "own")
            return self._rounded(variable, values, made)

        ended = run_reference(self.integer, inputs, in_all, cpu)
        run_reference(self.integer, inputs, by_itself, cpu)

        reference = cpu([*ended, *passing], TAIL) if with_ends else ended
        self._outputs("reference").add(reference, exact)
        for device, library in self.libraries.items():
            self._outputs(device).add(library(arrays), reference)
        self.images += len(arrays[0])

    def _outputs(self, device: str) -> _Outputs:
        return self.outputs.setdefault(device, _Outputs())

    def _entry(self, variable: str) -> tuple[str, ValueEntry | None]:
        """The tensor that a variable holds, and its codes."""
        name = variable.removesuffix(CODES)
        return name, self.plan.values.get(name)

    def _add(
        self,
        variable: str,
        values: Mapping[str, Array],
        made: Array,
        error: Literal["own", "total"],
    ) -> None:
        """The squares of a tensor's errors, if the float network has it."""
        name, entry = self._entry(variable)
        exact = _laid_out(values.get(name), made)
        if exact is None or (entry is None and made.dtype.kind != "f"):
            return
        sums = self.sums.setdefault(name, _Sums())
        real: Array = made
        if entry is not None and made.dtype.kind != "f":
            real = (made.astype(np.int64) - entry.zero_point) * entry.step
        if error == "own":
            sums.own += _power(real - exact)
            return
        sums.total += _power(real - exact)
        sums.signal += _power(exact)
        sums.numbers += exact.size
        if entry is not None:
            low, high = ((code - entry.zero_point) * entry.step for code in entry.codes)
            outside = np.abs(exact - np.clip(exact, low, high)) > entry.step / 2
            sums.beyond += int(outside.sum())

    def _rounded(self, variable: str, values: Mapping[str, Array], made: Array) -> Array:
        """The float network's numbers as codes, in the place of codes that were made."""
        name, entry = self._entry(variable)
        exact = _laid_out(values.get(name), made)
        if entry is None or exact is None or made.dtype.kind == "f":
            return made
        zero, (low, high) = entry.zero_point, entry.codes
        codes = round_reals(exact / entry.step, entry.rounds, name, zero) + zero
        return np.clip(codes, low, high).astype(made.dtype)

    def errors(self) -> Errors:
        """What was found."""
        devices = tuple(
            DeviceError(
                device,
                "float" if device == "reference" else "reference",
                found.numbers,
                found.different,
                _decibels(found.signal, found.noise) if found.compared else math.nan,
            )
            for device, found in self.outputs.items()
        )
        return Errors(self.images, devices, tuple(self._layers()))

    def _layers(self) -> Iterable[LayerError]:
        makers: dict[str, AnyLayer] = {}
        network = read_layers(self.integer)
        for layer in network.layers:
            outputs = layer.outputs if isinstance(layer, IslandLayer) else (layer.output,)
            makers |= {output.name: layer for output in outputs} | {layer.name: layer}
        sources = {entry["name"]: entry["source"] for entry in self.artifact.layers()}
        for name, sums in self.sums.items():
            if not sums.numbers:
                continue
            maker = makers.get(name)
            made_by = name if maker is None else maker.name
            entry, weights = self.plan.values.get(name), self.plan.layers.get(made_by)
            bits = min(
                8 if entry is None else entry.bits, 8 if weights is None else weights.weight_bits
            )
            beyond = sums.beyond / sums.numbers
            yield LayerError(
                made_by,
                "input" if maker is None else maker.kind,
                sources.get(made_by, ""),
                bits,
                _decibels(sums.signal, sums.own),
                _decibels(sums.signal, sums.total),
                beyond,
                self._advice(name, made_by, beyond),
            )

    def _advice(self, value: str, layer: str, beyond: float) -> str:
        weights, settings = self.plan.layers.get(layer), self.plan.settings
        if beyond > MOST_BEYOND:
            return (
                f"{100 * beyond:.1f} % of its numbers are beyond its codes: calibrate with more "
                "images like these, or with --calib-method minmax"
            )
        if (
            weights is not None
            and settings.granularity == "tensor"
            and "wess" not in settings.method
        ):
            return "give its channels steps of their own: --granularity channel or --method wess"
        if weights is not None and weights.weight_bits < 8:
            return f"learn its codes, --method rapq, or keep 8 bits: --exclude {layer}"
        return f"give {value} more bits, by --precision or in plan.json and --plan"


class _FloatNetwork:
    """The saved float network, which tells the plan's tensors."""

    def __init__(self, path: Path, artifact: Artifact) -> None:
        self.graph_module = torch.export.load(path).module()
        if not any(name_in_plan(node) for node in self.graph_module.graph.nodes):
            raise InputError(
                f"{artifact.folder}: its float network doesn't say which tensors of the plan it "
                "computes. Build it again with this version."
            )

    def __call__(self, arrays: Sequence[Array]) -> tuple[list[Array], dict[str, Array]]:
        """Outputs, and tensors by the names that the plan has for them."""
        values: dict[str, Array] = {}

        class Interpreter(torch.fx.Interpreter):  # type: ignore[misc]
            def run_node(self, node: torch.fx.Node) -> Any:
                result = super().run_node(node)
                if (name := name_in_plan(node)) and isinstance(result, torch.Tensor):
                    values[name] = result.numpy()
                return result

        with torch.no_grad():
            outputs = Interpreter(self.graph_module).run(*map(torch.tensor, arrays))
        return [output.numpy() for output in outputs], values


def _laid_out(exact: Array | None, found: Array) -> npt.NDArray[np.float64] | None:
    """A tensor as the integer network holds it, images N H W C; None: of other elements."""
    if exact is None:
        return None
    if found.ndim == exact.ndim == 4 and exact.transpose(TO_NHWC).shape == found.shape:
        exact = exact.transpose(TO_NHWC)
    elif exact.shape != found.shape:
        return None
    return exact.astype(np.float64)


def _power(x: npt.NDArray[Any]) -> float:
    return float(np.square(x, dtype=np.float64).sum())


def _decibels(signal: float, noise: float) -> float:
    """Infinite without noise."""
    return 10 * math.log10(max(signal, 1e-300) / noise) if noise else math.inf
