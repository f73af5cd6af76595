"""What units read, for all calibration images: from the float network and from the quantized one.

Both are carried forward unit by unit, so no prefix is ever run twice; what no later unit reads is
dropped. Codes take a byte each, float tensors four. Images are held as N H W C, the order in which
torch convolves fastest. Large tensors lie in memory-mapped files instead of memory.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.fx import GraphModule

from targets.errors import InputError
from tvmq.calibrate.calibrate import Calibration, Inputs
from tvmq.float_model import FloatModel
from tvmq.reconstruct.learned_steps import LearnedStep
from tvmq.reconstruct.pieces import pieces
from tvmq.reconstruct.unit_graph import QuantizedUnit
from tvmq.reconstruct.units import Unit
from tvmq.regions import find_regions

IN_MEMORY = 2**29
"""Bytes above which a tensor of all images lies in a file."""

BATCH = 64


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
        self.tensors: dict[str, torch.Tensor] = {}
        self.codes: dict[str, Codes] = {}

    def put(self, name: str, first: int, count: int, part: torch.Tensor) -> None:
        """Store the rows from ``first`` on, of ``count`` in all."""
        if name in self.codes:
            meaning = self.codes[name]
            part = torch.round(part / meaning.step - meaning.offset).to(torch.uint8)
        part = part.permute(0, 2, 3, 1) if part.dim() == 4 else part
        if name not in self.tensors:
            self.tensors[name] = self._allocate(name, (count, *part.shape[1:]), part.dtype)
        self.tensors[name][first : first + len(part)] = part

    def rows(self, name: str, which: torch.Tensor | slice) -> torch.Tensor:
        """float32 rows; images as N C H W in channels-last order."""
        tensor = self.tensors[name]
        # Indexing would go element by element, this copies whole rows.
        part = tensor[which] if isinstance(which, slice) else tensor.index_select(0, which)
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
            self.tensors.pop(name, None)
            (self.folder / f"{name}.bin").unlink(missing_ok=True)

    def _allocate(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        count = torch.Size(shape).numel()
        if count * dtype.itemsize <= IN_MEMORY:
            return torch.empty(shape, dtype=dtype)
        path = self.folder / f"{name}.bin"
        _reserve(path, count * dtype.itemsize)
        return torch.from_file(str(path), shared=True, size=count, dtype=dtype).reshape(shape)


def _reserve(path: Path, size: int) -> None:
    """Make a file with all its room: a mapped file that grows on a full disk kills the process.

    Raises:
        InputError: there is no such room.
    """
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise InputError(
            f"{tempfile.gettempdir()}: {error.strerror}: what a unit reads for all images needs "
            f"{math.ceil(size / 2**20):,} MB there. Free some, set the environment variable TMPDIR "
            "to a folder with more, or give fewer --calib-samples."
        ) from error


class UnitCache:
    """Both streams, and the place in the network that they have reached.

    Attributes:
        count: images.
        exact: of the float network.
        quantized: of the quantized one.
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
        parts: list[Inputs] = list(calibration.batches())
        self.count = sum(len(part[0]) for part in parts)
        names = [spec.name for spec in model.inputs]
        nodes = [n.name for n in model.graph_module.graph.nodes if n.op == "placeholder"]
        assert len(names) == len(nodes)
        with torch.no_grad():
            self._fill_inputs(nodes, parts)

    def digest(self) -> str:
        """Of all that the streams hold: at the start, of the calibration images."""
        digest = hashlib.sha256()
        for tensor in self.exact.tensors.values():
            digest.update(tensor.numpy().data)
        return digest.hexdigest()

    def close(self) -> None:
        """Remove the files."""
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

    def quantized_outputs(self, unit: QuantizedUnit, rows: slice) -> list[torch.Tensor]:
        """What the quantized unit gives for some images; nothing is stored."""
        names = unit.unit.inputs
        parts = []
        with torch.no_grad():
            for first in range(rows.start, rows.stop, BATCH):
                some = slice(first, min(first + BATCH, rows.stop))
                parts.append(unit(*(self.quantized.rows(name, some) for name in names)))
        return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]

    def _fill_inputs(self, nodes: Sequence[str], parts: Sequence[Inputs]) -> None:
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
            for first in range(0, self.count, BATCH):
                some = slice(first, min(first + BATCH, self.count))
                outputs = module(*(stream.rows(name, some) for name in unit.inputs))
                for name, tensor in zip(unit.outputs, outputs, strict=True):
                    stream.put(name, first, self.count, tensor)
