"""From steps to multipliers and shifts, and the Relax of a requantization at its limits."""

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from relay_passes.forms.requantize import Target, emit_requantize
from targets.scale import Scale
from tvmq.run.reference import run_reference

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
    # what is proven of the sums; small ones leave room for all else in int32
    limit = (data.draw(st.sampled_from([2**31, 2**20])) - 1) >> fraction
    acc = [max(-limit, min(limit, a)) for a in EDGE]
    acc += data.draw(st.lists(st.integers(-limit, limit), min_size=3, max_size=3))
    # sums around an output code and around a tie, where there are any
    unit = -(-(1 << shift) // (multiplier << fraction))
    acc += [max(-limit, min(limit, a)) for a in (unit // 2, -(unit // 2), 7 * unit, -7 * unit - 1)]
    codes_r = data.draw(st.lists(st.integers(0, 255), min_size=len(acc), max_size=len(acc)))
    most = (limit << fraction) + (n * 255 << left) + (1 << shift >> 1) + 255
    wide = multiplier != 1 or n > 1 or most >= 2**31 or data.draw(st.booleans())
    scale = Scale(fraction, (multiplier,), (shift,), max(n, 1), (left,) if n else ())
    target = Target(Fraction(1), zero_point, low, high, dtype)
    got = _run(acc, codes_r if n else None, scale, wide, target, zero)
    for y, a, r in zip(got, acc, codes_r, strict=True):
        t = (a << fraction) * multiplier + (((r - zero) * n) << left)
        rounded = (2 * t + (1 << shift)) >> (shift + 1)
        assert y == min(max(rounded + zero_point, low), high)


def _run(sums, residual, scale, wide, target, zero):
    """The requantization of these sums, by the reference."""
    builder = relax.BlockBuilder()
    shape = (len(sums), 1)
    x = relax.Var("x", relax.TensorType(shape, "int32"))
    r = relax.Var("r", relax.TensorType(shape, "uint8"))

    def emit(expr, name=""):
        return builder.emit(expr, name_hint=name)

    with builder.function("main", [x, r]):
        with builder.dataflow():
            added = None if residual is None else (r, zero)
            y = emit_requantize(emit, x, scale, wide, target, added, "y")
            out = builder.emit_output(relax.Tuple([y]))
        builder.emit_func_output(out)
    inputs = {
        "x": np.array(sums, np.int32).reshape(shape),
        "r": np.array(residual or [0] * len(sums), np.uint8).reshape(shape),
    }
    return run_reference(builder.get(), inputs)[0].reshape(-1).tolist()
