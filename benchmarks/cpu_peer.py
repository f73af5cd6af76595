"""A process of ``benchmarks.cpu_peers``: loads one network, and times it whenever it is told to.

    python -m benchmarks.cpu_peer tvmq|onnxruntime|openvino FILE BATCH

Threads are those of TVM_NUM_THREADS. It writes ``ready``, then for each line that it reads the
seconds of a turn: the least of some runs, CPU time with one thread, else time on the clock.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.resnet18 import PIXELS

WARM, TURN_SECONDS, RUNS = 5, 0.05, 5
THREADS = int(os.environ.get("TVM_NUM_THREADS", "1"))

Run = Callable[[], Any]


def main() -> None:
    """Load, then time until the input ends."""
    name, path, batch = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    image = np.random.default_rng(0).standard_normal((batch, 3, PIXELS, PIXELS))
    run = LOADERS[name](path, image.astype(np.float32))
    clock = time.process_time if THREADS == 1 else time.perf_counter
    for _ in range(WARM):
        run()
    print("ready", flush=True)
    for _ in sys.stdin:
        times: list[float] = []
        while len(times) < RUNS or sum(times) < TURN_SECONDS:
            begin = clock()
            run()
            times.append(clock() - begin)
        print(min(times), flush=True)


def of_tvmq(path: Path, image: np.ndarray) -> Run:
    """A library that tvmq built."""
    import tvm

    from tvmq.run.session import load_library

    machine, tensor = load_library(path), tvm.runtime.tensor(image)
    return lambda: machine["main"](tensor)


def of_onnxruntime(path: Path, image: np.ndarray) -> Run:
    """An ONNX file, its batch fixed."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = THREADS, 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    dynamic = [size for size in session.get_inputs()[0].shape if isinstance(size, str)]
    for size in dynamic:
        options.add_free_dimension_override_by_name(size, len(image))
    if dynamic:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: image}
    return lambda: session.run(None, given)


def of_openvino(path: Path, image: np.ndarray) -> Run:
    """An ONNX file, its batch fixed; what stays in float is float32, as for everybody."""
    import openvino

    model = openvino.Core().read_model(path)
    model.reshape({model.inputs[0]: list(image.shape)})
    options = {
        "INFERENCE_NUM_THREADS": THREADS,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    return lambda: request.infer([image])


LOADERS = {"tvmq": of_tvmq, "onnxruntime": of_onnxruntime, "openvino": of_openvino}


if __name__ == "__main__":
    main()
