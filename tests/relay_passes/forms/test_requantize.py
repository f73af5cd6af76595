"""From steps to multipliers and shifts, and the Relax of a requantization at its limits."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from relay_passes.forms.requantize import ResidualScale, Scale, Target, dyadic, emit_requantize
from relay_passes.forms.requantize import plan_scale as plan
from targets.errors import ArithmeticRangeError
from tvmq.run.reference import run_reference

ODD = st.integers(0, 32767).map(lambda n: 2 * n + 1)
RATIOS = st.builds(lambda m, s: Fraction(m) / 2**s, st.integers(1, 65535), st.integers(0, 47))


@given(ODD, st.integers(-20, 60), st.floats(-1, 1))
def test_dyadic_survives_float64_steps(multiplier, shift, blur):
    """Rounded steps stray by 2^-50; the fraction that was meant is found, with M odd."""
    exact = Fraction(multiplier) / Fraction(2) ** shift
    blurred = exact * (1 + Fraction(blur) / 2**50)
    assert dyadic(blurred, "layer") == (multiplier, shift)


@given(ODD, st.integers(-20, 60), st.floats(2.0**-38, 2.0**-34), st.booleans())
def test_dyadic_refuses_what_is_no_such_fraction(multiplier, shift, off, above):
    """Off by more than rounding explains, and nearer than the next fraction can be."""
    ratio = Fraction(multiplier) / Fraction(2) ** shift
    with pytest.raises(ArithmeticRangeError, match="layer: the ratio"):
        dyadic(ratio * (1 + Fraction(off) * (1 if above else -1)), "layer")


def test_dyadic_refuses_seventeen_bits():
    with pytest.raises(ArithmeticRangeError, match="layer: the ratio"):
        dyadic(Fraction(65537, 2**20), "layer")


@given(st.lists(RATIOS, min_size=1, max_size=5), st.none() | st.tuples(RATIOS, st.just(3)))
def test_a_scale_is_the_ratios_exactly(ratios, residual):
    try:
        scale = plan("layer", ratios, 1000, residual)
    except ArithmeticRangeError:
        return  # the next test says when
    for k, ratio in enumerate(ratios):
        M, s = int(scale.multiplier[k]), int(scale.shift[k])
        assert 1 <= M <= 65535
        assert 0 <= s <= 47
        assert Fraction(M << scale.fraction, 2**s) == ratio
        if residual is not None:
            N, left = scale.residual.multiplier, int(scale.residual.shift[k])
            assert 1 <= N <= 65535
            assert 0 <= left <= 31
            assert Fraction(N << left, 2**s) == residual[0]
    assert 0 <= scale.fraction <= 15
    assert 1000 << scale.fraction < 2**31


@pytest.mark.parametrize(
    ("ratio", "residual", "bound", "message"),
    [
        (Fraction(1, 2**47), None, 1, ""),
        (Fraction(1, 2**48), None, 1, "layer: needs a right shift of 48, at most 47 fit"),
        (Fraction(1), Fraction(1, 2**15), 1, ""),
        (Fraction(1), Fraction(1, 2**16), 1, "layer: needs fraction bits 16, at most 15 fit"),
        (Fraction(1, 2**31), Fraction(1), 1, ""),
        (Fraction(1, 2**32), Fraction(1), 1, "a residual's left shift of 32, at most 31 fit"),
        (Fraction(1, 4), Fraction(1, 64), 2**27 - 1, ""),
        (Fraction(1, 4), Fraction(1, 64), 2**27, "reach 134217728 and need 4 fraction bits"),
    ],
)
def test_fields_are_used_to_their_ends_and_no_further(ratio, residual, bound, message):
    other = None if residual is None else (residual, 0)
    if message:
        with pytest.raises(ArithmeticRangeError, match=message):
            plan("layer", [ratio], bound, other)
    else:
        plan("layer", [ratio], bound, other)


def test_fraction_bits_make_room_for_a_finer_residual():
    scale = plan("layer", [Fraction(1, 4), Fraction(1, 8)], 1000, (Fraction(1, 64), 3))
    assert scale.fraction == 4  # channel 0 needs 6 - 2
    assert (scale.shift == [6, 7]).all()
    assert (scale.residual.shift == [0, 1]).all()
    assert not scale.wide


@pytest.mark.parametrize(("bound", "wide"), [(2**31 - 256, False), (2**31 - 255, True)])
def test_the_zero_point_must_fit_too(bound, wide):
    assert plan("layer", [Fraction(1)], bound).wide == wide


EDGE = [-(2**31) + 1, -1, 0, 1, 2**31 - 1]
SCALES = st.tuples(
    st.sampled_from([0, 1, 15]),
    st.sampled_from([1, 3, 65535]),
    st.sampled_from([0, 1, 16, 30, 31, 47]),
    st.sampled_from([0, 1, 65535]),  # 0: no residual
    st.sampled_from([0, 31]),
    st.sampled_from([0, 128, 255]),
)


@settings(max_examples=60, deadline=None)
@given(SCALES, st.sampled_from([("int8", -128, 127, -3), ("uint8", 0, 255, 250)]), st.data())
def test_the_relax_is_the_formula_at_its_limits(numbers, codes, data):
    """Multipliers 1 and 65535, shifts 0 and 47, fraction 15, residual shift 31: in big integers."""
    fraction, multiplier, shift, n, left, zero = numbers
    dtype, low, high, zero_point = codes
    # what plan_scale proves of the sums; small ones leave room for all else in int32
    limit = (data.draw(st.sampled_from([2**31, 2**20])) - 1) >> fraction
    acc = [max(-limit, min(limit, a)) for a in EDGE]
    acc += data.draw(st.lists(st.integers(-limit, limit), min_size=3, max_size=3))
    # sums around an output code and around a tie, where there are any
    unit = -(-(1 << shift) // (multiplier << fraction))
    acc += [max(-limit, min(limit, a)) for a in (unit // 2, -(unit // 2), 7 * unit, -7 * unit - 1)]
    codes_r = data.draw(st.lists(st.integers(0, 255), min_size=len(acc), max_size=len(acc)))
    residual = None if n == 0 else ResidualScale(zero, n, np.array([left]))
    most = (limit << fraction) + (n * 255 << left) + (1 << shift >> 1) + 255
    wide = multiplier != 1 or n > 1 or most >= 2**31 or data.draw(st.booleans())
    scale = Scale(fraction, np.array([multiplier]), np.array([shift]), residual, wide)
    target = Target(Fraction(1), zero_point, low, high, dtype)
    got = _run(acc, codes_r, scale, target)
    for y, a, r in zip(got, acc, codes_r, strict=True):
        t = (a << fraction) * multiplier + (((r - zero) * n) << left)
        rounded = (2 * t + (1 << shift)) >> (shift + 1)
        assert y == min(max(rounded + zero_point, low), high)


def _run(sums, residual, scale, target):
    """The requantization of these sums, by the reference."""
    builder = relax.BlockBuilder()
    shape = (len(sums), 1)
    x = relax.Var("x", relax.TensorType(shape, "int32"))
    r = relax.Var("r", relax.TensorType(shape, "uint8"))

    def emit(expr, name=""):
        return builder.emit(expr, name_hint=name)

    with builder.function("main", [x, r]):
        with builder.dataflow():
            y = emit_requantize(emit, x, scale, target, r, "y")
            out = builder.emit_output(relax.Tuple([y]))
        builder.emit_func_output(out)
    inputs = {
        "x": np.array(sums, np.int32).reshape(shape),
        "r": np.array(residual, np.uint8).reshape(shape),
    }
    return run_reference(builder.get(), inputs)[0].reshape(-1).tolist()
