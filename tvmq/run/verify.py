"""The proof that every build carries: reference, CPU and NPU give the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from relay_passes.float_ends import HEAD, INTEGERS, TAIL
from tvmq.float_model import FloatModel, TensorSpec
from tvmq.noise import below
from tvmq.run.session import Array, LibraryRunner, ReferenceRunner

CALIBRATION_IMAGES = 4
NOISE_IMAGES = 2


def golden_inputs(
    model: FloatModel, first: Sequence[torch.Tensor], seed: int
) -> dict[str, npt.NDArray[Any]]:
    """A few inputs by name: calibration images where there are some, and always seeded noise.

    The noise is wide, so that codes reach both ends of their ranges.

    Args:
        model: for the names and shapes of the network's inputs.
        first: calibration images for each of them, or none.
        seed: of the noise.

    Returns:
        [N, ...] as the network reads them, with 2 <= N <= 6.
    """
    generator = np.random.default_rng(seed)
    golden = {}
    for index, spec in enumerate(model.network_inputs):
        shape = (NOISE_IMAGES, *spec.shape[1:])
        if spec.dtype == "float32":
            parts = [(2 * generator.standard_normal(shape)).astype(np.float32)]
        else:
            parts = [generator.integers(0, below(spec), shape).astype(spec.dtype)]
        if first:
            parts.append(first[index][:CALIBRATION_IMAGES].numpy())
        golden[spec.name] = np.concatenate(parts)
    return golden


def verify(
    folder: Path, model: FloatModel, inputs: dict[str, Array], libraries_in: Path | None = None
) -> bool:
    """Compare model.so, cpu.so and the reference, and write golden.npz from the reference.

    Where the network has float ends, the integers between them are compared by themselves, too.

    Args:
        folder: of an artifact whose libraries and integer.json are written.
        model: for the names of inputs and outputs.
        inputs: [N, ...] by name.
        libraries_in: where libraries that this machine executes are, if not in the folder.

    Returns:
        Whether all outputs are equal, bit for bit.
    """
    arrays = [inputs[spec.name] for spec in model.network_inputs]
    where = libraries_in or folder
    libraries = [LibraryRunner(where / name) for name in ("model.so", "cpu.so")]
    if model.ends is None:
        expected = between = ReferenceRunner(folder / "integer.json", libraries[-1])(arrays)
        found_between: list[list[Array]] = []
    else:
        given = libraries[-1](arrays, HEAD)
        read, passing = given[: len(model.inputs)], given[len(model.inputs) :]
        between = ReferenceRunner(folder / "integer.json", libraries[-1])(read)
        expected = libraries[-1]([*between, *passing], TAIL)
        found_between = [library(read, INTEGERS) for library in libraries]
    golden: dict[str, Any] = {f"input.{name}": array for name, array in inputs.items()}
    golden |= _named("output", model.network_outputs, expected)
    if model.ends is not None:
        golden |= _named("integers", model.outputs, between)
    np.savez(folder / "golden.npz", **golden)
    found = [library(arrays) for library in libraries]
    return all(same(outputs, between) for outputs in found_between) and all(
        same(outputs, expected) for outputs in found
    )


def _named(kind: str, specs: Sequence[TensorSpec], arrays: Sequence[Array]) -> dict[str, Array]:
    return {f"{kind}.{spec.name}": array for spec, array in zip(specs, arrays, strict=True)}


def same(found: Sequence[Array], expected: Sequence[Array]) -> bool:
    """Bit for bit; what is no number in both, as the root of a negative one, is the same."""
    return all(
        np.array_equal(one, other, equal_nan=other.dtype.kind == "f")
        for one, other in zip(found, expected, strict=True)
    )
