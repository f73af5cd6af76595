"""What units read, for all calibration images: from the float network and from the quantized one.

Both are carried forward unit by unit, so no prefix is ever run twice; what no later unit reads is
dropped. Codes take a byte each, float tensors four. Images are held as N H W C, the order in which
torch convolves fastest. Large tensors lie in files instead of memory.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.fx import GraphModule

from tvmq.calibrate.calibrate import Calibration, Inputs
from tvmq.float_model import FloatModel
from tvmq.reconstruct.learned_steps import LearnedStep
from tvmq.reconstruct.pieces import pieces
from tvmq.reconstruct.stored_rows import StoredRows
from tvmq.reconstruct.unit_graph import QuantizedUnit
from tvmq.reconstruct.units import Unit
from tvmq.regions import find_regions, shape_of

BATCH = 64
"""Images that a unit is run on at a time, at most."""

BATCH_BYTES = 2**25
"""The largest tensor of these; fewer images where it would be larger."""


@dataclass(frozen=True)
class Codes:
    """Codes of a value: what they stand for is ``step * (stored + offset)``.

    Attributes:
        step: positive.
        offset: of the lowest code, without zero point.
    """

    step: float
    offset: int


class Stream:
    """Tensors of all images by name of node; floats, or codes in a byte each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[str, StoredRows] = {}
        self.codes: dict[str, Codes] = {}

    def put(self, name: str, first: int, count: int, part: torch.Tensor) -> None:
        """Store the rows from ``first`` on, of ``count`` in all."""
        if name in self.codes:
            meaning = self.codes[name]
            part = torch.round(part / meaning.step - meaning.offset).to(torch.uint8)
        part = part.permute(0, 2, 3, 1) if part.dim() == 4 else part
        if name not in self.tensors:
            path, shape = self.folder / f"{name}.bin", (count, *part.shape[1:])
            self.tensors[name] = StoredRows(path, shape, part.dtype)
        self.tensors[name].put(first, part)

    def rows(self, name: str, which: torch.Tensor | slice) -> torch.Tensor:
        """float32 rows; images as N C H W in channels-last order."""
        part = self.tensors[name].get(which)
        if name in self.codes:
            meaning = self.codes[name]
            real = torch.empty(part.shape)
            for codes, values in pieces(part.contiguous(), real):
                values.copy_(codes).add_(meaning.offset).mul_(meaning.step)
            part = real
        return part.permute(0, 3, 1, 2) if part.dim() == 4 else part

    def drop(self, names: Sequence[str]) -> None:
        """Forget tensors."""
        for name in names:
            if name in self.tensors:
                self.tensors.pop(name).drop()


class UnitCache:
    """Both streams, and the place in the network that they have reached.

    Attributes:
        count: images.
        exact: of the float network.
        quantized: of the quantized one.
        largest: bytes of the largest tensor of each unit, of one image.
    """

    def __init__(
        self,
        model: FloatModel,
        units: Sequence[Unit],
        calibration: Calibration,
        steps: Mapping[str, LearnedStep],
    ) -> None:
        """Read the calibration images into both streams."""
        self._temporary = tempfile.TemporaryDirectory(prefix="tvmq-units-")
        folder = Path(self._temporary.name)
        (folder / "exact").mkdir()
        (folder / "quantized").mkdir()
        self.exact, self.quantized = Stream(folder / "exact"), Stream(folder / "quantized")
        self.units, self.regions, self.steps = units, find_regions(model), steps
        self.count = calibration.samples
        self.largest = {unit: _largest(model, unit) for unit in units}
        names = [spec.name for spec in model.inputs]
        nodes = [n.name for n in model.graph_module.graph.nodes if n.op == "placeholder"]
        assert len(names) == len(nodes)
        with torch.no_grad():
            self._fill_inputs(nodes, calibration.batches())

    def digest(self) -> str:
        """Of all that the streams hold: at the start, of the calibration images."""
        digest = hashlib.sha256()
        for tensor in self.exact.tensors.values():
            for part in tensor.parts():
                digest.update(part.numpy().data)
        return digest.hexdigest()

    def close(self) -> None:
        """Remove the files."""
        for stream in (self.exact, self.quantized):
            stream.drop([*stream.tensors])
        self._temporary.cleanup()

    def float_outputs(self, index: int, unit: GraphModule) -> None:
        """Run the float unit; its outputs join the float stream."""
        self._run(self.exact, self.units[index], unit)

    def advance(self, index: int, unit: QuantizedUnit) -> None:
        """Run the quantized unit as it is now and forget what no later unit reads."""
        for name in self.units[index].outputs:
            self._declare(name)
        self._run(self.quantized, self.units[index], unit.graph_module)
        needed = {name for later in self.units[index + 1 :] for name in later.inputs}
        for stream in (self.exact, self.quantized):
            stream.drop([name for name in stream.tensors if name not in needed])

    def parts(self, unit: Unit, rows: slice) -> Iterator[slice]:
        """Rows that a unit is run on at a time, one after the other."""
        count = max(1, min(BATCH, BATCH_BYTES // self.largest[unit]))
        for first in range(rows.start, rows.stop, count):
            yield slice(first, min(first + count, rows.stop))

    def _fill_inputs(self, nodes: Sequence[str], parts: Iterable[Inputs]) -> None:
        for name in nodes:
            self._declare(name)
        first = 0
        for part in parts:
            for name, tensor in zip(nodes, part, strict=True):
                self.exact.put(name, first, self.count, tensor)
                self.quantized.put(name, first, self.count, self.steps[name](tensor))
            first += len(part[0])

    def _declare(self, name: str) -> None:
        """Store a node's codes as codes; an output of the network may have none."""
        if name in self.regions.carried:
            step = self.steps[self.regions.carried[name]]
            self.quantized.codes[name] = Codes(step.exact, step.low)

    def _run(self, stream: Stream, unit: Unit, module: GraphModule) -> None:
        with torch.no_grad():
            for some in self.parts(unit, slice(0, self.count)):
                outputs = module(*(stream.rows(name, some) for name in unit.inputs))
                for name, tensor in zip(unit.outputs, outputs, strict=True):
                    stream.put(name, some.start, self.count, tensor)


def _largest(model: FloatModel, unit: Unit) -> int:
    """Bytes of the largest tensor of a unit, of one image."""
    nodes = (model.nodes[name] for name in (*unit.inputs, *unit.nodes))
    return max(4 * math.prod(shape_of(node)[1:]) for node in nodes)
