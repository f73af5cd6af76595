"""Histograms that grow, and the steps chosen from them."""

import numpy as np
import pytest
import torch

from tvmq.calibrate.observers import Histogram, choose_codes
from tvmq.settings import Settings

GENERATOR = torch.Generator().manual_seed(0)


def _observed(*tensors):
    histogram = Histogram()
    for tensor in tensors:
        histogram.add(tensor)
    return histogram


def _error(x, codes, bits=8, power=2.0):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if codes.signed else (0, 2**bits - 1)
    code = torch.clamp(torch.floor(x / codes.step + 0.5) + codes.zero_point, low, high)
    return float((x - codes.step * (code - codes.zero_point)).abs().pow(power).mean())


def test_growing_equals_seeing_everything_at_once():
    x = torch.randn(5000, generator=GENERATOR)
    parts = _observed(x[:10] / 100, x[10:100], x[100:] * 37)
    whole = _observed(torch.cat([x[:10] / 100, x[10:100], x[100:] * 37]))
    np.testing.assert_array_equal(parts.counts, whole.counts)
    assert (parts.low, parts.high, parts.limit) == (whole.low, whole.high, whole.limit)
    assert parts.counts.sum() == 5000


def test_counts_are_exact_however_many():
    """Beyond 2**24, where float32 stops counting; and up to the last number below the limit."""
    many = (1 << 24) + 5
    histogram = _observed(torch.tensor([1.9999999, -2.0, 1.5]), torch.zeros(1).expand(many))
    _, counts = histogram.occupied()
    assert counts.tolist() == [1, many, 1, 1]
    x = torch.randn(300000, generator=GENERATOR)
    seen = _observed(x)
    want = torch.histc(x, len(seen.counts), -seen.limit, seen.limit)
    np.testing.assert_array_equal(seen.counts, want.double().numpy())


def test_merging_equals_seeing_both():
    x, y = torch.randn(1000, generator=GENERATOR), 50 * torch.rand(1000, generator=GENERATOR)
    merged, whole = _observed(x).merge(_observed(y)), _observed(x, y)
    np.testing.assert_array_equal(merged.counts, whole.counts)
    assert merged.limit == whole.limit
    assert _observed(x).merge(Histogram()).counts.sum() == 1000


def test_not_finite():
    with pytest.raises(ValueError, match="not finite"):
        _observed(torch.tensor([1.0, float("nan")]))


@pytest.mark.parametrize(
    ("x", "signed", "zero"),
    [
        (torch.rand(999), False, False),
        (torch.linspace(-1, 1, 999), True, False),
        (torch.linspace(-0.45, 1, 999), True, False),
        (torch.linspace(-0.2, 1, 999), False, True),
        (torch.nn.functional.silu(torch.linspace(-6, 6, 999)), False, True),
    ],
    ids=["unsigned", "signed", "over a quarter", "under a quarter", "one-sided"],
)
@pytest.mark.parametrize("scales", ["pot", "free"])
def test_type_of_codes(x, signed, zero, scales):
    codes = choose_codes(_observed(x), 8, Settings(scales=scales))
    assert codes.signed == signed
    assert (codes.zero_point > 0) == zero
    assert _error(x, codes) < (12 / 255) ** 2 / 12


def test_a_zero_point_that_halves_the_error_is_worth_it():
    x = torch.nn.functional.leaky_relu(torch.linspace(-1.2, 1.2, 999), 0.3)
    codes, centred = (choose_codes(_observed(x), 8, Settings(), symmetric=s) for s in (False, True))
    assert (codes.signed, centred.signed, centred.zero_point) == (False, True, 0)
    assert _error(x, codes) < _error(x, centred) / 2
    wide = torch.nn.functional.leaky_relu(torch.linspace(-1.8, 1.8, 999), 0.3)
    assert choose_codes(_observed(wide), 8, Settings()).signed  # it would take the same step


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_search_finds_nearly_the_best_step(bits):
    x = torch.randn(20000, generator=GENERATOR).relu()
    found = choose_codes(_observed(x), bits, Settings(scales="free"))
    peak = float(x.max())
    errors = [
        _error(x, type(found)(peak * f / 1000 / (2**bits - 1), 0, False, ""), bits)
        for f in range(50, 1001, 5)
    ]
    assert _error(x, found, bits) < 1.03 * min(errors)


def test_power_of_two_step_is_the_best_of_its_neighbours():
    x = torch.randn(20000, generator=GENERATOR).relu()
    found = choose_codes(_observed(x), 4, Settings())
    assert np.log2(found.step) % 1 == 0
    for factor in (0.5, 2.0):
        other = type(found)(found.step * factor, 0, False, "")
        assert _error(x, found, 4) <= _error(x, other, 4)


def test_lp_clips_less_than_mse():
    x = torch.randn(20000, generator=GENERATOR) ** 3
    steps = [
        choose_codes(_observed(x), 4, Settings(scales="free", calib_method=m)).step
        for m in ("mse", "lp", "minmax")
    ]
    assert steps[0] < steps[1] < steps[2]


def test_percentile():
    x = torch.arange(1, 10001) / 100
    codes = choose_codes(
        _observed(x), 8, Settings(scales="free", calib_method="percentile", percentile=90.0)
    )
    assert codes.step * 255 == pytest.approx(90.0, rel=0.001)


def test_always_zero():
    assert choose_codes(_observed(torch.zeros(4)), 8, Settings()).step == 2.0**-16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("peak", [1e-44, 1e-36, 1e-30, 1e38])
def test_values_of_any_size_are_counted(peak, dtype):
    histogram = Histogram()
    histogram.add(torch.tensor([0.0, peak, -peak / 2], dtype=dtype))
    assert histogram.counts.sum() == 3


def test_what_float32_can_not_hold_is_not_finite():
    with pytest.raises(ValueError, match="not finite"):
        Histogram().add(torch.tensor([1e300, 1.0], dtype=torch.float64))


def test_symmetric_codes_have_zero_for_zero_whatever_the_range():
    skewed = _observed(torch.linspace(-0.2, 4, 1000))
    free = choose_codes(skewed, 8, Settings(scales="free"))
    assert free.zero_point > 0
    assert not free.signed
    centred = choose_codes(skewed, 8, Settings(scales="free"), symmetric=True)
    assert (centred.zero_point, centred.signed) == (0, True)
    assert centred.step > free.step
    one_sided = _observed(torch.linspace(0, 4, 1000))
    assert not choose_codes(one_sided, 8, Settings(), symmetric=True).signed
