"""What an artifact runs, loaded in this process and in one that has imported nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import tvm
from models import ZOO, export
from npu_layers import LAYERS
from tvm import relax

from targets.errors import InputError, TrapError
from targets.npu.compiler import compile_layers
from targets.npu.execute.compiled import executor_symbol
from targets.npu.machine.spec import load_spec
from tvmq.artifact.files import compile_library, save_float
from tvmq.capture.capture import capture_program
from tvmq.run.session import LibraryRunner, between_ends


def _export(path, factor):
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4,), "float32"))
    with builder.function("main", [x]):
        y = builder.emit(relax.op.multiply(x, relax.const(factor, "float32")))
        builder.emit_func_output(relax.Tuple([y]))
    tvm.compile(builder.get(), target="llvm").export_library(str(path))


def test_a_library_that_replaced_another_is_the_one_that_runs(tmp_path):
    path, x = tmp_path / "model.so", np.arange(4, dtype=np.float32)
    _export(path, 2.0)
    first = LibraryRunner(path)
    np.testing.assert_array_equal(first([x])[0], 2 * x)
    path.unlink()
    _export(path, 3.0)
    second = LibraryRunner(path)
    np.testing.assert_array_equal(second([x])[0], 3 * x)
    np.testing.assert_array_equal(first([x])[0], 2 * x)


def test_a_trap_names_program_layer_and_instruction(tmp_path):
    """A program that no compiler of ours makes: its second instruction has a bit that none has."""
    layers = [next(layer for layer in LAYERS.values() if layer.kind == "conv2d")]
    spec = load_spec("e256")
    program = compile_layers(layers, layers[0].inputs, [layers[0].output], spec)
    words = program.words().copy()
    words[1, 7] |= 1 << 30
    builder = relax.BlockBuilder()
    batch = tvm.tirx.Var("n", "int64")
    x = relax.Var("x", relax.TensorType((batch, program.input_bytes), "int8"))
    with builder.function("main", [x]):
        with builder.dataflow():
            arguments = [
                relax.prim_value(0),
                relax.const(words, "int32"),
                relax.const(np.frombuffer(program.constants, np.int8), "int8"),
                relax.prim_value(program.arena_bytes),
                x,
            ]
            made = relax.TensorType((batch, program.output_bytes), "int8")
            y = builder.emit(relax.call_dps_packed(executor_symbol(spec), arguments, made))
            out = builder.emit_output(relax.Tuple([y]))
        builder.emit_func_output(out)
    compile_library(builder.get(), tmp_path / "model.so", spec)
    images = np.zeros((2, program.input_bytes), np.int8)

    machine = relax.VirtualMachine(tvm.runtime.load_module(str(tmp_path / "model.so")), tvm.cpu())
    with pytest.raises(RuntimeError, match="trapped in program 0 at instruction 1: illegal"):
        machine["main"](tvm.runtime.tensor(images))
    run = LibraryRunner(tmp_path / "model.so", {"program_0.bin": program})
    with pytest.raises(TrapError, match=rf"_0.bin \(layer {layers[0].name}, .*instruction 1"):
        run([images])


ALONE = """
from pathlib import Path

import numpy as np

from tvmq.run.session import float_runner

for folder in (path for path in Path().iterdir() if path.is_dir()):
    (y,) = float_runner(folder / "float.pt2")([np.load(folder / "x.npy")])
    np.save(folder / "y.npy", y)
"""


def test_float_networks_are_read_by_a_process_that_captured_none(tmp_path):
    """With products of tokens, gates of channels, and rows."""
    networks = {name: ZOO[name]() for name in ("vit_small", "excitation_small", "rows_small")}
    for name, (module, example) in networks.items():
        (tmp_path / name).mkdir()
        save_float(tmp_path / name, capture_program(export((module, example))))
        np.save(tmp_path / name / "x.npy", example.numpy())
    settings = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    subprocess.run([sys.executable, "-c", ALONE], cwd=tmp_path, env=settings, check=True)
    for name, (module, example) in networks.items():
        with torch.no_grad():
            want = module(example).numpy()
        got = np.load(tmp_path / name / "y.npy")
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


class _Ends:
    """A library whose head gives what is quantized, and a value that passes by."""

    def __init__(self, quantized, passing):
        self.made = [np.float32(quantized), np.float32(passing)]

    def __call__(self, arrays, function="main"):
        return self.made if function == "head" else list(arrays)

    def parameters_of(self, function):
        return {"integers": 1, "tail": 2}[function]


def test_only_what_is_quantized_has_to_be_finite():
    hidden = _Ends([[1.0], [2.0]], [[0.0], [-np.inf]])
    made, passed = between_ends(hidden, lambda arrays: [2 * array for array in arrays])([])
    np.testing.assert_array_equal(made, [[2.0], [4.0]])
    np.testing.assert_array_equal(passed, [[0.0], [-np.inf]])
    with pytest.raises(InputError, match="image 1 of the batch"):
        between_ends(_Ends([[1.0], [np.nan]], [[0.0], [0.0]]), lambda arrays: arrays)([])
