"""The proof that every build carries: reference, CPU and NPU give the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tvmq.calibrate.calibrate import Calibration
from tvmq.float_model import FloatModel
from tvmq.run.session import Array, library_runner, reference_runner

CALIBRATION_IMAGES = 4
NOISE_IMAGES = 2


def golden_inputs(model: FloatModel, calibration: Calibration, seed: int) -> dict[str, Array]:
    """A few inputs by name: calibration images where there are some, and always seeded noise.

    The noise is wide, so that codes reach both ends of their ranges.

    Returns:
        float32[N, ...] with 2 <= N <= 6.
    """
    generator = np.random.default_rng(seed)
    first = next(iter(calibration.batches()), ())
    golden = {}
    for index, spec in enumerate(model.inputs):
        noise = 2 * generator.standard_normal((NOISE_IMAGES, *spec.shape[1:]))
        parts = [noise.astype(np.float32)]
        if first:
            parts.append(first[index][:CALIBRATION_IMAGES].numpy())
        golden[spec.name] = np.concatenate(parts)
    return golden


def verify(folder: Path, model: FloatModel, inputs: dict[str, Array]) -> bool:
    """Compare model.so, cpu.so and the reference, and write golden.npz from the reference.

    Args:
        folder: of an artifact whose libraries and integer.json are written.
        model: for the names of inputs and outputs.
        inputs: float32[N, ...] by name.

    Returns:
        Whether all outputs are equal, bit for bit.
    """
    arrays = [inputs[spec.name] for spec in model.inputs]
    names = [spec.name for spec in model.inputs]
    expected = reference_runner(folder / "integer.json", names)(arrays)
    outputs = {spec.name: y for spec, y in zip(model.outputs, expected, strict=True)}
    golden: dict[str, Any] = {f"input.{name}": array for name, array in inputs.items()}
    golden |= {f"output.{name}": array for name, array in outputs.items()}
    np.savez(folder / "golden.npz", **golden)
    return all(
        np.array_equal(one, other)
        for library in ("model.so", "cpu.so")
        for one, other in zip(library_runner(folder / library)(arrays), expected, strict=True)
    )
