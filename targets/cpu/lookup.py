"""Tables of 256 bytes applied to every element."""

from __future__ import annotations

import numpy as np
from tvm import te, tirx

from targets.cpu.elements import function, placeholder, schedule_elements
from targets.cpu.host import CpuFeatures
from targets.cpu.kernel import Kernel
from targets.layers import Lut


def build_lut(layer: Lut, _host: CpuFeatures) -> Kernel:
    """A byte for every byte."""
    n = tirx.Var("n", "int64")
    x = placeholder(n, layer.input, "x")
    table = te.placeholder((256,), layer.output.dtype, name="table")
    out = te.compute(
        (n, *layer.output.shape),
        lambda *at: table[x[at].astype("uint8").astype("int32")],
        name="out",
    )
    constant = np.frombuffer(layer.table, np.dtype(layer.output.dtype)).copy()
    # No vectors: there is no instruction that looks up 256 bytes.
    func = schedule_elements(function([x, table, out]), layer.output.shape, vectors=False)
    return Kernel(func, (constant,))
