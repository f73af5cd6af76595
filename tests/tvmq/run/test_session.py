"""Libraries of artifacts in one process."""

import numpy as np
import tvm
from tvm import relax

from tvmq.run.session import library_runner


def _export(path, factor):
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4,), "float32"))
    with builder.function("main", [x]):
        y = builder.emit(relax.op.multiply(x, relax.const(factor, "float32")))
        builder.emit_func_output(relax.Tuple([y]))
    tvm.compile(builder.get(), target="llvm").export_library(str(path))


def test_a_library_that_replaced_another_is_the_one_that_runs(tmp_path):
    path, x = tmp_path / "model.so", np.arange(4, dtype=np.float32)
    _export(path, 2.0)
    first = library_runner(path)
    np.testing.assert_array_equal(first([x])[0], 2 * x)
    path.unlink()
    _export(path, 3.0)
    second = library_runner(path)
    np.testing.assert_array_equal(second([x])[0], 3 * x)
    np.testing.assert_array_equal(first([x])[0], 2 * x)
