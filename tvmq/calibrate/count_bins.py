"""How often the elements of a tensor fall into equal bins, compiled: calibration waits for it.

``torch.histc`` counts in float32, which stops at 2**24, and five times as slowly; ``bincount`` of
positions takes three times as long.
"""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import tvm
from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from targets.cpu.host import host_target

_TABLES = 4
"""Half of what a ReLU makes is 0, and a counter that is raised twice in a row waits for itself;
neighbours have tables of their own."""
_BLOCK = 256
"""Elements whose bins are worked out in vectors before they are counted one by one."""
_LANES = 16
"""Of a vector; longer ones don't stay in registers, which takes twice the time."""
_ALIGNMENT = 64
"""Bytes that TVM wants a tensor to begin at a multiple of."""
_SHARE = 1 << 18
"""Fewer elements are not worth a thread."""


def count_bins(elements: torch.Tensor, limit: float, bins: int) -> npt.NDArray[np.int64]:
    """Counts of ``bins`` equal bins over [-limit, limit).

    Args:
        elements: float32[n]. What lies beyond the limits counts in the outermost bins, as does
            what float32 rounds up to the upper limit.
        limit: a power of two, at least 2**-100.
        bins: even.

    Returns:
        int64[bins].
    """
    elements = elements.detach().contiguous()
    if elements.data_ptr() % _ALIGNMENT:  # a view into the middle of a tensor
        elements = elements.clone()
    each = max(_SHARE, -(-elements.numel() // torch.get_num_threads()))
    parts = elements.split(-(-each // _ALIGNMENT) * _ALIGNMENT)
    count, scale = _compiled(bins), bins / 2 / limit

    def counted(part: torch.Tensor) -> npt.NDArray[np.int64]:
        tables = tvm.runtime.tensor(np.zeros((_TABLES, bins + 1), np.int64))
        count(tvm.runtime.from_dlpack(part), scale, tables)
        return tables.numpy().sum(axis=0)

    if len(parts) == 1:
        counts = counted(parts[0])
    else:  # threads of this call only: those of a module would be missing in a forked process
        with ThreadPoolExecutor(len(parts)) as threads:
            counts = np.sum(list(threads.map(counted, parts)), axis=0)
    counts[-2] += counts[-1]
    return counts[:-1]


@functools.cache
def _compiled(bins: int) -> Any:
    """A function of (float32[n], scale, int64[_TABLES, bins + 1]), which adds to the tables."""
    with IRBuilder() as builder:
        with T.prim_func():
            T.func_name("count_bins")
            T.func_attr({"global_symbol": "count_bins"})
            given = T.arg("elements", T.handle())
            scale = T.arg("scale", tirx.Var("scale", "float32"))
            tables = T.match_buffer(T.arg("tables", T.handle()), (_TABLES, bins + 1), "int64")
            n = tirx.Var("n", "int64")
            elements = T.match_buffer(given, (n,), "float32")
            found = T.alloc_buffer((_BLOCK,), "int32")

            def position(at: Any) -> Any:
                place = elements[at] * scale + tirx.FloatImm("float32", bins / 2)
                # whatever a float says, nothing is written outside of the tables
                return tirx.max(tirx.min(tirx.Cast("int32", place), bins), 0)

            def count(table: Any, at: Any) -> None:
                T.buffer_store(tables, tables[table, at] + 1, [table, at])

            with T.serial(0, tirx.floordiv(n, _BLOCK)) as block:
                with T.serial(0, _BLOCK // _LANES) as vector, T.vectorized(0, _LANES) as lane:
                    i = vector * _LANES + lane
                    T.buffer_store(found, position(block * _BLOCK + i), [i])
                with T.serial(0, _BLOCK // _TABLES) as i, T.unroll(0, _TABLES) as table:
                    count(table, found[i * _TABLES + table])
            with T.serial(0, tirx.floormod(n, _BLOCK)) as i:
                count(0, position(n - 1 - i))
        function = builder.get()
    return tvm.compile(IRModule({"count_bins": function}), target=host_target())["count_bins"]
