"""What no program on no machine may break: bounds, conservation, monotonicity, determinism."""

import math
from fractions import Fraction

import numpy as np
import pytest
from layer_programs import program_of
from machines import varied
from npu_layers import LAYERS, random_inputs

from targets.layers import Constant, Conv2d, Layer, Move, Weights
from targets.npu.convolution.geometry import ConvGeometry
from targets.npu.machine import isa
from targets.npu.machine.program import CONSTANTS, INPUTS, OUTPUTS
from targets.npu.machine.spec import NpuSpec, load_spec
from targets.npu.price.accesses import accesses, dram_bytes
from targets.npu.price.durations import duration
from targets.npu.price.energy import mac_picojoules
from targets.npu.price.layer_costs import price
from targets.npu.price.stalls import totals
from targets.npu.price.timing import simulate_timing
from targets.npu.schedule.job import Job
from targets.npu.simulate.simulator import Simulator

MACHINES = {name: load_spec(name) for name in ("e256", "m2048")}
CASES = [(name, machine) for machine in MACHINES for name in LAYERS]


@pytest.fixture(scope="module")
def programs():
    return {case: program_of(*case) for case in CASES}


def touched(layer) -> dict[int, int]:
    """Bytes per region that some output depends on, or that are the output: each counted once."""
    bytes_in = 0
    for value in layer.inputs:
        h, w, c = value.shape
        if isinstance(layer, Conv2d) and value is layer.input:
            h, w = (
                len(read(size, layer.output.shape[axis], axis, layer))
                for axis, size in enumerate((h, w))
            )
        if isinstance(layer, Move):
            continue
        bytes_in += h * w * c * value.bits // 8
    if isinstance(layer, Move):
        bytes_in = sum(math.prod(piece.size) for piece in layer.pieces)
    itemsize = 4 if layer.output.dtype == "int32" else 1
    right = layer.right if isinstance(layer, Conv2d) else None
    weights = right.codes.size * right.bits // 8 if isinstance(right, Weights) else 0
    weights += layer.codes.size if isinstance(layer, Constant) else 0
    return {
        INPUTS: bytes_in,
        OUTPUTS: math.prod(layer.output.shape) * itemsize,
        CONSTANTS: weights,
    }


def read(size: int, outputs: int, axis: int, layer: Conv2d) -> set[int]:
    """Rows (or columns) of the input that some output depends on."""
    kernel = layer.weight_shape[1 + axis]
    stride, dilation, padding = (x[axis] for x in (layer.strides, layer.dilation, layer.padding))
    rows = {o * stride + tap * dilation - padding for o in range(outputs) for tap in range(kernel)}
    return {row for row in rows if 0 <= row < size}


@pytest.mark.parametrize(("name", "machine"), CASES)
def test_no_bound_is_beaten(name, machine, programs):
    layer, spec, program = LAYERS[name], MACHINES[machine], programs[name, machine]
    priced = price(program, spec)
    total = priced.timeline.total
    widest = max(layer.input.bits, layer.right.bits) if isinstance(layer, Conv2d) else 8
    assert total * spec.peak_macs_per_cycle * 8 // widest >= layer.macs
    fewest = sum(touched(layer).values()) + len(program.instructions) * spec.issue.insn_bytes
    assert total * spec.dma.bytes_per_cycle >= fewest
    requantizes = [i for i in program.instructions if isinstance(i, isa.Requantize)]
    if requantizes:
        lanes = spec.vu.mult_lanes if requantizes[0].multiply else spec.vu.shift_lanes
        assert total * lanes >= math.prod(layer.output.shape)
    gemms = [i for i in program.instructions if isinstance(i, isa.Gemm)]
    weights = spec.array.weight_cycles
    assert total >= sum(i.k0 * i.k1 * i.k2 * max(i.m0 * i.m1, weights) for i in gemms)
    drain = spec.array.fill_cycles if gemms else 0
    assert total >= spec.dma.read_latency + spec.dma.write_latency + drain
    cost = priced.layers[0]
    table = spec.energy.named()
    width = max((mac_picojoules(i, table) for i in gemms), default=0)
    least = layer.macs * width + sum(touched(layer).values()) * table.dram_byte
    assert cost.picojoules >= least


@pytest.mark.parametrize(("name", "machine"), CASES)
def test_busy_and_stalls_are_the_total(name, machine, programs):
    priced = price(programs[name, machine], MACHINES[machine])
    for spans in priced.spans:
        assert sum(totals(spans).values()) == priced.timeline.total
    for unit, spans in enumerate(priced.spans):
        work = sum(
            duration(i, MACHINES[machine]).work + duration(i, MACHINES[machine]).bus
            for i in programs[name, machine].instructions
            if i.unit == unit
        )
        # A fill of LD may run while data of an earlier load is on the bus: one cycle, not two.
        fills = unit == isa.LD
        assert totals(spans)["work"] <= work if fills else totals(spans)["work"] == work


@pytest.mark.parametrize(("name", "machine"), CASES)
def test_macs_and_bytes_are_conserved(name, machine, programs):
    """Against the layer's own counts, byte by byte, and against what the simulator counted."""
    layer, spec, program = LAYERS[name], MACHINES[machine], programs[name, machine]
    products = sum(accesses(i, spec).macs for i in program.instructions)
    # columns that have unlike factors are worked on in passes, the others with weights of 0
    scaled = isinstance(layer, Conv2d) and getattr(layer.right, "factors", None) is not None
    passes = ConvGeometry(Job.alone(layer, spec)).passes.each if scaled else 1
    assert layer.macs <= products <= layer.macs * tile_padding(layer, spec) * passes
    written = np.zeros(program.output_bytes, np.int64)
    loaded = {INPUTS: np.zeros(program.input_bytes, bool)}
    loaded[CONSTANTS] = np.zeros(len(program.constants), bool)
    for i in program.instructions:
        if isinstance(i, isa.Load) and not i.fill and i.region in loaded:
            loaded[i.region][moved(i)] = True
        if isinstance(i, isa.Store) and i.region == OUTPUTS:
            np.add.at(written, moved(i), 1)
    np.testing.assert_array_equal(written, 1)
    assert loaded[INPUTS].sum() >= touched(layer)[INPUTS]
    assert loaded[CONSTANTS].sum() >= touched(layer)[CONSTANTS]
    simulator = Simulator(spec)
    simulator.run(program, b"".join(x.tobytes() for x in random_inputs(layer)))
    counted = simulator.counters
    assert counted.macs == products
    assert counted.loaded + counted.stored == sum(dram_bytes(i) for i in program.instructions)


def tile_padding(layer: Layer, spec: NpuSpec) -> Fraction:
    """How many products there are at most per MAC: reduction tiles may be filled up with zeros."""
    if not isinstance(layer, Conv2d) or layer.depthwise:
        return Fraction(1)
    depth = layer.weight_shape[3]
    lanes = spec.array.rows * 8 // max(layer.input.bits, layer.right.bits)
    return Fraction(-(-depth // lanes) * lanes, depth)


def test_some_layers_fill_their_tiles():
    """So that the law above is an equation for some."""
    convolutions = [layer for layer in LAYERS.values() if isinstance(layer, Conv2d)]
    for spec in MACHINES.values():
        assert sum(tile_padding(layer, spec) == 1 for layer in convolutions) >= 4


def moved(i: isa.Load | isa.Store) -> np.ndarray:
    """Offsets of the DRAM bytes of a transfer."""
    planes = np.arange(i.z)[:, None, None] * i.dram_zstride
    rows = np.arange(i.y)[:, None] * i.dram_ystride
    return (i.dram_off + planes + rows + np.arange(i.x_bytes)).reshape(-1)


FASTER = {
    "dma": {
        "bytes_per_cycle": lambda n: 2 * n,
        "read_latency": lambda n: n // 2,
        "write_latency": lambda n: n // 2,
        "outstanding": lambda n: n + 1,
    },
    "vu": {
        "shift_lanes": lambda n: 2 * n,
        "mult_lanes": lambda n: 2 * n,
        "elt_lanes": lambda n: 2 * n,
        "pool_lanes": lambda n: 2 * n,
        "lut_lanes": lambda n: 2 * n,
        "root_bits": lambda n: 2 * n,
        "latency": lambda n: n // 2,
    },
    "issue": {
        "decode": lambda n: n // 2,
        "queue_depth": lambda n: 2 * n,
        "token_depth": lambda n: n + 1,
    },
    "array": {"weight_rows_per_cycle": lambda n: 2 * n, "min_rows": lambda n: max(1, n // 2)},
}
CHANGES = [(part, field) for part, fields in FASTER.items() for field in fields]


@pytest.mark.parametrize(("part", "field"), CHANGES, ids=lambda value: value)
def test_a_faster_part_never_makes_a_program_slower(part, field, programs):
    """Exactly so where the units do not share a bus; from random other settings of the machine."""
    rng = np.random.default_rng(CHANGES.index((part, field)))
    changed = 0
    third = CHANGES.index((part, field)) % 3  # of the programs: each change has many
    for (name, machine), program in list(programs.items())[third::3]:
        spec = varied(
            MACHINES[machine],
            "dma",
            arbiter="private",
            bytes_per_cycle=int(rng.integers(1, 40)),
            read_latency=int(rng.integers(0, 400)),
            outstanding=int(rng.integers(1, 6)),
        )
        spec = varied(
            spec, "issue", decode=int(rng.integers(0, 20)), queue_depth=int(rng.integers(1, 9))
        )
        lanes = {name: int(rng.integers(1, 9)) for name in FASTER["vu"] if name != "latency"}
        spec = varied(spec, "vu", **lanes)
        spec = varied(
            spec,
            "array",
            min_rows=int(rng.integers(4, 200)),
            weight_rows_per_cycle=int(rng.integers(1, 4)),
        )
        better = FASTER[part][field](getattr(getattr(spec, part), field))
        fast = varied(spec, part, **{field: better})
        before, after = (simulate_timing(program.instructions, each).total for each in (spec, fast))
        assert after <= before, (name, machine)
        changed += after < before
    # A deeper FIFO helps no program here: NOPs were put in for the depth it was compiled for.
    assert changed > 0 or field == "token_depth"


def test_the_clock_changes_no_cycles_and_runs_are_repeatable(programs):
    program = programs["square", "e256"]
    spec = MACHINES["e256"]
    first = simulate_timing(program.instructions, spec)
    assert simulate_timing(program.instructions, spec) == first
    slower = varied(spec, clock_hz=1)
    assert simulate_timing(program.instructions, slower) == first
    assert all(isinstance(value, int) for run in first.runs for value in (run.start, run.done))


def test_twice_the_pixels_twice_the_array_time():
    for k in (1, 7):
        once, twice = (
            duration(isa.Gemm(m0=100, m1=m, k0=k, kvalid=16, nvalid=16), MACHINES["e256"]).work
            for m in (3, 6)
        )
        assert twice == 2 * once
