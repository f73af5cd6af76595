"""All extras of GEMM and REQ at their neutral setting are the plain layer, bit for bit."""

import numpy as np
import pytest

from targets.npu.execute.compiled import Executor
from targets.npu.machine import isa
from targets.npu.machine.program import Program
from targets.npu.machine.spec import load_spec
from targets.npu.simulate.codes import RECORD
from targets.npu.simulate.simulator import Simulator
from targets.rounding import RoundingMode

ROWS, LANES, OUT = 9, 16, 1024
LEVELS = 255


@pytest.fixture(scope="module")
def machine():
    spec = load_spec("e256")
    return spec, Executor(spec), Simulator(spec)


def _program(spec, rng, widths, *, composed, fraction, residual):
    """One tile of sums, requantized: plain, or with product scaling, multiplier and borders."""
    act, wgt, shift = widths
    columns, extra = spec.array.cols, fraction if composed else 0
    rounding = RoundingMode.BORDER if composed else RoundingMode.HALF_UP
    records = np.zeros(columns, RECORD)
    records["bias"] = rng.integers(-999, 999, columns) << extra
    records["mult"] = 1
    records["shift"] = rng.integers(0, 4, columns)
    records["res_shl"] = rng.integers(0, 3, columns) + extra
    borders = np.full((columns, LEVELS + 1 if composed else 0), 128, np.uint8)
    parameters = np.hstack([records.view(np.uint8).reshape(columns, -1), borders])
    weights = rng.integers(0, 256, LANES * columns).astype(np.uint8)
    constants = weights.tobytes() + parameters.tobytes()
    body = [
        isa.Load(mem=0, region=2, x_bytes=OUT),
        isa.Load(mem=1, region=0, x_bytes=weights.nbytes),
        isa.Load(mem=3, region=0, dram_off=weights.nbytes, x_bytes=parameters.nbytes),
        isa.Gemm(
            acc_init=1,
            act_bits=act,
            wgt_bits=wgt,
            m0=ROWS,
            as_m0=LANES,
            kvalid=LANES,
            nvalid=columns,
            frac=extra,
        ),
        isa.Requantize(
            rounding=rounding,
            multiply=int(composed),
            residual=int(residual),
            m0=ROWS,
            ds_m0=columns,
            dst_addr=OUT,
            nvalid=columns,
            shift=shift + extra,
            lo=-128 & 255,
            hi=127,
            res_addr=500,
            rs_m0=3,
            res_zp=5,
            res_mult=3,
        ),
        isa.Store(mem=0, region=3, spm_addr=OUT, x_bytes=ROWS * columns),
        isa.Halt(),
    ]
    return Program(spec.name, spec.digest, tuple(body), constants, 0, OUT, ROWS * columns, ())


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize(
    "widths", [(0, 0, 9), (1, 1, 2), (2, 2, 0), (0, 2, 4)], ids=["w8a8", "w4a4", "w2a2", "w2a8"]
)
def test_neutral_extras_are_the_plain_layer(machine, widths, residual):
    """No exponent, a factor of one and borders of a half: scaled sums, the same codes."""
    spec, executor, simulator = machine
    for fraction in (0, 1, 4):
        seed = [*widths, fraction]
        plain, composed = (
            _program(
                spec,
                np.random.default_rng(seed),
                widths,
                composed=composed,
                fraction=fraction,
                residual=residual,
            )
            for composed in (False, True)
        )
        image = np.random.default_rng(seed).integers(0, 256, OUT).astype(np.uint8)
        want = simulator.run(plain, image)
        assert len(np.unique(want)) > 20
        np.testing.assert_array_equal(simulator.run(composed, image), want)
        np.testing.assert_array_equal(executor.run(composed, image[None])[0], want)
