"""Any network on any machine: the program computes the network, in any order of the units."""

from collections import Counter
from typing import get_args

import numpy as np
import pytest
from npu_layers import code_limits
from random_networks import Network, everything, machine, network, products, rows

from targets.layers import Conv2d, Factor, Layer, Norm, Pairing, Softmax
from targets.npu.compiler import compile_layers
from targets.npu.execute.compiled import Executor
from targets.npu.simulate.interleave import at_random, by_priority, interleaved, youngest
from targets.npu.simulate.simulator import Simulator

QUICK = [0, 1, 2, 4, 5, 6, 320]
"""320: chunks of unequal width beside a partly filled reduction tile. Without 3, which is large."""
ALL = 400


WITH_ROWS = 100


SEEDS = [
    pytest.param(draw, n, marks=() if n in QUICK else pytest.mark.slow)
    for draw in (network, products, rows, everything)
    for n in range(ALL)
    if n in QUICK or draw is not rows or n < WITH_ROWS
]


@pytest.mark.parametrize(("draw", "seed"), SEEDS)
def test_the_program_computes_the_network(draw, seed):
    rng = np.random.default_rng(seed)
    spec = machine(rng)
    drawn = draw(rng, spec)
    if not drawn.layers:
        pytest.skip("the machine refuses every layer that was drawn")
    x = _codes(rng, drawn)
    program = compile_layers(drawn.layers, [drawn.input], drawn.outputs, spec)
    data = np.frombuffer(x.tobytes(), np.uint8)
    got = Simulator(spec).run(program, data)
    np.testing.assert_array_equal(got, drawn.meaning(x))
    orders = youngest, at_random(seed), by_priority((3, 2, 1, 0), program)
    other = Simulator(spec).run(program, data, interleaved(orders[seed % len(orders)]))
    np.testing.assert_array_equal(other, got)


def _codes(rng: np.random.Generator, drawn: Network) -> np.ndarray:
    """What the network reads."""
    low, high = code_limits(drawn.input)
    return rng.integers(low, high + 1, drawn.input.shape).astype(drawn.input.dtype)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_the_executor_of_any_machine_computes_the_networks(seed):
    rng = np.random.default_rng(seed)
    spec = machine(rng)
    for _ in range(12):
        drawn = everything(rng, spec)
        if drawn.layers:
            x = _codes(rng, drawn)
            program = compile_layers(drawn.layers, [drawn.input], drawn.outputs, spec)
            (got,) = Executor(spec).run(program, x.reshape(1, -1))
            np.testing.assert_array_equal(got, drawn.meaning(x))


@pytest.mark.parametrize("draw", [network, products, rows, everything])
def test_few_draws_are_empty(draw):
    drawn = [np.random.default_rng(seed) for seed in QUICK]
    networks = [draw(rng, machine(rng)) for rng in drawn]
    assert sum(len(each.layers) for each in networks) > 4 * len(QUICK)
    if draw is rows:
        on_rows = [isinstance(n, Softmax | Norm) for each in networks for n in each.layers]
        assert sum(on_rows) > len(QUICK)


def test_layers_of_all_kinds_are_drawn():
    kinds = Counter()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        kinds.update(type(layer) for layer in everything(rng, machine(rng)).layers)
    assert set(kinds) == set(get_args(Layer))
    assert min(kinds.values()) >= 8


def test_products_of_all_pairings_are_drawn():
    layers = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        layers += products(rng, machine(rng)).layers
    factors = [each.right for each in layers if isinstance(each, Conv2d)]
    pairings = Counter(f.pairing for f in factors if isinstance(f, Factor))
    assert min(pairings[pairing] for pairing in Pairing) > 10
