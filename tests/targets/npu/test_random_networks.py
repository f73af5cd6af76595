"""Any network on any machine: the program computes the network, in any order of the units."""

import numpy as np
import pytest
from npu_layers import code_limits
from random_networks import machine, network

from targets.layers import Norm, Softmax
from targets.npu.compiler import compile_layers
from targets.npu.simulate.interleave import at_random, by_priority, interleaved, youngest
from targets.npu.simulate.simulator import Simulator

QUICK = [*range(10), 320]
"""320: chunks of unequal width beside a partly filled reduction tile."""
ALL = 400


WITH_ROWS = 100
SEEDS = [
    pytest.param(n, rows, marks=() if n in QUICK else pytest.mark.slow)
    for rows in (False, True)
    for n in range(ALL)
    if n in QUICK or not rows or n < WITH_ROWS
]


@pytest.mark.parametrize(("seed", "rows"), SEEDS)
def test_the_program_computes_the_network(seed, rows):
    rng = np.random.default_rng(seed)
    spec = machine(rng)
    drawn = network(rng, spec, rows=rows)
    if not drawn.layers:
        pytest.skip("the machine refuses every layer that was drawn")
    low, high = code_limits(drawn.input)
    x = rng.integers(low, high + 1, drawn.input.shape).astype(drawn.input.dtype)
    program = compile_layers(drawn.layers, [drawn.input], drawn.outputs, spec)
    data = np.frombuffer(x.tobytes(), np.uint8)
    got = Simulator(spec).run(program, data)
    np.testing.assert_array_equal(got, drawn.meaning(x))
    for choose in (youngest, at_random(seed), by_priority((3, 2, 1, 0), program)):
        other = Simulator(spec).run(program, data, interleaved(choose))
        np.testing.assert_array_equal(other, got)


@pytest.mark.parametrize("rows", [False, True])
def test_few_draws_are_empty(rows):
    drawn = [np.random.default_rng(seed) for seed in QUICK]
    networks = [network(rng, machine(rng), rows=rows) for rng in drawn]
    counts = [len(each.layers) for each in networks]
    assert sum(counts) > 4 * len(QUICK)
    if rows:
        on_rows = [isinstance(n, Softmax | Norm) for each in networks for n in each.layers]
        assert sum(on_rows) > len(QUICK)
