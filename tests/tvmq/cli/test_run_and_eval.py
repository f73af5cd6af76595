"""`tvmq run` and `tvmq eval` on all devices, and model.so on its own."""

import json
import subprocess
import sys

import numpy as np
import pytest
from model_files import DIGITS
from PIL import Image

from tvmq.artifact.artifact import Artifact
from tvmq.progress import Progress
from tvmq.run.execute import run_file
from tvmq.run.metrics import Accuracy
from tvmq.run.session import Session


def golden(artifact):
    """Inputs and outputs by name."""
    with np.load(artifact / "golden.npz") as file:
        arrays = {name: file[name] for name in file.files}
    inputs = {key[6:]: value for key, value in arrays.items() if key.startswith("input.")}
    outputs = {key[7:]: value for key, value in arrays.items() if key.startswith("output.")}
    return inputs, outputs


@pytest.mark.parametrize("device", ["npu", "cpu", "reference"])
def test_run_gives_the_golden_outputs_whatever_the_batch(tvmq, tmp_path, small, device):
    inputs, outputs = golden(small)
    np.savez(tmp_path / "in.npz", **inputs)
    for batch in (64, 4):  # 6 images: one batch, and two of different sizes
        words = ["-i", tmp_path / "in.npz", "-o", tmp_path / "out.npz", "--batch", batch]
        result = tvmq("run", small, *words, "--device", device)
        assert result.code == 0, result.err
        with np.load(tmp_path / "out.npz") as file:
            assert sorted(file.files) == sorted(outputs)
            for name, expected in outputs.items():
                np.testing.assert_array_equal(file[name], expected)


def test_float_device_is_close_and_not_equal(tvmq, tmp_path, small):
    inputs, outputs = golden(small)
    results = Session(Artifact.load(small), "float").run(inputs)
    for name, expected in outputs.items():
        assert not np.array_equal(results[name], expected)
        assert np.abs(results[name] - expected).max() < 0.5 * np.abs(expected).max()


def test_run_repeats_the_preprocessing_of_the_build(tvmq, tmp_path, digits):
    with np.load(DIGITS / "digits_eval.npz") as file:
        images = file["images"][:5]
    np.savez(tmp_path / "images.npz", images=images)
    result = tvmq("run", digits, "-i", tmp_path / "images.npz", "-o", tmp_path / "o", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["device"] == "npu"
    (name,) = json.loads(result.out)["shapes"]
    x = (images.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255) - np.float32(0.3)) / (
        np.float32(0.35)
    )
    expected = Session(Artifact.load(digits), "reference").run({"x": x})[name]
    with np.load(tmp_path / "o") as file:  # no .npz was added to the name
        np.testing.assert_array_equal(file[name], expected)


def test_floats_are_never_preprocessed_again(tvmq, tmp_path, digits):
    """An artifact that knows how images are preprocessed takes what was preprocessed already."""
    with np.load(DIGITS / "digits_eval.npz") as file:
        images, labels = file["images"][:20], file["labels"][:20]
    x = (images.transpose(0, 3, 1, 2) / np.float32(255) - np.float32(0.3)) / np.float32(0.35)
    outputs, results = [], []
    for arrays in ({"x": x}, {"images": x}, {"x": images}, {"images": images}):
        np.savez(tmp_path / "in.npz", **arrays, labels=labels)
        result = tvmq("run", digits, "-i", tmp_path / "in.npz", "-o", tmp_path / "out.npz")
        assert result.code == 0, result.err
        with np.load(tmp_path / "out.npz") as file:
            outputs.append(file[file.files[0]])
        result = tvmq("eval", digits, "--data", tmp_path / "in.npz", "--json")
        assert result.code == 0, result.err
        results.append(json.loads(result.out)["top1"])
    for other in outputs[1:]:
        np.testing.assert_array_equal(other, outputs[0])
    assert results == [results[0]] * 4
    np.savez(tmp_path / "in.npz", x=x)
    words = ["-i", tmp_path / "in.npz", "-o", tmp_path / "other.npz", "--mean", "0", "--std", "1"]
    result = tvmq("run", digits, *words)
    assert result.code == 2
    assert "--crop change nothing. Leave them out" in result.err
    assert not (tmp_path / "other.npz").exists()


LOADERS = """
import numpy as np

def floats():
    yield np.zeros((4, 1, 16, 16), np.float32), np.arange(4)

def images():
    yield np.zeros((4, 16, 16), np.uint8), np.arange(4)
"""


def test_flags_of_images_for_a_function_that_yields_floats(tvmq, tmp_path, digits, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loaders_of_mine.py").write_text(LOADERS)
    words = ["eval", digits, "--device", "cpu", "--mean", "0", "--std", "1", "--data"]
    assert tvmq(*words, "loaders_of_mine:images").code == 0
    result = tvmq(*words, "loaders_of_mine:floats")
    assert (result.code, result.out) == (2, "")
    assert "loaders_of_mine:floats holds floats, which are taken as they are" in result.err


def test_each_flag_of_images_overrides_its_own(tvmq, tmp_path, digits):
    with np.load(DIGITS / "digits_eval.npz") as file:
        images = file["images"][:3]
    np.savez(tmp_path / "in.npz", images=np.kron(images, np.ones((1, 2, 2, 1), np.uint8)))
    words = ["run", digits, "-i", tmp_path / "in.npz", "-o", tmp_path / "out.npz"]
    assert "give --resize and --crop" in tvmq(*words).err
    assert tvmq(*words, "--resize", 16).code == 0  # with the mean and std of the build


@pytest.mark.parametrize("value", [3e38, -3e38, 1e-45, -0.0])
def test_any_finite_input_gives_the_same_bits_everywhere(digits, value):
    """Quantizing saturates, in float64, as the definition says."""
    x = np.random.default_rng(0).standard_normal((2, 1, 16, 16)).astype(np.float32)
    x[0], x[1, 0, :3] = value, value
    artifact = Artifact.load(digits)
    expected = Session(artifact, "reference").run({"x": np.clip(x, -1e6, 1e6)})
    for device in ("npu", "cpu", "reference"):
        for name, result in Session(artifact, device).run({"x": x}).items():
            np.testing.assert_array_equal(result, expected[name])


def test_all_devices_have_the_accuracy_of_the_shipped_model(tvmq, digits):
    results = {}
    for device in ("npu", "cpu", "reference", "float"):
        words = ["--data", DIGITS / "digits_eval.npz", "--device", device, "--json"]
        result = tvmq("eval", digits, *words)
        assert result.code == 0, result.err
        results[device] = json.loads(result.out)
        assert results[device]["n"] == 597
        assert results[device]["device"] == device
        assert results[device]["images_per_second"] > 0
    assert results["npu"]["top1"] == results["cpu"]["top1"] == results["reference"]["top1"]
    assert results["npu"]["top1"] > 0.99
    assert results["npu"]["top5"] >= results["npu"]["top1"]
    assert abs(results["npu"]["top1"] - results["float"]["top1"]) < 0.01


def test_accuracy_gate(tvmq, digits):
    words = ["eval", digits, "--data", DIGITS / "digits_eval.npz", "--samples", 50]
    top1 = json.loads(tvmq(*words, "--json").out)["top1"]
    assert top1 > 0.9
    assert tvmq(*words, "--min-top1", top1).code == 0
    wrong = tvmq(*words, "--min-top1", "0.9", "--mean", "0.9", "--std", "0.01")
    assert wrong.code == 1
    assert "--min-top1 asks for 0.9" in wrong.err


def test_labels_of_a_folder_of_images(tvmq, tmp_path, digits):
    """Whichever way the classes are given, the accuracy is that of the same arrays."""
    with np.load(DIGITS / "digits_eval.npz") as file:
        images, labels = file["images"][:40], file["labels"][:40]
    lines = ["file,label"]
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        name = f"number {9 - label}/{number}.png"
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(tmp_path / "set" / name)
        lines.append(f"{name},{label}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    (tmp_path / "classes").write_text("".join(f"number {9 - label}\n" for label in range(10)))
    words = ["eval", digits, "--data", tmp_path / "set", "--device", "cpu", "--min-top1", "0.9"]
    assert tvmq(*words).code == 1  # the folders are in the other order
    for more in (["--labels", tmp_path / "labels.csv"], ["--classes", tmp_path / "classes"]):
        result = tvmq(*words, *more)
        assert result.code == 0, result.err
    (tmp_path / "set" / "extra.png").write_bytes(b"")
    result = tvmq(*words, "--labels", tmp_path / "labels.csv")
    assert result.code == 2
    assert "labels.csv has no label for image extra.png" in result.err


def test_notes_of_the_data_go_to_stderr(tvmq, tmp_path, digits):
    for name in range(1, 11):
        (tmp_path / str(name)).mkdir()
        Image.new("L", (16, 16), name).save(tmp_path / str(name) / "a.png")
    result = tvmq("eval", digits, "--data", tmp_path, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["n"] == 10
    assert "as text: 1 is class 0, 10 is class 1, 2 is class 2" in result.err


METRICS = """
import numpy as np


def margin(batches):
    total = count = 0
    for outputs, labels in batches:
        assert labels.dtype == np.float32  # not class numbers
        (logits,) = outputs.values()
        top = np.sort(logits, axis=1)
        total += (top[:, -1] - top[:, -2] + labels).sum()
        count += len(logits)
    return {"margin": total / count, "count": count}


def nothing(batches):
    for outputs, labels in batches:
        assert labels is None
    return float("nan")


def failing(batches):
    for outputs, labels in batches:
        raise KeyError("no such output")


def lazy(outputs, labels):
    return 1.0
"""


def test_a_metric_of_the_user(tvmq, tmp_path, digits, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "metrics_of_mine.py").write_text(METRICS)
    with np.load(DIGITS / "digits_eval.npz") as file:
        images = file["images"][:30]
    np.savez("data.npz", images=images, labels=np.full(30, 0.5, np.float32))
    words = ["eval", digits, "--data", "data.npz", "--batch", 16, "--metric"]
    found = {}
    for device in ("npu", "cpu", "reference", "float"):
        result = tvmq(*words, "metrics_of_mine:margin", "--device", device, "--json")
        assert result.code == 0, result.err
        found[device] = json.loads(result.out)
        assert set(found[device]) == {"margin", "count", "n", "device", "images_per_second"}
        assert (found[device]["n"], found[device]["count"]) == (30, 30)
    assert found["npu"]["margin"] == found["cpu"]["margin"] == found["reference"]["margin"]
    assert found["npu"]["margin"] != found["float"]["margin"]

    words[-1:] = ["--device", "cpu", "--metric", "metrics_of_mine:margin", "--min", "count=30"]
    exact = found["cpu"]["margin"]
    assert "margin" in tvmq(*words, "--min", f"margin={exact!r}").out
    assert tvmq(*words, "--min", f"margin={exact!r}").code == 0
    result = tvmq(*words, "--min", "margin=1e9")
    assert result.code == 1
    assert "on data.npz, --min margin asks for 1e+09" in result.err
    result = tvmq(*words, "--min-top1", "0.1")
    assert result.code == 2
    assert "--min-top1: --metric metrics_of_mine:margin gives margin, count" in result.err


def test_metrics_that_fail(tvmq, tmp_path, digits, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "metrics_of_mine_2.py").write_text(METRICS)
    with np.load(DIGITS / "digits_eval.npz") as file:
        np.savez("data.npz", images=file["images"][:3])
    words = ["eval", digits, "--data", "data.npz", "--device", "cpu", "--metric"]
    result = tvmq(*words, "metrics_of_mine_2:nothing", "--json")
    assert (result.code, json.loads(result.out)["nothing"]) == (0, None)
    assert tvmq(*words, "metrics_of_mine_2:nothing", "--min", "nothing=-1").code == 1
    for name, message in (
        ("failing", r"failed with KeyError: 'no such output' (.*metrics_of_mine_2.py:24)."),
        (
            "lazy",
            "lazy: can't be called with the batches alone (missing a required",
        ),
        ("absent", "has no absent"),
    ):
        result = tvmq(*words, f"metrics_of_mine_2:{name}")
        assert result.code == 2
        assert message.replace(".*", str(tmp_path) + "/") in result.err
        assert not result.out


def test_a_metric_may_number_other_classes_than_the_network(tvmq, tmp_path, digits, monkeypatch):
    """As of embeddings: the folders are people, the outputs are features."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "people_of_mine.py").write_text(
        "def classes(batches):\n    return len({int(n) for _, labels in batches for n in labels})\n"
    )
    for name in range(12):
        (tmp_path / "set" / f"p{name}").mkdir(parents=True)
        Image.new("L", (16, 16), name).save(tmp_path / "set" / f"p{name}" / "a.png")
    words = ["eval", digits, "--device", "cpu", "--data", tmp_path / "set"]
    assert "12 class folders, the network has 10 classes" in tvmq(*words).err
    result = tvmq(*words, "--metric", "people_of_mine:classes", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["classes"] == 12


def test_run_looks_at_no_labels(tvmq, tmp_path, small):
    inputs, outputs = golden(small)
    np.savez(tmp_path / "in.npz", **inputs, labels=np.array([None, "mask"], object))
    result = tvmq("run", small, "-i", tmp_path / "in.npz", "-o", tmp_path / "out.npz")
    assert result.code == 0, result.err
    with np.load(tmp_path / "out.npz") as file:
        for name, expected in outputs.items():
            np.testing.assert_array_equal(file[name], expected)


@pytest.mark.parametrize("text", ["top1", "=1", "top1=", "top1=x", "top1=nan", "top1=inf"])
def test_gates_that_are_none(tvmq, digits, text):
    result = tvmq("eval", digits, "--data", DIGITS / "digits_eval.npz", "--min", text)
    assert result.code == 2
    assert f"--min {text!r} is not of the form NAME=VALUE" in result.err


def test_gates_of_accuracy(tvmq, digits):
    words = ["eval", digits, "--data", DIGITS / "digits_eval.npz", "--samples", 20, "--min"]
    assert tvmq(*words, "top1=0.5", "--min", "top5=0.5").code == 0
    result = tvmq(*words, "top5=1.5")
    assert (result.code, "--min top5 asks for 1.5" in result.err) == (1, True)
    result = tvmq(*words, "miou=0.5")
    assert (result.code, result.out) == (2, "")  # before anything ran
    assert "--min miou: Accuracy gives top1, top5. Choose one" in result.err


def test_an_accuracy_that_is_no_number_passes_no_gate(tvmq, digits, monkeypatch):
    monkeypatch.setattr(Accuracy, "top1", property(lambda _: float("nan")))
    words = ["--data", DIGITS / "digits_eval.npz", "--samples", 5, "--min-top1", 0]
    assert tvmq("eval", digits, *words).code == 1


def test_evaluation_without_labels(tvmq, tmp_path, small):
    inputs, _ = golden(small)
    np.savez(tmp_path / "in.npz", **inputs)
    result = tvmq("eval", small, "--data", tmp_path / "in.npz")
    assert result.code == 2
    assert "has no labels" in result.err


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.zeros((1, 3, 12, 12), np.float32)}, "has the keys y; wanted are x"),
        ({"x": np.zeros((1, 12, 12, 3), np.float32)}, "transpose it to"),
        ({"x": np.full((1, 3, 12, 12), np.nan, np.float32)}, "NaN or infinite"),
    ],
    ids=["name", "shape", "nan"],
)
def test_wrong_inputs(tvmq, tmp_path, small, arrays, message):
    np.savez(tmp_path / "in.npz", **arrays)
    result = tvmq("run", small, "-i", tmp_path / "in.npz", "-o", tmp_path / "out.npz")
    assert result.code == 2
    assert message in result.err
    assert not (tmp_path / "out.npz").exists()


def test_missing_files(tvmq, tmp_path, small):
    words = ["-o", tmp_path / "out.npz"]
    assert "no such file" in tvmq("run", small, "-i", tmp_path / "none.npz", *words).err
    result = tvmq("run", tmp_path / "none", "-i", tmp_path / "none.npz", *words)
    assert result.code == 2
    assert "no such artifact" in result.err


def test_outputs_are_a_file(tvmq, tmp_path, small):
    inputs, _ = golden(small)
    np.savez(tmp_path / "in.npz", **inputs)
    for place, words in ((tmp_path, "is a folder"), ("/dev/null", "is a device")):
        result = tvmq("run", small, "-i", tmp_path / "in.npz", "-o", place)
        assert result.code == 2
        assert f"{place}: {words}. Give the .npz to write" in result.err


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "Inputs are named nothing; this network takes x"),
        ({"x": np.zeros((2, 3, 12, 11))}, r"expected float32\[N, 3, 12, 12\]"),
        ({"x": np.zeros((0, 3, 12, 12))}, "Give one array of N"),
        ({"x": np.full((1, 3, 12, 12), np.inf)}, "NaN or infinite"),
        ({"x": np.full((1, 3, 12, 12), 1e300)}, "NaN or infinite"),
        ({"x": np.zeros((1, 3, 12, 12), np.uint8)}, "got uint8"),
    ],
    ids=["none", "shape", "empty", "inf", "huge", "images"],
)
def test_session_checks_its_inputs(small, inputs, message):
    with pytest.raises(Exception, match=message):
        Session(Artifact.load(small)).run(inputs)


def test_a_cpu_artifact_has_no_npu(tvmq, tmp_path, small):
    model = small.parent / "resnet_small.pt2"
    assert tvmq("build", model, "--target", "cpu", "-o", tmp_path / "a", "-q").code == 0
    inputs, outputs = golden(tmp_path / "a")
    session = Session(Artifact.load(tmp_path / "a"))
    assert session.device == "cpu"
    np.testing.assert_array_equal(
        next(iter(session.run(inputs).values())), next(iter(outputs.values()))
    )
    np.savez(tmp_path / "in.npz", **inputs)
    words = ["-i", tmp_path / "in.npz", "-o", tmp_path / "o.npz", "--device", "npu"]
    assert "was built for the CPU" in tvmq("run", tmp_path / "a", *words).err
    assert "has no NPU program" in tvmq("disasm", tmp_path / "a").err


ALONE = """
import sys

for name in ("torch", "tvmq", "relay_passes"):
    sys.modules[name] = None  # importing it fails

import numpy as np
import tvm
from tvm import relax

vm = relax.VirtualMachine(tvm.runtime.load_module("model.so"), tvm.cpu())
golden = np.load("golden.npz")
(y,) = vm["main"](tvm.runtime.tensor(golden["input.x"]))
(name,) = [key for key in golden.files if key.startswith("output.")]
assert np.array_equal(y.numpy(), golden[name])
"""


def test_model_so_needs_tvm_and_numpy_alone(small):
    subprocess.run([sys.executable, "-c", ALONE], cwd=small, env={}, check=True)


@pytest.mark.parametrize("name", ["file", "allow_pickle", "logits"])
def test_outputs_are_called_as_the_network_calls_them(tmp_path, small, monkeypatch, name):
    inputs, outputs = golden(small)
    np.savez(tmp_path / "in.npz", **inputs)
    session = Session(Artifact.load(small), "reference")
    (expected,) = outputs.values()
    monkeypatch.setattr(session, "run", lambda _: {name: expected})
    shapes = run_file(session, tmp_path / "in.npz", tmp_path / "out.npz", 64, Progress())
    assert shapes == {name: list(expected.shape)}
    with np.load(tmp_path / "out.npz") as file:
        np.testing.assert_array_equal(file[name], expected)
