"""The int8 file that ONNX Runtime and OpenVINO run in ``benchmarks.cpu_peers``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch


def quantize_for_peers(
    program: torch.export.ExportedProgram, images: np.ndarray, weight_bits: int, path: Path
) -> None:
    """Export, and quantize by ONNX Runtime: static, QDQ, weights per channel.

    Args:
        program: for any batch.
        images: float32[N, 3, H, W], whose ranges count.
        weight_bits: 8 or 7.
        path: of the file.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is missing.
    """
    from onnx import load
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):  # type: ignore[misc]
        """Two images at a time, as the network was exported."""

        def __init__(self, name: str) -> None:
            self._left: Iterator[np.ndarray] = iter(images.reshape(-1, 2, *images.shape[1:]))
            self._name = name

        def get_next(self) -> dict[str, np.ndarray] | None:
            given = next(self._left, None)
            return None if given is None else {self._name: given}

    with tempfile.TemporaryDirectory() as room:
        exported, ready = Path(room) / "float.onnx", Path(room) / "ready.onnx"
        torch.onnx.export(program, (), exported, external_data=False, verbose=False)
        (graph_input,) = load(exported).graph.input
        quant_pre_process(str(exported), str(ready))
        quantize_static(
            str(ready),
            str(path),
            Images(graph_input.name),
            per_channel=True,
            reduce_range=weight_bits == 7,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            quant_format=QuantFormat.QDQ,
        )
