"""Every kind of model file is recognised; each wrong one has its own message and exit code 2."""

import importlib
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from targets.errors import InputError, UnsupportedError
from tvmq.capture.capture import capture_program
from tvmq.capture.export_module import parse_input_shapes
from tvmq.capture.load_model import load_model

FACTORY = """
from torch import nn

def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())

def text():
    return "no module"

def broken():
    raise RuntimeError("out of paper")

def leaving():
    raise SystemExit(0)
"""


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x)


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_factory.py").write_text(FACTORY)
    # Pickles name this class's module, which must be importable under that name.
    monkeypatch.setitem(sys.modules, Net.__module__, sys.modules[__name__])
    yield tmp_path
    sys.modules.pop("my_factory", None)


@pytest.fixture
def program_file(folder):
    program = torch.export.export(Net().eval(), (torch.randn(1, 3, 8, 8),))
    torch.export.save(program, folder / "model.pt2")
    return folder / "model.pt2"


@pytest.fixture
def state_file(folder):
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3)).state_dict(), folder / "state.pt")
    return folder / "state.pt"


def refuse(path, pattern, **options):
    with pytest.raises(InputError, match=pattern) as error:
        load_model(path, **options)
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)


def rewrite(source, target, change):
    """Copy an archive; ``change`` maps (name, data) to the new data."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


def test_program_archive_under_either_suffix(program_file):
    assert load_model(program_file).kind == "ExportedProgram archive"
    other = program_file.rename(program_file.with_suffix(".pt"))
    assert load_model(other).kind == "ExportedProgram archive"


def test_shapes_are_checked_against_a_program(program_file):
    load_model(program_file, input_shapes="x:7x3x8x8")
    refuse(program_file, r"was exported for \['1', '3', '8', '8'\]", input_shapes="x:1x3x9x8")
    refuse(program_file, "names 'y'", input_shapes="y:1x3x8x8")
    refuse(program_file, "leave out --model", model_factory="my_factory:small")


def test_missing_folder_and_empty(folder):
    refuse(folder / "none.pt2", "no such file")
    refuse(folder, "is a folder")
    (folder / "empty.pt").touch()
    refuse(folder / "empty.pt", "empty file")


def test_truncated_and_corrupt_archives(program_file):
    data = program_file.read_bytes()
    for share in (0.1, 0.5, 0.99):
        program_file.write_bytes(data[: int(len(data) * share)])
        refuse(program_file, "truncated or corrupt")
    middle = data.index(b'"graph_module"')
    program_file.write_bytes(data[:middle] + b"???" + data[middle + 3 :])
    refuse(program_file, "corrupt archive: record .*model.json")


def test_an_index_on_several_disks(program_file):
    data = bytearray(program_file.read_bytes())
    at = data.rindex(b"PK\x06\x07")  # of the larger form of the index
    data[at + 16] = 2
    program_file.write_bytes(data)
    refuse(program_file, "corrupt archive .*multiple disks")


def test_truncated_state_dict(state_file):
    data = state_file.read_bytes()
    state_file.write_bytes(data[: len(data) // 2])
    refuse(state_file, "truncated or corrupt")


def test_torchscript(folder):
    torch.jit.save(torch.jit.trace(Net().eval(), torch.randn(1, 3, 8, 8)), folder / "script.pt")
    refuse(folder / "script.pt", "TorchScript archive")
    refuse(folder / "script.pt", "TorchScript archive", trust_pickle=True)


def test_other_formats(folder):
    cases = {
        "model.onnx": (b"\x08\x08\x12\x07pytorch", "ONNX"),
        "model.tflite": (b"\x1c\0\0\0TFL3" + b"\0" * 20, "TensorFlow Lite"),
        "model.h5": (b"\x89HDF\r\n\x1a\n", "HDF5"),
        "model.safetensors": (b"\x40\0\0\0\0\0\0\0" + b'{"a":{}}', "safetensors"),
        "text.pt": (b"hello, I am no model", "not a PyTorch file"),
    }
    for name, (data, pattern) in cases.items():
        (folder / name).write_bytes(data)
        refuse(folder / name, pattern)
    np.savez(folder / "arrays.npz", x=np.zeros(3))
    refuse(folder / "arrays.npz", "NumPy .npz")
    with zipfile.ZipFile(folder / "some.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    refuse(folder / "some.zip", "not one of PyTorch")


def test_state_dict_needs_the_network_and_shapes(state_file):
    refuse(state_file, r"state dict of 2 tensors \(0.weight, 0.bias, …\).*--model")
    refuse(state_file, "--input-shapes", model_factory="my_factory:small")
    loaded = load_model(state_file, model_factory="my_factory:small", input_shapes="1x3x8x8")
    assert loaded.kind == "state dict"
    torch.testing.assert_close(
        loaded.program.state_dict["0.weight"], torch.load(state_file)["0.weight"]
    )


def test_state_dict_in_a_checkpoint_and_of_data_parallel(folder, state_file):
    state = {f"module.{name}": value for name, value in torch.load(state_file).items()}
    torch.save({"epoch": 3, "state_dict": state}, folder / "checkpoint.pt")
    loaded = load_model(
        folder / "checkpoint.pt", model_factory="my_factory:small", input_shapes="[1,3,8,8]"
    )
    assert len(loaded.notes) == 2
    assert "'state_dict'" in loaded.notes[0]
    assert "'module.'" in loaded.notes[1]


def test_old_style_state_dict(folder, state_file):
    torch.save(torch.load(state_file), folder / "old.pt", _use_new_zipfile_serialization=False)
    refuse(folder / "old.pt", "state dict of 2 tensors")
    data = (folder / "old.pt").read_bytes()
    (folder / "old.pt").write_bytes(data[: len(data) // 2])
    refuse(folder / "old.pt", "corrupt")


def test_state_dict_that_does_not_fit(folder):
    state = {"0.weight": torch.zeros(5, 3, 3, 3), "extra": torch.zeros(1)}
    torch.save(state, folder / "state.pt")
    options = {"model_factory": "my_factory:small", "input_shapes": "1x3x8x8"}
    refuse(folder / "state.pt", r"missing in the file: 0\.bias", **options)
    refuse(folder / "state.pt", "unknown to the network: extra", **options)
    refuse(folder / "state.pt", r"0\.weight is \[5, 3, 3, 3\] in the file", **options)


@pytest.mark.parametrize(
    ("factory", "pattern"),
    [
        ("my_factory", "not of the form"),
        ("no_such_module:small", "can't import no_such_module"),
        ("my_factory:none", "has no none"),
        ("my_factory:text", "returned a str"),
        ("my_factory:broken", r"RuntimeError: out of paper \(.*my_factory.py:11\)"),
        ("my_factory:leaving", r"SystemExit: 0 \(.*my_factory.py:14\)"),
    ],
)
def test_wrong_factories(state_file, factory, pattern):
    refuse(state_file, pattern, model_factory=factory, input_shapes="1x3x8x8")


def test_tensors_that_are_no_weights(folder):
    options = {"model_factory": "my_factory:small", "input_shapes": "1x3x8x8"}
    for weight in (torch.zeros(4, 3, 3, 3).to_sparse(), torch.empty(4, 3, 3, 3, device="meta")):
        torch.save({"0.weight": weight, "0.bias": torch.zeros(4)}, folder / "state.pt")
        refuse(folder / "state.pt", "does not fit --model .*an exception occurred", **options)
    torch.save({"0.weight\x1b[2J": torch.zeros(1)}, folder / "state.pt")
    refuse(folder / "state.pt", r"unknown to the network: 0\.weight\\x1b\[2J", **options)


def test_dicts_and_objects_that_are_no_model(folder):
    torch.save({"epoch": 3, "note": "no weights"}, folder / "dict.pt")
    refuse(folder / "dict.pt", r"a dict but no state dict \(epoch: int, note: str\)")
    torch.save({}, folder / "dict.pt")
    refuse(folder / "dict.pt", "empty")
    torch.save([torch.zeros(2)], folder / "list.pt")
    refuse(folder / "list.pt", "holds a list")
    (folder / "plain.pkl").write_bytes(pickle.dumps({"a": 1}))
    refuse(folder / "plain.pkl", "corrupt|no torch file")


def test_pickled_module_needs_trust_and_shapes(folder):
    torch.save(Net(), folder / "net.pt")
    refuse(folder / "net.pt", "--trust-pickle")
    refuse(folder / "net.pt", "--input-shapes", trust_pickle=True)
    loaded = load_model(folder / "net.pt", trust_pickle=True, input_shapes="x:1x3x8x8")
    assert loaded.kind == "pickled module"
    refuse(
        folder / "net.pt", r"names y; forward\(\) of Net takes x", trust_pickle=True,
        input_shapes="y:1x3x8x8",
    )  # fmt: skip
    refuse(
        folder / "net.pt", r"RuntimeError: Given groups=1.*test_load_model\.py:\d+\)",
        trust_pickle=True, input_shapes="x:1x4x8x8",
    )  # fmt: skip
    refuse(folder / "net.pt", "--input-shapes .* memory", trust_pickle=True,
           input_shapes="x:99999999x3x99999999x99999999")  # fmt: skip


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_a_module_that_runs_but_can_not_be_captured(folder):
    torch.save(Branching(), folder / "net.pt")
    with pytest.raises(UnsupportedError, match="can't capture Branching, which runs as it is"):
        load_model(folder / "net.pt", trust_pickle=True, input_shapes="x:1x3x8x8")


class Leaving:
    def __reduce__(self):
        return sys.exit, (0,)


def test_code_of_the_user_can_not_end_the_command(folder):
    torch.save(Leaving(), folder / "exit.pt")
    refuse(folder / "exit.pt", "unpickling it failed with SystemExit", trust_pickle=True)


def test_nothing_is_unpickled_without_trust(folder, program_file):
    mark = folder / "evil_was_here"
    torch.save(Evil(str(mark)), folder / "evil.pt")
    refuse(folder / "evil.pt", "--trust-pickle")
    torch.save(Evil(str(mark)), folder / "old.pt", _use_new_zipfile_serialization=False)
    refuse(folder / "old.pt", "--trust-pickle")

    inner = (folder / "evil.pt").read_bytes()
    archive = rewrite(
        program_file, folder / "inputs.pt2",
        lambda name, data: inner if "sample_inputs" in name else data,
    )  # fmt: skip
    load_model(archive)  # which has no use for example inputs
    assert not mark.exists()


def test_dynamic_program_is_inert(folder):
    program = torch.export.export(
        Net().eval(), (torch.randn(2, 3, 8, 8),),
        dynamic_shapes=({0: torch.export.Dim("n", max=64)},),
    )  # fmt: skip
    torch.export.save(program, folder / "dynamic.pt2")
    assert load_model(folder / "dynamic.pt2").kind == "ExportedProgram archive"


def test_program_that_multiplies_the_batch_is_inert(folder):
    class Tokens(torch.nn.Module):  # as in attention and recurrence
        def forward(self, x):
            return x.reshape(-1, 4).reshape(x.shape[0], -1)

    batch = {0: torch.export.Dim("n")}
    program = torch.export.export(Tokens(), (torch.randn(2, 3, 4),), dynamic_shapes=(batch,))
    torch.export.save(program, folder / "product.pt2")
    with zipfile.ZipFile(folder / "product.pt2") as archive:
        assert b"Mul(Integer(3)" in archive.read("product/models/model.json")
    assert load_model(folder / "product.pt2").kind == "ExportedProgram archive"


def test_input_shapes_forms():
    assert parse_input_shapes("x:1x3x32x32") == {"x": (1, 3, 32, 32)}
    assert parse_input_shapes("x:[1,3,32,32]") == {"x": (1, 3, 32, 32)}
    assert parse_input_shapes("a:1x3,b:[1, 4]; c:2x2") == {"a": (1, 3), "b": (1, 4), "c": (2, 2)}
    assert parse_input_shapes("1x3x8x8") == {"": (1, 3, 8, 8)}
    for wrong in ("x:1x" + "9" * 5000, "", "x", "x:", "x:1x-3", "x:1x0", "x:ax3", "1x3,1x3"):
        with pytest.raises(InputError, match="--input-shapes"):
            parse_input_shapes(wrong)


SCRIPT = """
import sys
import torch
from torch import nn

class OfAScript(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x)

torch.save(OfAScript(), sys.argv[1])
"""


def test_a_module_pickled_by_its_own_script_says_so(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    path = tmp_path / "net.pt"
    subprocess.run([sys.executable, tmp_path / "script.py", path], check=True)
    with pytest.raises(InputError, match=r"pickled by the script that defines OfAScript.*--model"):
        load_model(path, trust_pickle=True, input_shapes="x:2x3x8x8")


class Quantized(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        q = torch.ops.quantized_decomposed.quantize_per_tensor(x, 0.1, 0, -128, 127, torch.int8)
        return self.conv(
            torch.ops.quantized_decomposed.dequantize_per_tensor(q, 0.1, 0, -128, 127, torch.int8)
        )


@pytest.mark.parametrize("trusted", [False, True])
def test_a_program_that_is_quantized_already_is_called_that(tmp_path, trusted, monkeypatch):
    importlib.import_module("torch.ao.quantization.fx._decomposed")  # makes the operators known
    program = torch.export.export(Quantized().eval(), (torch.randn(2, 3, 8, 8),))
    path = tmp_path / "qdq.pt2"
    torch.export.save(program, path)
    if trusted:  # another process does not know the operators
        unknown = RuntimeError("We ran into an error")
        monkeypatch.setattr(torch.export, "load", lambda _: (_ for _ in ()).throw(unknown))
    with pytest.raises(UnsupportedError, match=r"quantized already.*Export the float network"):
        load_model(path, trust_pickle=trusted)
    with pytest.raises(UnsupportedError, match="quantized already"):
        capture_program(program)
