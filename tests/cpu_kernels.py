"""Runs a CPU kernel on arrays, and what its arithmetic should give."""

import numpy as np
import tvm
from tvm.target import Target

from targets.cpu.host import CpuFeatures, host_sets, host_target
from targets.cpu.instruction_sets import AVX512_VNNI, AVX_VNNI, PLAIN, InstructionSet
from targets.cpu.kernel import Kernel
from targets.layers import Layer, Value
from targets.rounding import FLOOR, HALF_UP, Rounding

TARGET = host_target()


def _executed() -> dict[InstructionSet, Target]:
    """Instruction sets whose kernels run here, and the target that they are compiled for."""
    found = {each: each.target for each in host_sets()} | {PLAIN: TARGET}
    if AVX512_VNNI in found:  # has the same instructions of 256 bits, otherwise encoded
        found.setdefault(AVX_VNNI, TARGET)
    return found


EXECUTED = _executed()
RANGE = {"int8": (-128, 127), "uint8": (0, 255)}


def features(instructions: InstructionSet) -> CpuFeatures:
    return CpuFeatures(instructions, cores=2)


def run(
    kernel: Kernel, layer: Layer, inputs: list[np.ndarray], target: Target = TARGET
) -> np.ndarray:
    return call(compiled(kernel, target), kernel, layer, inputs)


def compiled(kernel: Kernel, target: Target = TARGET) -> tvm.runtime.Executable:
    """For any number of images."""
    return tvm.compile(kernel.func.with_attr("global_symbol", "main"), target=target)


def call(
    built: tvm.runtime.Executable, kernel: Kernel, layer: Layer, inputs: list[np.ndarray]
) -> np.ndarray:
    n = inputs[0].shape[0]
    # Poisoned, so that an element that is never written shows.
    out = np.full((n, *layer.output.shape), 77, layer.output.dtype)
    args = [tvm.runtime.tensor(a) for a in (*inputs, *kernel.constants, out)]
    built(*args)
    return args[-1].numpy()


def codes(rng: np.random.Generator, n: int, value: Value) -> np.ndarray:
    low, high = RANGE[value.dtype]
    return rng.integers(low, high + 1, (n, *value.shape)).astype(value.dtype)


def rounded(t: np.ndarray, shift: np.ndarray | int, rounding: Rounding) -> np.ndarray:
    shift = np.asarray(shift, np.int64)
    half = np.where(shift > 0, np.int64(1) << np.maximum(shift - 1, 0), 0)
    return (t + {HALF_UP: half, FLOOR: 0}[rounding]) >> shift
