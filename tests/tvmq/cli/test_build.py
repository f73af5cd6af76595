"""`tvmq build`: what it writes, what it refuses, what it leaves behind."""

import json
from pathlib import Path

import pytest
import torch
from model_files import save, save_inputs
from torch import nn

from targets.refusal import Refusal
from tvmq import flow
from tvmq.artifact.artifact import Artifact


def test_artifact_says_what_it_was_built_from(small):
    manifest = Artifact.load(small).manifest
    assert manifest.bit_exact
    assert manifest.target == "npu"
    assert manifest.model["file"] == "resnet_small.pt2"
    assert len(manifest.model["fingerprint"]) == 64
    assert manifest.settings["seed"] == 7
    assert manifest.settings["weights"] == "symmetric"
    assert manifest.settings["precision"] == "w8a8"
    assert manifest.settings["scales"] == "pot"
    assert manifest.calibration["source"] == "resnet_small.npz"
    assert manifest.calibration["ranges"] == "8 images"
    assert manifest.inputs[0].shape == ("N", 3, 12, 12)
    assert manifest.outputs[0].shape == ("N", 10)
    assert manifest.placement["npu"] > 0
    stages = ["capture", "calibrate", "plan", "annotate", "integer", "place", "compile", "verify"]
    assert list(manifest.seconds) == stages
    assert {"tvmq", "tvm", "torch", "numpy", "python"} == set(manifest.versions)


def test_artifact_has_every_file_that_the_design_names(small):
    names = set(Artifact.load(small).manifest.files)
    assert {
        "plan.json",
        "npu.toml",
        "model.so",
        "cpu.so",
        "program_0.bin",
        "integer.json",
        "float.pt2",
        "layers.json",
        "golden.npz",
        "ir/float.py",
        "ir/annotated.py",
        "ir/integer.py",
        "ir/placed.py",
    } <= names


def test_what_is_too_narrow_is_said_everywhere(small, tvmq, tmp_path):
    assert Artifact.load(small).manifest.ranges == ()
    model = save("mobilenet_rescaled", tmp_path)
    words = ["--target", "cpu", "--precision", "w4a4"]
    result = tvmq("build", model, "-o", tmp_path / "a", *words, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)["ranges"]
    assert [entry["layer"] for entry in found] == ["conv2d_2", "conv2d_2", "conv2d_5", "conv2d_5"]
    manifest = Artifact.load(tmp_path / "a").manifest
    assert [entry.model_dump(mode="json") for entry in manifest.ranges] == found
    again = tvmq("build", model, "-o", tmp_path / "a", *words)
    said = again.out + again.err
    assert said.count("too narrow: ") == 3
    assert "and 1 more: ranges in manifest.json" in said
    page = tmp_path / "page.html"
    assert tvmq("profile", tmp_path / "a", "--html", page).code == 0
    assert "Too narrow" in page.read_text()


def test_json_is_alone_on_stdout(tvmq, tmp_path):
    model = save("mobilenet_small", tmp_path)
    result = tvmq("build", model, "-o", tmp_path / "a", "--target", "npu:m2048", "--json")
    assert result.code == 0, result.err
    data = json.loads(result.out)
    assert data["artifact"] == str(tmp_path / "a")
    assert data["bit_exact"] is True
    assert data["npu_operators"] > 0
    assert data["cpu_operators"] == 0
    assert data["seconds"]["compile"] > 0
    assert data["calibration"]["source"].startswith("data-free")
    assert "no calibration data" in result.err
    assert "assumed images normalised as for ImageNet" in result.err
    assert "assumed images" in data["calibration"]["ranges"]


def test_default_output_and_words(tvmq, tmp_path, monkeypatch):
    save("odd_channels", tmp_path)
    monkeypatch.chdir(tmp_path)
    result = tvmq("build", "odd_channels.pt2", "--target", "cpu", "-v")
    assert result.code == 0, result.err
    assert (tmp_path / "odd_channels.tvmq" / "manifest.json").is_file()
    assert "data-free" in result.out
    assert "symmetric weights per tensor" in result.out
    assert "identical, bit for bit" in result.out
    assert "Next: tvmq eval odd_channels.tvmq" in result.out
    assert "calibrate: " in result.err


def test_flags_of_images_for_floats_are_kept_and_it_is_said(tvmq, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, data = save("resnet_small", tmp_path), save_inputs("resnet_small", tmp_path)
    (tmp_path / "floats_of_mine.py").write_text(
        f"import numpy as np\ndef floats():\n    yield np.load({str(data)!r})['x'], 'any labels'\n"
    )
    words = ["build", model, "--target", "cpu", "--mean", "0.5", "--std", "2", "-o", "a.tvmq"]
    for source in (data, "floats_of_mine:floats"):
        result = tvmq(*words, "--calib-data", source)
        assert result.code == 0, result.err
        assert f"note: {source} holds floats, which are taken as they are; --mean" in result.err
        assert Artifact.load(tmp_path / "a.tvmq").manifest.preprocessing["mean"] == [0.5]


def test_without_data_or_batch_norm_the_flag_is_named(tvmq, tmp_path):
    result = tvmq("build", save("mlp", tmp_path), "-o", tmp_path / "a")
    assert result.code == 2
    assert "--calib-data" in result.err
    assert "note:" not in result.err
    assert not (tmp_path / "a").exists()


def test_an_edited_plan_is_built(tvmq, tmp_path, small):
    plan = json.loads((small / "plan.json").read_text())
    plan["values"]["x"]["step"] = "2^-3"
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    model = small.parent / "resnet_small.pt2"
    result = tvmq(
        "build", model, "--plan", tmp_path / "plan.json", "-o", tmp_path / "a", "--target", "cpu"
    )
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "a" / "plan.json").read_text())["values"]["x"]["step"] == "2^-3"
    result = tvmq("build", model, "--plan", tmp_path / "plan.json", "--calib-data", "x.npz")
    assert result.code == 2
    assert "a plan already has its ranges" in result.err
    result = tvmq("build", model, "--plan", "plan.json", "--precision", "w4a4", "--scales", "free")
    assert result.code == 2
    assert "--plan and --precision, --scales: a plan already" in result.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "gpu"], "expected npu, npu:PRESET, npu:FILE.toml or cpu"),
        (["--target", "npu:e1"], "no machine 'e1'"),
        (["--precision", "int8"], "not of the form w8a8"),
        (["--scales", "cubic"], "'cubic' is not one of"),
        (["--method", "wess", "--granularity", "channel"], "wess is one step per layer"),
        (["--method", "wess,equalize"], "method equalize changes the float network"),
        (["--method", "wes"], "method wes: not known; choose from rtn"),
        (["--mean", "0.5"], "--mean and --std belong together"),
        (["--calib-data", "none.npz"], "none.npz: no such file or folder"),
        (["--calib-samples", "99"], "has 8 images, 99 are wanted"),
        (["--method", "rapq,rtn"], "each of these decides how the weights are rounded"),
        (["--iters", "5", "--kappa", "0.5"], "--iters, --kappa: --method rtn learns nothing"),
        (
            ["--method", "optq,waps", "--iters", "7", "--learn-batch", "8"],
            "--iters, --learn-batch: --method optq,waps takes no steps of an optimizer",
        ),
        (["--method", "qdrop", "--kappa", "0.5"], "--kappa: only --method rapq has it"),
        (["--seed", "-1"], "-1 is not in the range 0<=x<=4294967295"),
    ],
    ids=[
        *("target", "preset", "precision", "scales", "wess-channel", "order", "method", "mean"),
        *("data", "samples", "two-roundings", "nothing-learns", "nothing-trains", "kappa", "seed"),
    ],
)
def test_wrong_flags_are_usage_errors(tvmq, tmp_path, small, words, message):
    model, data = small.parent / "resnet_small.pt2", small.parent / "resnet_small.npz"
    words = words if "--calib-data" in words else [*words, "--calib-data", data]
    result = tvmq("build", model, "-o", tmp_path / "a", *words)
    assert result.code == 2
    assert message in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is an empty file"), (b"PK\x03\x04half", "truncated or corrupt"), (None, "no such")],
    ids=["empty", "truncated", "missing"],
)
def test_wrong_model_files(tvmq, tmp_path, content, message):
    if content is not None:
        (tmp_path / "m.pt2").write_bytes(content)
    result = tvmq("build", tmp_path / "m.pt2")
    assert result.code == 2
    assert message in result.err


def refuse_some(monkeypatch):
    """Let the NPU refuse the first layer."""
    refusals = flow.place.__globals__["refusals"]

    def refusing(network, spec):
        too_large = Refusal("kernels are at most 2 × 2", "Use smaller ones", "3 × 3")
        return [too_large, *refusals(network, spec)[1:]]

    monkeypatch.setitem(flow.place.__globals__, "refusals", refusing)


@pytest.mark.parametrize(
    ("words", "code"),
    [(["--strict"], 1), (["--max-fallback", "5"], 1), (["--max-fallback", "50"], 0), ([], 0)],
    ids=["strict", "max-5", "max-50", "allowed"],
)
def test_fallback_gates(tvmq, tmp_path, small, monkeypatch, words, code):
    refuse_some(monkeypatch)
    result = tvmq("build", small.parent / "resnet_small.pt2", "-o", tmp_path / "a", *words)
    assert result.code == code, result.err
    assert (tmp_path / "a").exists() == (code == 0)
    said = result.err if code else result.out
    assert "conv2d (module stem.0" in said
    assert ": 3 × 3 - kernels are at most 2 × 2. Use smaller ones." in said


def test_what_later_stages_refuse_is_said_before_anything_is_learned(
    tvmq, tmp_path, small, monkeypatch
):
    def learn(*_, **__):
        raise AssertionError("learned for hours")

    class FiveAxes(nn.Module):
        def forward(self, x):
            x = x.view(-1, 3, 3, 4, 12)
            return (x + x.transpose(1, 2)).reshape(-1, 3, 12, 12)

    refuse_some(monkeypatch)
    monkeypatch.setattr(flow, "reconstruct", learn)
    data = small.parent / "resnet_small.npz"
    words = ["--method", "qdrop", "--calib-data", data, "-o", tmp_path / "a"]
    result = tvmq("build", small.parent / "resnet_small.pt2", "--strict", *words)
    assert result.code == 1
    assert "kernels are at most 2 × 2" in result.err
    example = (torch.randn(2, 3, 12, 12),)
    torch.export.save(torch.export.export(FiveAxes(), example), tmp_path / "five.pt2")
    result = tvmq("build", tmp_path / "five.pt2", *words)
    assert result.code == 4
    assert "add (test_build.py:" in result.err
    assert "more than three axes besides the batch" in result.err


def test_another_build_leaves_finished_units_alone(tvmq, tmp_path):
    units = tmp_path / "a.units"
    units.mkdir()
    (units / "unit_0.npz").write_bytes(b"hours of work")
    model, data = save("odd_channels", tmp_path), save_inputs("odd_channels", tmp_path)
    words = ["--target", "cpu", "--calib-data", data, "-o", tmp_path / "a"]
    assert tvmq("build", model, *words).code == 0
    assert units.is_dir()
    result = tvmq("build", model, "--method", "adaround", "--iters", "1", *words)
    assert result.code == 0, result.err
    assert "holds units of another network, settings, images" in result.err
    assert not units.exists()


def test_devices_that_disagree_fail_the_gate_and_leave_the_evidence(tvmq, tmp_path, monkeypatch):
    monkeypatch.setattr(flow, "verify", lambda *_: False)
    model = save("odd_channels", tmp_path)
    result = tvmq("build", model, "-o", tmp_path / "a", "--target", "cpu", "--json")
    assert result.code == 1
    assert json.loads(result.out)["bit_exact"] is False
    assert "different outputs" in result.err
    assert Artifact.load(tmp_path / "a").manifest.bit_exact is False


def test_interrupted_build_says_how_to_resume_and_keeps_the_old_artifact(
    tvmq, tmp_path, small, monkeypatch
):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    target = tmp_path / "a"
    model = small.parent / "resnet_small.pt2"
    assert tvmq("build", model, "-o", target, "--target", "cpu").code == 0
    before = (target / "manifest.json").read_text()
    monkeypatch.setattr(flow, "compile_libraries", interrupt)
    result = tvmq("build", model, "-o", target, "--target", "cpu")
    assert result.code == 130
    assert f"tvmq build {model} -o {target} --target cpu" in result.err
    assert (target / "manifest.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_fault_of_ours_is_one_line_and_a_traceback_only_with_vv(tvmq, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(flow, "plan_network", fail)
    model = save("odd_channels", tmp_path)
    result = tvmq("build", model, "-o", tmp_path / "a")
    assert result.code == 4
    assert "internal: ZeroDivisionError: oops" in result.err
    assert "Traceback" not in result.err
    assert "Traceback" in tvmq("build", model, "-o", tmp_path / "a", "-vv").err


def test_builds_are_reproducible(tvmq, tmp_path):
    model, data = save("grouped", tmp_path), save_inputs("grouped", tmp_path)
    manifests = []
    for name in ("a", "b"):
        assert tvmq("build", model, "--calib-data", data, "-o", tmp_path / name).code == 0
        manifests.append(Artifact.load(tmp_path / name).manifest.model_dump())
    first, second = manifests
    assert first["files"] == second["files"]  # digests of every file
    assert {name for name in first if first[name] != second[name]} == {"seconds", "sha256"}


def test_another_folder_is_left_alone(tvmq, tmp_path, small):
    (tmp_path / "notes.txt").write_text("mine")
    result = tvmq("build", small.parent / "resnet_small.pt2", "-o", tmp_path)
    assert result.code == 2
    assert "not empty and not an artifact" in result.err
    assert [path.name for path in Path(tmp_path).iterdir()] == ["notes.txt"]


def test_residuals_of_more_bits_are_built_priced_and_built_again_from_their_plan(
    tvmq, small, tmp_path
):
    model = small.parent / "resnet_small.pt2"
    words = ("--precision", "w2a2", "--residual-bits", "8")
    result = tvmq("build", model, "-o", tmp_path / "a", *words)
    assert result.code == 0, result.err
    assert "activations per tensor, residuals 8 bits read rounded, first and last" in result.out
    built = Artifact.load(tmp_path / "a")
    price = built.manifest.residuals
    assert (price["bits"], price["values"], price["roundings"]) == (8, 3, 2)
    operators = json.loads(tvmq("profile", tmp_path / "a", "--json").out)["operators"]
    cycles = sum(row["cycles"] for row in operators)
    assert price["with_residuals"]["cycles"] == cycles
    change = 100 * (cycles / price["without"]["cycles"] - 1)
    assert (
        f"residuals of 8 bits: 3 values, 2 rounded copies of them, {change:+.2f} % cy" in result.out
    )
    assert "residuals of 8 bits: 3 values" in tvmq("inspect", tmp_path / "a").out
    plan = built.path("plan.json")
    again = ("build", model, "--plan", plan, "-o", tmp_path / "b", "--target", "cpu")
    assert tvmq(*again).code == 0
    other = Artifact.load(tmp_path / "b")
    assert other.manifest.files["golden.npz"] == built.manifest.files["golden.npz"]
    assert other.manifest.residuals["without"] is None  # no NPU, no price
    result = tvmq(*again, "--residual-bits", "8")
    assert result.code == 2
    assert "--plan and --residual-bits" in result.err


def test_residuals_that_are_not_there_are_refused(tvmq, small, tmp_path):
    model = small.parent / "resnet_small.pt2"
    result = tvmq("build", model, "-o", tmp_path / "a", "--residual-bits", "8")
    assert result.code == 2
    assert "activations have 8 bits; leave it out" in result.err
    result = tvmq("build", model, "-o", tmp_path / "a", "--residual-reads", "whole")
    assert result.code == 2
    assert "Give --residual-bits, or leave it out" in result.err
    words = ("--precision", "w4a4", "--residual-bits", "8", "-o", tmp_path / "a")
    result = tvmq("build", save("vgg_small", tmp_path), *words)
    assert result.code == 2
    assert "this network has no residual addition" in result.err
    assert not (tmp_path / "a").exists()
