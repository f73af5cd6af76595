"""Placing: runs of layers become programs, what no layer describes stays where it was."""

import numpy as np
import pytest
import tvm
from annotated_networks import run_tvm
from golden import HALF
from placed_modules import run_placed
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from relay_passes.place import place, placements
from relay_passes.read_layers import read_layers
from targets.npu.execute.compiled import executor_symbol
from targets.npu.machine.spec import load_spec
from targets.npu.simulate.simulator import Simulator
from tvmq.run.reference import run_reference

TABLE = np.arange(256)[::-1].copy()


@I.ir_module
class Before:
    """Pool and table for the NPU, a slice that no layer describes between them."""

    @R.function
    def main(x: R.Tensor(("n", 4, 6, 16), "float32")) -> R.Tuple(
        R.Tensor(("n", 2, 2, 16), "float32")
    ):
        with R.dataflow():
            ratio = R.divide(R.astype(x, "float64"), R.const(0.5, "float64"))
            whole = R.floor(R.add(ratio, R.const(HALF, "float64")))
            codes = R.astype(R.clip(whole, 0, 255), "uint8")
            pool = R.nn.max_pool2d(codes, [2, 2], strides=[2, 2], layout="NHWC")
            turned = R.strided_slice(pool, [2], [2], [0], [-1])
            table = R.take(R.const(TABLE, "uint8"), R.astype(turned, "int32"), axis=0)
            real = R.multiply(R.astype(table, "float64"), R.const(0.5, "float64"))
            y = R.astype(real, "float32")
            out = (y,)
            R.output(out)
        return out


def _placed(machine):
    copy = tvm.ir.load_json(tvm.ir.save_json(Before))
    network = read_layers(Before, {"pool": "net.pool, line 3"})
    placed = place(Before, network, None if machine is None else load_spec(machine))
    tvm.ir.assert_structural_equal(Before, copy)
    return placed


def _fill(expected, mod):
    """Put the functions of ``mod`` in the place of the empty ones."""
    for var in expected.get_global_vars():
        if var.name_hint != "main":
            expected[var.name_hint] = mod[var.name_hint]


def _images():
    return np.random.default_rng(0).normal(30, 60, (3, 4, 6, 16)).astype(np.float32)


def test_programs_around_what_stays_relax():
    placed = _placed("e256")
    first, second = placed.programs
    words = [program.words() for program in placed.programs]
    constants = [np.frombuffer(p.constants or bytes(1), np.int8) for p in placed.programs]
    execute = executor_symbol(load_spec("e256"))
    # pooled: 3 rows of 2 pixels of 16 channels; packed by image
    assert (first.input_bytes, first.output_bytes) == (4 * 6 * 16, 2 * 3 * 16)
    assert (second.input_bytes, second.output_bytes) == (64, 64)

    @I.ir_module(check_well_formed=False)  # the called functions are left empty here
    class Expected:
        @T.prim_func(private=True)
        def npu_program_0_pack():
            T.evaluate(0)

        @T.prim_func(private=True)
        def npu_program_0_unpack():
            T.evaluate(0)

        @T.prim_func(private=True)
        def npu_program_1_pack():
            T.evaluate(0)

        @T.prim_func(private=True)
        def npu_program_1_unpack():
            T.evaluate(0)

        @R.function
        def main(x: R.Tensor(("n", 4, 6, 16), "float32")) -> R.Tuple(
            R.Tensor(("n", 2, 2, 16), "float32")
        ):
            n = T.int64()
            cls = Expected
            with R.dataflow():
                ratio = R.divide(R.astype(x, "float64"), R.const(0.5, "float64"))
                whole = R.floor(R.add(ratio, R.const(HALF, "float64")))
                codes = R.astype(R.clip(whole, 0, 255), "uint8")
                packed = R.call_tir(
                    cls.npu_program_0_pack, (codes,), out_ty=R.Tensor((n, 384), "int8")
                )
                made = R.call_dps_packed(
                    execute,
                    (
                        R.prim_value(0),
                        R.const(words[0], "int32"),
                        R.const(constants[0], "int8"),
                        R.prim_value(0),
                        packed,
                    ),
                    out_ty=R.Tensor((n, 96), "int8"),
                )
                unpacked = R.call_tir(
                    cls.npu_program_0_unpack,
                    (made,),
                    out_ty=R.Tensor((n, 2, 3, 16), "uint8"),
                )
                pool = unpacked
                turned = R.strided_slice(pool, [2], [2], [0], [-1])
                packed_1 = R.call_tir(
                    cls.npu_program_1_pack, (turned,), out_ty=R.Tensor((n, 64), "int8")
                )
                made_1 = R.call_dps_packed(
                    execute,
                    (
                        R.prim_value(1),
                        R.const(words[1], "int32"),
                        R.const(constants[1], "int8"),
                        R.prim_value(0),
                        packed_1,
                    ),
                    out_ty=R.Tensor((n, 64), "int8"),
                )
                unpacked_1 = R.call_tir(
                    cls.npu_program_1_unpack,
                    (made_1,),
                    out_ty=R.Tensor((n, 2, 2, 16), "uint8"),
                )
                table = unpacked_1
                real = R.multiply(R.astype(table, "float64"), R.const(0.5, "float64"))
                y = R.astype(real, "float32")
                out = (y,)
                R.output(out)
            return out

    _fill(Expected, placed.mod)
    tvm.ir.assert_structural_equal(placed.mod, Expected)
    values = {}
    run_reference(Before, {"x": _images()}, values.setdefault)
    simulator = Simulator(load_spec("e256"))
    for image in range(3):
        for program, source, made in ((first, "codes", "pool"), (second, "turned", "table")):
            got = simulator.run(program, values[source][image])
            assert got.tobytes() == values[made][image].tobytes()


def test_kernels_where_there_is_no_npu():
    placed = _placed(None)

    @I.ir_module(check_well_formed=False)
    class Expected:
        @T.prim_func(private=True)
        def cpu_max_pool2d():
            T.evaluate(0)

        @T.prim_func(private=True)
        def cpu_lut():
            T.evaluate(0)

        @R.function
        def main(x: R.Tensor(("n", 4, 6, 16), "float32")) -> R.Tuple(
            R.Tensor(("n", 2, 2, 16), "float32")
        ):
            n = T.int64()
            cls = Expected
            with R.dataflow():
                ratio = R.divide(R.astype(x, "float64"), R.const(0.5, "float64"))
                whole = R.floor(R.add(ratio, R.const(HALF, "float64")))
                codes = R.astype(R.clip(whole, 0, 255), "uint8")
                pool_cpu = R.call_tir(
                    cls.cpu_max_pool2d, (codes,), out_ty=R.Tensor((n, 2, 3, 16), "uint8")
                )
                pool = pool_cpu
                turned = R.strided_slice(pool, [2], [2], [0], [-1])
                table_cpu = R.call_tir(
                    cls.cpu_lut,
                    (turned, R.const(TABLE, "uint8")),
                    out_ty=R.Tensor((n, 2, 2, 16), "uint8"),
                )
                table = table_cpu
                real = R.multiply(R.astype(table, "float64"), R.const(0.5, "float64"))
                y = R.astype(real, "float32")
                out = (y,)
                R.output(out)
            return out

    _fill(Expected, placed.mod)
    tvm.ir.assert_structural_equal(placed.mod, Expected)
    (got,) = run_placed(placed, None, _images())
    np.testing.assert_array_equal(got, run_tvm(Before, _images())[0])


@pytest.mark.parametrize(
    ("machine", "devices", "reasons"),
    [
        ("e256", ["npu", "cpu", "npu"], ["", "its slice reads backwards", ""]),
        (None, ["cpu"] * 3, ["the target is the CPU"] * 3),
    ],
)
def test_every_layer_says_where_it_runs_and_why(machine, devices, reasons):
    placements = _placed(machine).placements
    assert [(p.name, p.kind) for p in placements] == [
        ("pool", "max_pool2d"),
        ("turned", "opaque"),
        ("table", "lut"),
    ]
    assert [p.device for p in placements] == devices
    for placement, reason in zip(placements, reasons, strict=True):
        assert placement.reason.startswith(reason)
        assert bool(placement.reason) == (placement.device == "cpu")
    assert [p.program for p in placements] == ([0, None, 1] if machine else [None] * 3)
    assert placements[0].source == "net.pool, line 3"


def test_placements_are_known_without_compiling(monkeypatch):
    placed = _placed("e256")
    monkeypatch.setattr("relay_passes.place.compile_layers", None)
    network = read_layers(Before, {"pool": "net.pool, line 3"})
    assert placements(network, load_spec("e256")) == placed.placements
    of_layer = {span.name: n for n, p in enumerate(placed.programs) for span in p.layers}
    assert {p.name: p.program for p in placed.placements if p.program is not None} == of_layer
