"""Schedules: plain TIR equals NumPy, tensorization leaves no arithmetic, capacity is checked."""

import numpy as np
import pytest
import tvm
from npu_layers import LAYERS, conv, meaning, random_inputs
from tvm.s_tir import TensorIntrin
from unoptimized import LLVM

from targets.errors import CapacityError
from targets.layers import Layer
from targets.npu.constraints import refusal
from targets.npu.emit.loop_tree import Branch, Leaf, Loop, read_function
from targets.npu.kinds.table import kind_of, plan
from targets.npu.machine.spec import NpuSpec, load_spec, parse_spec
from targets.npu.schedule import intrinsics
from targets.npu.schedule.job import Job
from targets.npu.schedule.meanings import (
    AddFields,
    MaxFields,
    MultiplyFields,
    ProductFields,
    RequantizeRow,
)
from targets.npu.schedule.row_meanings import NormFields, SoftmaxFields
from targets.npu.schedule.scheduled import Scheduled
from targets.npu.target import lower
from targets.rounding import RoundingMode

MACHINES = {name: load_spec(name) for name in ("e256", "m2048")}


def schedule(layer: Layer, spec: NpuSpec) -> Scheduled:
    return plan(Job.alone(layer, spec)).scheduled


def tiny_machine(**sram: int):
    """e256 with memories of other sizes."""
    text = MACHINES["e256"].model_dump()
    for name, size in sram.items():
        text["sram"][name]["bytes"] = size
    return type(MACHINES["e256"]).model_validate(text)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", LAYERS)
def test_plain_function_equals_numpy(name: str, machine: str) -> None:
    check(LAYERS[name], schedule(LAYERS[name], MACHINES[machine]))


@pytest.mark.parametrize(
    "name",
    [
        *("square", "depthwise", "weights_in_blocks", "add", "lut", "max_pool"),
        *("concat_slice_and_fill", "softmax_of_heads", "norm"),
        *("columns_of_large_windows", "rows_of_windows"),
    ],
)
def test_the_last_choice_computes_the_same(name: str) -> None:
    """Nothing about a choice but its cycles: whatever is chosen, the numbers stay."""
    layer = LAYERS[name]
    job, kind = Job.alone(layer, MACHINES["e256"]), kind_of(layer)
    *_, last = kind.choices(job)
    assert last != plan(job).choice
    check(layer, kind.schedule(job, last))


def check(layer: Layer, scheduled: Scheduled) -> None:
    """Compare the plain function with NumPy."""
    inputs = random_inputs(layer)

    # Lowered as for the NPU: the default pipeline moves scratchpads into loops, and they forget.
    function = tvm.compile(lower(scheduled.plain), target=LLVM)
    out = tvm.runtime.tensor(np.zeros(int(np.prod(layer.output.shape)), layer.output.dtype))
    arrays = [x.reshape(-1) for x in inputs] + [
        np.ascontiguousarray(c) for c in scheduled.constants.values()
    ]
    function(*[tvm.runtime.tensor(a) for a in arrays], out)

    np.testing.assert_array_equal(out.numpy().reshape(layer.output.shape), meaning(layer, inputs))


def leaves(node) -> list[Leaf]:
    if isinstance(node, Leaf):
        return [node]
    if isinstance(node, Loop | Branch):
        return leaves(node.body)
    return [leaf for child in node.nodes for leaf in leaves(child)]


@pytest.mark.parametrize("name", LAYERS)
def test_tensorized_function_computes_only_by_intrinsics(name: str) -> None:
    """Every statement is a copy, a fill or a call; the reader raises on other arithmetic."""
    tree, _ = read_function(lower(schedule(LAYERS[name], MACHINES["e256"]).func))
    kinds = {leaf.kind for leaf in leaves(tree)}
    assert kinds <= {
        "copy",
        "fill",
        "npu.gemm",
        "npu.dwconv",
        "npu.requantize",
        "npu.max",
        "npu.add",
        "npu.multiply",
        "npu.lut",
        "npu.softmax",
        "npu.norm",
    }


def test_intrinsic_descriptions_run_on_their_own() -> None:
    """The meaning of a GEMM tile is executable TIR; unsigned activations, one fraction bit."""
    fields = ProductFields(16, 16, 8, 8, "uint8", 1, 16, 16, 1)
    desc = TensorIntrin.get(intrinsics.product(fields)).desc
    rng = np.random.default_rng(0)
    act = rng.integers(0, 256, 16).astype(np.uint8)
    wgt = rng.integers(-128, 128, (16, 16)).astype(np.int8)
    acc = rng.integers(-(1 << 20), 1 << 20, 16).astype(np.int32)
    tensors = [tvm.runtime.tensor(a) for a in (act, wgt.reshape(-1), acc)]
    tvm.compile(desc, target=LLVM)(*tensors)
    want = acc + ((act.astype(np.int64) @ wgt.astype(np.int64)) << 1)
    np.testing.assert_array_equal(tensors[2].numpy(), want)


def test_intrinsics_are_registered_once() -> None:
    fields = ProductFields(0, 16, 8, 8, "int8", 0, 16, 16, 1)
    assert intrinsics.product(fields) == intrinsics.product(fields)


@pytest.mark.parametrize(
    ("memories", "match"),
    [
        ({"act": 512}, "bytes of ACT, the machine has 512"),
        ({"wgt": 1024}, "a row of a 3x3 kernel needs 768 bytes of weights per tile, half of WGT"),
    ],
    ids=["act", "wgt"],
)
def test_a_layer_that_does_not_fit_is_refused_in_words(
    memories: dict[str, int], match: str
) -> None:
    with pytest.raises(CapacityError, match=match):
        schedule(conv((14, 14, 256), 320), tiny_machine(**memories))


def test_machine_text_names_the_bad_field() -> None:
    with pytest.raises(Exception, match="array"):
        parse_spec("name = 'x'", "mine.toml")


def test_a_machine_that_does_not_multiply_bytes_refuses_in_words() -> None:
    text = MACHINES["e256"].model_dump()
    text["array"]["precisions"] = [4, 2]
    narrow = type(MACHINES["e256"]).model_validate(text)
    layer = conv((6, 6, 8), 8)
    assert refusal(layer, MACHINES["e256"]) is None
    assert "Here: array.precisions is [4, 2]." in str(refusal(layer, narrow))


@pytest.mark.parametrize(
    ("call", "fields"),
    [
        ("npu.gemm", ProductFields(32, 16, 8, 4, "uint8", 1, 9, 7, 2)),
        (
            "npu.requantize",
            RequantizeRow(3, True, -5, -8, 7, "int8", RoundingMode.FLOOR, "", 2, 9, 4, channels=6),
        ),
        (
            "npu.requantize",
            RequantizeRow(3, False, 5, 0, 9, "uint8", RoundingMode.HALF_UP, "int8", channels=16),
        ),
        ("npu.max", MaxFields("int8", 2)),
        ("npu.multiply", MultiplyFields("int8", -4, "uint8", 5, 6, 7, 8, 9, -10, 11, "int8")),
        ("npu.add", AddFields("int8", -4, 3, 2, "uint8", 5, 6, 7, 8, 9, -10, 11, "int8", 4)),
        (
            "npu.softmax",
            SoftmaxFields(9, 0, 40001, 37, -3, -128, 127, RoundingMode.HALF_UP, "uint8", "int8"),
        ),
        (
            "npu.norm",
            NormFields(
                *(48, 2, 1, 21, 5, 0, 255, RoundingMode.FLOOR, "int8", "uint8"),
                lift=13,
                normed_fraction=12,
                centred=False,
                input_zero_point=-7,
            ),
        ),
    ],
)
def test_the_integers_of_a_call_say_its_fields(call, fields):
    numbers = intrinsics.immediates(fields)
    assert all(type(n) is int for n in numbers)
    assert intrinsics.read_fields(call, numbers) == fields
