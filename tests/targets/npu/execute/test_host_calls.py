"""What the host does around a program: a trap becomes an error that says where and why."""

import numpy as np
import pytest
import tvm

from targets.cpu.host import host_target
from targets.layers import Value
from targets.npu.execute.executor import TRAPS
from targets.npu.execute.host_calls import unpack_output


@pytest.fixture(scope="module")
def unpack():
    """Of a batch of three images with four codes each."""
    compiled = tvm.compile(unpack_output(Value("y", (1, 1, 4), "int8"), 0, 4), target=host_target())
    codes = np.arange(12, dtype=np.int8).reshape(3, 4)

    def run(code, index):
        trap = np.zeros((3, 2), np.int32)
        trap[1] = code, index
        out = tvm.runtime.tensor(np.zeros((3, 1, 1, 4), np.int8))
        compiled(tvm.runtime.tensor(codes), tvm.runtime.tensor(trap), out)
        return out.numpy().reshape(3, 4), codes

    return run


@pytest.mark.parametrize("code", TRAPS)
@pytest.mark.parametrize("index", [0, 7, 10, 1203, 10**8 + 5])
def test_a_trap_is_an_error_with_its_index_and_reason(unpack, code, index):
    with pytest.raises(RuntimeError) as error:
        unpack(code, index)
    assert str(error.value) == f"the NPU trapped at instruction {index}: {TRAPS[code]}"


def test_without_a_trap_the_codes_come_out(unpack):
    np.testing.assert_array_equal(*unpack(0, 0))
