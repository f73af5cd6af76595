"""tvmq::fake_quantize: half up, saturating, exact on the grids of the integer arithmetic."""

import numpy as np
import pytest
import torch

import tvmq.plan.fake_quantize  # noqa: F401  registers the operator
from targets.errors import UnsupportedError

ONE = torch.tensor([1.0], dtype=torch.float64)


def _codes(
    x, step=ONE, zero_point=0, low=-128, high=127, axis=-1, dtype="int8", rounding="HALF_UP"
):
    y = torch.ops.tvmq.fake_quantize(x, step, zero_point, low, high, axis, dtype, rounding)
    assert y.dtype == x.dtype
    return y


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_ties_go_up(dtype):
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 0.49, -0.51], dtype=dtype)
    assert _codes(x).tolist() == [-2, -1, 0, 1, 2, 0, -1]
    assert _codes(x, rounding="FLOOR").tolist() == [-3, -2, -1, 0, 1, 0, -1]


def test_saturates_around_the_zero_point():
    x = torch.tensor([-9.0, 0.0, 1.0, 9.0])
    y = _codes(x, step=0.5 * ONE, zero_point=3, low=0, high=7, dtype="uint8")
    assert y.tolist() == [-1.5, 0.0, 1.0, 2.0]


def test_steps_per_output_channel():
    x = torch.full((3, 2), 1.0, dtype=torch.float64)
    steps = torch.tensor([1.0, 0.75, 4.0], dtype=torch.float64)
    assert _codes(x, step=steps, axis=0)[:, 0].tolist() == [1.0, 0.75, 0.0]


@pytest.mark.parametrize("shift", [1, 8, 20, 33])
@pytest.mark.parametrize("rounding", ["HALF_UP", "FLOOR"])
def test_free_steps_equal_the_integers(shift, rounding):
    """A product of rounded steps times an integer, where a code begins and a grid point beside."""
    rng = np.random.default_rng(shift)
    s_y = rng.uniform(0.001, 1.0, 2000)
    multiplier = rng.integers(1, 2 ** min(16, shift + 1), 2000)
    s_acc = s_y * (multiplier / 2.0**shift)
    half = 1 << (shift - 1) if rounding == "HALF_UP" else 0
    tie = ((rng.integers(-100, 100, 2000) << shift) + half) // multiplier
    acc = tie + rng.integers(-1, 2, 2000)
    want = np.clip((acc * multiplier + half) >> shift, -128, 127)
    got = [
        _codes(ONE * (a * s), step=ONE * y, rounding=rounding).item() / y
        for a, s, y in zip(acc.tolist(), s_acc.tolist(), s_y.tolist(), strict=True)
    ]
    np.testing.assert_array_equal(np.rint(got), want)


def test_exact_ties_of_inexact_steps_go_up():
    """1 / 2 of a step that has no finite binary form, reached by a sum that rounds."""
    step = torch.tensor([0.1], dtype=torch.float64)
    acc = torch.arange(-99, 100, 2, dtype=torch.float64)
    products = torch.stack([acc * (0.1 / 2 / 3)] * 3).sum(0)  # (acc / 2) steps, rounded thrice
    want = (acc.long() + 1) // 2
    assert torch.equal(torch.round(_codes(products, step=step) / step).long(), want)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "int4"}, "expected dtype"),
        ({"high": 200}, "do not fit int8"),
        ({"step": torch.ones(3), "axis": 0}, "expected 4 steps along axis 0, got 3"),
    ],
    ids=["dtype", "range", "steps"],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        _codes(torch.ones(4), **change)


def test_a_rounding_of_integers_only_is_refused():
    with pytest.raises(UnsupportedError, match="rounds by HALF_EVEN, but real numbers only by"):
        _codes(torch.ones(4), rounding="HALF_EVEN")


def test_survives_export_with_a_symbolic_batch():
    class Net(torch.nn.Module):
        def forward(self, x):
            return torch.ops.tvmq.fake_quantize(x, ONE, 0, 0, 255, -1, "uint8", "FLOOR")

    batch = torch.export.Dim("batch")
    exported = torch.export.export(Net(), (torch.rand(3, 2),), dynamic_shapes=({0: batch},))
    assert [n.target for n in exported.graph.nodes if n.op == "call_function"] == [
        torch.ops.tvmq.fake_quantize.default
    ]
    assert exported.module()(torch.full((5, 2), 1.6)).tolist() == [[1.0, 1.0]] * 5
