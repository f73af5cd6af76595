"""Layers that work stripe by stripe: the same numbers, no way through DRAM, fewer cycles."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
from npu_layers import FLAT, code_limits, conv, meaning, random_inputs
from random_networks import machine as random_machine

from targets.layers import Layer, Lut, MaxPool2d, Value
from targets.npu import cascade, compiler, layer_plan
from targets.npu.compiler import compile_layers
from targets.npu.constraints import refusal
from targets.npu.emit.emitted import Rolling
from targets.npu.execute.compiled import Executor
from targets.npu.layer_plan import plan_layers
from targets.npu.machine import isa
from targets.npu.machine.program import ARENA, Program
from targets.npu.machine.spec import NpuSpec, load_spec
from targets.npu.price.layer_costs import price
from targets.npu.simulate.interleave import at_random, by_priority, interleaved, youngest
from targets.npu.simulate.simulator import Simulator

E256 = load_spec("e256")


@functools.cache
def executor() -> Executor:
    return Executor(E256)


def with_act(size: int) -> NpuSpec:
    content = E256.model_dump()
    content["sram"]["act"]["bytes"] = size
    return NpuSpec.model_validate(content)


def chained(*layers: Layer) -> list[Layer]:
    """The layers, each reading what the one before it makes."""
    chain: list[Layer] = []
    for n, layer in enumerate(layers):
        source = {"input": chain[-1].output} if chain else {}
        chain.append(replace(layer, **source, output=replace(layer.output, name=f"v{n}")))
    return chain


def pooled(source: Value, window: int = 3, stride: int = 2, padding=(1, 1, 1, 1)) -> MaxPool2d:
    height, width = (
        (n + padding[k] + padding[k + 2] - window) // stride + 1
        for k, n in enumerate(source.shape[:2])
    )
    output = Value("pooled", (height, width, source.shape[2]), source.dtype, source.bits)
    return MaxPool2d("pool", "", source, output, (window, window), (stride, stride), padding)


def stem(size: int = 128, bits: int = 8) -> list[Layer]:
    """A convolution, the pooling behind it, and one that reads what that makes."""
    first = conv((size, size, 3), 64, (7, 7), strides=(2, 2), padding=(3, 3, 3, 3), out_bits=bits)
    pool = pooled(first.output)
    last = conv(pool.output.shape, 16, (1, 1), padding=FLAT, bits=bits, seed=2)
    return chained(first, pool, last)


def inverted(stride: int = 1, size: int = 40) -> list[Layer]:
    """Expand, depthwise, project."""
    expand = conv((size, size, 16), 96, (1, 1), padding=FLAT, seed=1)
    wide = expand.output.shape
    depthwise = conv(wide, 96, groups=96, strides=(stride, stride), seed=2)
    project = conv(depthwise.output.shape, 24, (1, 1), padding=FLAT, seed=3)
    return chained(expand, depthwise, project)


def expected(layers: list[Layer], x: np.ndarray) -> np.ndarray:
    for layer in layers:
        x = meaning(layer, [x]).astype(layer.output.dtype).reshape(layer.output.shape)
    return x


def compiled(layers: list[Layer], spec: NpuSpec) -> Program:
    return compile_layers(layers, layers[0].inputs, [layers[-1].output], spec)


def spans(layers: list[Layer], spec: NpuSpec) -> list[range]:
    plan = plan_layers(
        layers, layers[0].inputs, [layers[-1].output], spec, compiler.cycles_together
    )
    return [each.span for each in plan.cascades]


def cycles(program: Program, spec: NpuSpec) -> int:
    return price(program, spec).timeline.total


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_pooling_works_beside_the_layer_before(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = stem(bits=bits)
    assert set(range(2)) <= set(spans(layers, E256)[0])
    program = compiled(layers, E256)
    monkeypatch.setattr(layer_plan, "choose_cascades", lambda *_: [])
    assert cycles(program, E256) < cycles(compiled(layers, E256), E256)
    images = [random_inputs(layers[0], seed)[0] for seed in range(2)]
    packed = np.stack([x.reshape(-1).view(np.uint8) for x in images])
    got = executor().run(Program.from_bytes(program.to_bytes()), packed)
    want = np.stack([expected(layers, x) for x in images])
    np.testing.assert_array_equal(got.reshape(want.shape), want)
    np.testing.assert_array_equal(Simulator(E256).run(program, packed[0]), got[0])


@pytest.mark.parametrize("stride", [1, 2])
def test_what_is_expanded_does_not_pass_through_dram(stride: int) -> None:
    layers, spec = inverted(stride), with_act(49152)
    assert spans(layers, spec) == [range(3)]
    program = compiled(layers, spec)
    moved = [i for i in program.instructions if isinstance(i, isa.Load | isa.Store)]
    assert program.arena_bytes == 0
    assert all(i.region != ARENA for i in moved if not getattr(i, "fill", 0))
    (x,) = random_inputs(layers[0], 0)
    data = x.reshape(-1).view(np.uint8)
    got = Simulator(spec).run(program, data)
    np.testing.assert_array_equal(got, expected(layers, x).reshape(-1).view(np.uint8))
    for order in (youngest, at_random(1), by_priority((3, 2, 1, 0), program)):
        np.testing.assert_array_equal(Simulator(spec).run(program, data, interleaved(order)), got)


def test_what_a_cascade_reads_stays_until_its_last_layer_is_done() -> None:
    x = Value("x", (40, 40, 16), "uint8", 8)
    table = Lut("lut", "", x, replace(x, name="v"), bytes(range(255, -1, -1)))
    layers = chained(table, *inverted(), conv((40, 40, 24), 8, seed=8))
    spec = with_act(49152)
    plan = plan_layers(layers, [x], [layers[-1].output], spec, compiler.cycles_together)
    assert range(1, 4) in [each.span for each in plan.cascades]
    assert not any(resident.first in (0, 3) for resident in plan.residents)
    (data,) = random_inputs(table, 0)
    got = Simulator(spec).run(compiled(layers, spec), data.reshape(-1).view(np.uint8))
    np.testing.assert_array_equal(got, expected(layers, data).reshape(-1).view(np.uint8))


def test_a_cascade_that_takes_longer_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    layers, spec = inverted(), with_act(49152)
    slower = {True: 2, False: 1}
    monkeypatch.setattr(
        compiler, "cycles_together", lambda plan, _span, _spec: slower[bool(plan.cascades)]
    )
    assert compiled(layers, spec).arena_bytes > 0


def test_no_cascade_where_act_holds_what_is_between() -> None:
    assert spans(inverted(size=14), E256) == []


def test_no_cascade_of_a_tensor_that_is_read_again() -> None:
    first, pool, last = stem()
    again = conv(first.output.shape, 8, (1, 1), padding=FLAT, seed=5)
    again = replace(again, input=first.output, output=replace(again.output, name="again"))
    layers = [first, pool, last, again]
    plan = plan_layers(layers, first.inputs, [last.output, again.output], E256)
    assert 0 not in [n for each in plan.cascades for n in each.span]


@pytest.mark.parametrize(("period", "overlap"), [(4, 1), (6, 2), (5, 3), (5, 0)])
def test_rows_lie_where_a_window_finds_them(period: int, overlap: int) -> None:
    rolling = Rolling(1, period, overlap)
    places, made = [-1] * rolling.rows, 0
    for window in range(40):
        rows = list(range(window, window + overlap + 1))
        while made <= rows[-1]:
            end = min(made + 1 + window % 3, window + period)
            for begin, stop, place in rolling.written(made, end):
                places[place : place + stop - begin] = range(begin, stop)
            made = end
        at = rolling.read(window)
        assert places[at : at + len(rows)] == rows


def drawn(rng: np.random.Generator) -> list[Layer]:
    """Layers with windows of any size, one behind the other."""
    shape = tuple(int(n) for n in rng.integers((12, 3, 1), (40, 14, 20)))
    bits = int(rng.choice([8, 8, 4, 2]))
    layers: list[Layer] = []
    for n in range(int(rng.integers(2, 6))):
        source = layers[-1].output if layers else Value("x", shape, "uint8", bits)
        kernel = int(rng.integers(1, 4)), int(rng.integers(1, min(4, source.shape[1] + 1)))
        stride = int(rng.integers(1, 3)), int(rng.integers(1, 3))
        padding = tuple(int(k) for k in rng.integers(0, 3, 4))
        if rng.random() < 0.3:
            padding = tuple(min(p, 1) for p in padding)
            window, step = int(rng.integers(2, 4)), int(rng.integers(1, 3))
            if min(source.shape[:2]) < window:
                break
            layer: Layer = pooled(source, window, step, padding)
        else:
            channels = int(rng.integers(1, 24))
            groups = source.shape[2] if rng.random() < 0.4 else 1
            made = conv(
                source.shape,
                groups if groups > 1 else channels,
                kernel,
                strides=stride,
                padding=padding,
                groups=groups,
                dtype=source.dtype,
                bits=source.bits,
                out_bits=int(rng.choice([8, 4, 2])),
                zero_point=int(rng.integers(0, 2)),
                seed=n,
            )
            layer = replace(made, input=source)
        layers.append(replace(layer, output=replace(layer.output, name=f"v{n}")))
    return layers


@pytest.mark.parametrize(
    "seed", [pytest.param(n, marks=() if n < 12 else pytest.mark.slow) for n in range(200)]
)
def test_any_cascade_computes_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cascade, "_cycles", lambda _: -seed)
    monkeypatch.setattr(compiler, "cycles_together", lambda plan, _span, _spec: -len(plan.cascades))
    rng = np.random.default_rng(seed)
    spec = random_machine(rng)
    layers = drawn(rng)
    if any(refusal(layer, spec) for layer in layers):
        pytest.skip("the machine refuses a layer that was drawn")
    first = layers[0].inputs[0]
    low, high = code_limits(first)
    x = rng.integers(low, high + 1, first.shape).astype(first.dtype)
    program = compiled(layers, spec)
    data = np.frombuffer(x.tobytes(), np.uint8)
    got = Simulator(spec).run(program, data)
    want = expected(layers, x)
    np.testing.assert_array_equal(got.view(want.dtype).reshape(want.shape), want)
    for order in (youngest, at_random(seed)):
        np.testing.assert_array_equal(Simulator(spec).run(program, data, interleaved(order)), got)
