"""`tvmq debug`: which layer and which device leaves the float network."""

import json

import numpy as np
import pytest
import torch
from model_files import DIGITS, save, save_inputs
from models import ZOO, export

from targets.errors import InputError
from tvmq.artifact.artifact import Artifact
from tvmq.artifact.files import save_float
from tvmq.capture.capture import capture_program
from tvmq.float_ends import name_in_plan
from tvmq.plan.plan_schema import PlanFile
from tvmq.run import layer_errors
from tvmq.run.reference import run_reference
from tvmq.run.session import float_runner

WORDS = ("--samples", 6, "--json")


def build(tvmq, name, folder, *words):
    model, data = save(name, folder), save_inputs(name, folder)
    artifact = folder / f"{name}.tvmq"
    target = ["-o", artifact, "--target", "cpu", "-q"]
    result = tvmq("build", model, "--calib-data", data, *target, *words)
    assert result.code == 0, result.err
    return artifact, data


def debugged(tvmq, artifact, data):
    result = tvmq("debug", artifact, "--data", data, *WORDS)
    assert result.code == 0, result.err
    return json.loads(result.out)


def test_a_network_of_eight_bits_has_no_bad_layer(tvmq, digits):
    found = debugged(tvmq, digits, DIGITS / "digits_eval.npz")
    assert (found["n"], found["first_bad_stage"], found["first_bad_layer"]) == (6, None, None)
    compared = [(each["device"], each["against"]) for each in found["devices"]]
    assert compared == [("reference", "float"), ("cpu", "reference"), ("npu", "reference")]
    assert [each["different"] > 0 for each in found["devices"]] == [True, False, False]
    layers = {each["name"]: each for each in found["layers"]}
    known = {each["name"] for each in Artifact.load(digits).layers()}
    assert set(layers) == known - {"reshape"} | {"x"}  # what only moves codes adds nothing
    for each in layers.values():
        assert each["own_db"] > 25
        assert each["advice"] == ""
    last = layers["conv2d_11"]  # has the errors of eleven layers in front of it
    assert last["own_db"] > last["total_db"] + 3


def test_an_input_s_error_is_that_of_its_codes(tvmq, digits):
    """By hand, of the first layer's own error as well: integers of rounded float numbers."""
    found = debugged(tvmq, digits, DIGITS / "digits_eval.npz")
    artifact = Artifact.load(digits)
    with artifact.reading("plan.json") as path:
        step = PlanFile.model_validate_json(path.read_bytes()).values["x"].step
    with np.load(DIGITS / "digits_eval.npz") as file:
        images = file["images"][:6].transpose(0, 3, 1, 2).astype(np.float32)
    x = ((images / np.float32(255) - np.float32(0.3)) / np.float32(0.35)).astype(np.float64)
    codes = np.clip(np.floor(x / step + 0.5), -128, 127)
    want = 10 * np.log10((x**2).sum() / ((codes * step - x) ** 2).sum())
    assert found["layers"][0]["own_db"] == pytest.approx(want)
    assert found["layers"][0]["total_db"] == pytest.approx(want)


def test_the_first_bad_layer_is_named_with_what_to_try(tvmq, tmp_path):
    """Channels whose weights differ by 2^6 have one step in common."""
    artifact, data = build(tvmq, "mobilenet_rescaled", tmp_path, "--method", "rtn")
    found = debugged(tvmq, artifact, data)
    bad = [each for each in found["layers"] if each["bad"]]
    assert (found["first_bad_stage"], found["first_bad_layer"]) == ("quantization", bad[0]["name"])
    assert bad[0]["kind"] == "depthwise_conv2d"
    assert "--method wess" in bad[0]["advice"]
    result = tvmq("debug", artifact, "--data", data)
    assert result.code == 0
    assert f"First bad layer: {bad[0]['name']} (" in result.out
    assert "cpu and reference: identical" in result.out


def test_learned_artifacts_and_tokens_are_measured_layer_by_layer(tvmq, tmp_path):
    artifact, data = build(tvmq, "vit_small", tmp_path)
    found = debugged(tvmq, artifact, data)
    kinds = {each["kind"] for each in found["layers"]}
    assert {"softmax", "norm", "conv2d", "dense", "add"} <= kinds
    assert min(each["own_db"] for each in found["layers"]) > 15


def test_a_range_that_leaves_much_out_is_said(tvmq, small, tmp_path):
    with np.load(save_inputs("resnet_small", tmp_path)) as file:
        np.savez(tmp_path / "loud.npz", x=8 * file["x"])
    found = debugged(tvmq, small, tmp_path / "loud.npz")
    first = found["layers"][0]
    assert first["bad"]
    assert first["beyond"] > 0.1
    assert "--calib-method minmax" in first["advice"]


def test_a_device_that_differs_fails(tvmq, digits, monkeypatch):
    class Wrong(layer_errors.LibraryRunner):
        def __call__(self, arrays, function="main"):
            outputs = super().__call__(arrays, function)
            outputs[0][0, 0] += bool(self._programs)  # the NPU's alone
            return outputs

    monkeypatch.setattr(layer_errors, "LibraryRunner", Wrong)
    result = tvmq("debug", digits, "--data", DIGITS / "digits_eval.npz", *WORDS)
    assert result.code == 1
    assert "npu gives 1 of 60 numbers that are not the reference's" in " ".join(result.err.split())
    assert json.loads(result.out)["first_bad_stage"] == "npu"


def test_an_artifact_without_names_is_refused_with_advice(digits, monkeypatch):
    monkeypatch.setattr(layer_errors, "name_in_plan", lambda _: "")
    with pytest.raises(InputError, match=r"doesn't say which tensors .* Build it again"):
        layer_errors.layer_errors(Artifact.load(digits), [])


@pytest.mark.parametrize("name", ["detector_small", "vit_small"])
def test_saved_networks_keep_the_names_of_the_plan(name, tmp_path):
    """Exporting them again numbers nodes in another order."""
    model = capture_program(export(ZOO[name]()))
    save_float(tmp_path, model)
    saved = torch.export.load(tmp_path / "float.pt2").module()
    kept = [name_in_plan(node) for node in saved.graph.nodes if node.op == "call_function"]
    nodes = model.graph_module.graph.nodes
    assert kept == [node.name for node in nodes if node.op == "call_function"]
    x = torch.randn(2, *model.inputs[0].shape[1:])
    exact = model.graph_module(x)
    for one, other in zip(exact, float_runner(tmp_path / "float.pt2")([x.numpy()]), strict=True):
        torch.testing.assert_close(one.detach(), torch.tensor(other))


def test_tensors_can_be_replaced_where_they_are_read(digits):
    """What a caller returns is what the layers behind read."""
    import tvm

    with Artifact.load(digits).reading("integer.json") as path:
        integer = tvm.ir.load_json(path.read_text())
    x = {"x": np.ones((1, 1, 16, 16), np.float32)}
    zero = run_reference(integer, {"x": np.zeros_like(x["x"])})
    found = run_reference(integer, x, lambda n, made: 0 * made if n == "x_codes" else made)
    np.testing.assert_array_equal(found[0], zero[0])
    assert not np.array_equal(run_reference(integer, x)[0], zero[0])


def test_what_is_no_number_is_not_compared():
    """Float ends may give anything: bits that agree do, and the rest has its ratio."""
    outputs = layer_errors._Outputs()
    exact = np.array([1, np.nan, -np.inf, np.inf, 3], np.float32)
    found = np.array([1, np.nan, -9, np.inf, 4], np.float32)
    outputs.add([found, np.array([1, 2])], [exact, np.array([1, 3])])
    assert (outputs.numbers, outputs.different, outputs.compared) == (7, 3, 2)
    assert (outputs.signal, outputs.noise) == (10, 1)
