"""What the host does around a program: codes into bytes and out of them."""

import numpy as np
import pytest
import tvm

from targets.cpu.host import host_target
from targets.layers import Value
from targets.npu.execute.host_calls import pack_inputs, unpack_output


def _call(function, *arrays):
    tensors = [tvm.runtime.tensor(array) for array in arrays]
    tvm.compile(function, target=host_target())(*tensors)
    return tensors[-1].numpy()


def test_inputs_lie_one_behind_the_other():
    shapes = {"a": (1, 2, 2), "b": (1, 1, 3), "c": (2, 1, 1)}
    values = [
        Value(name, shape, "uint8" if name == "a" else "int8") for name, shape in shapes.items()
    ]
    a, b, c = np.arange(8, dtype=np.uint8) + 250, np.arange(6, dtype=np.int8) - 3, np.arange(4)
    arrays = [
        x.astype(v.dtype).reshape(2, *v.shape) for x, v in zip((a, b, c), values, strict=True)
    ]
    packed = _call(pack_inputs(values, {}), *arrays, np.zeros((2, 9), np.int8))
    want = np.concatenate([x.view(np.int8).reshape(2, -1) for x in arrays], axis=1)
    np.testing.assert_array_equal(packed, want)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32"])
def test_outputs_are_found_at_their_offset(dtype):
    want = np.array([[[[-3, 100]]], [[[120, -128]]]]).astype(dtype)
    raw = np.zeros((2, 5 + want[0].nbytes), np.int8)
    raw[:, 5:] = want.view(np.int8).reshape(2, -1)
    unpack = unpack_output(Value("y", (1, 1, 2), dtype), 5, raw.shape[1])
    np.testing.assert_array_equal(_call(unpack, raw, np.zeros((2, 1, 1, 2), dtype)), want)
