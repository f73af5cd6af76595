"""A network with both float ends: built, run on every device, evaluated, inspected, profiled."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from targets.errors import InputError, UnsupportedError
from tvmq.artifact.artifact import Artifact
from tvmq.build_request import BuildRequest
from tvmq.flow import build
from tvmq.run.session import LibraryRunner, Session
from tvmq.tune.request import TuneRequest
from tvmq.tune.retune import retune

DEVICES = ("npu", "cpu", "reference")


class BothEnds(nn.Module):
    """Takes bytes, channels last, by their own deviation; gives classes and the best of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = x.permute(0, 3, 1, 2).float()
        x = (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)
        maps = self.last(F.relu(self.norm(self.first(x))))
        best, where = maps.flatten(2).softmax(2).topk(2, 2)
        return {"class": maps.amax((2, 3)).argmax(1), "best": best, "where": where}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    module = BothEnds()
    images = torch.randint(0, 256, (64, 8, 8, 3), dtype=torch.uint8)
    module(images)  # for the statistics of the batch norm
    return module.eval(), images


@pytest.fixture(scope="module")
def both(network, tmp_path_factory):
    """Model file, data and artifact."""
    module, images = network
    room = tmp_path_factory.mktemp("both")
    free = ({0: torch.export.Dim("n")},)
    program = torch.export.export(module, (images[:2],), dynamic_shapes=free)
    torch.export.save(program, room / "both.pt2")
    labels = module(images)["class"].numpy()
    np.savez(room / "data.npz", images=images.numpy(), labels=labels)
    request = BuildRequest(room / "both.pt2", room / "both.tvmq", calib_data=str(room / "data.npz"))
    result = build(request)
    assert result.manifest.bit_exact
    return room


def test_all_devices_give_the_same_bits_and_the_network_about_the_same(both, network):
    module, images = network
    artifact = Artifact.load(both / "both.tvmq")
    runs = {d: Session(artifact, d).run({"x": images.numpy()}) for d in (*DEVICES, "float")}
    for device in DEVICES[1:]:
        for name, value in runs["npu"].items():
            np.testing.assert_array_equal(runs[device][name], value)
            assert runs[device][name].dtype == value.dtype
    assert {k: str(v.dtype) for k, v in runs["npu"].items()} == {
        "class": "int64",
        "best": "float32",
        "where": "int64",
    }
    want = {name: value.detach().numpy() for name, value in module(images).items()}
    for name, value in want.items():
        np.testing.assert_allclose(runs["float"][name], value, rtol=1e-4)
    assert (runs["npu"]["class"] == want["class"]).mean() > 0.8
    assert np.abs(runs["npu"]["best"] - want["best"]).max() < 0.1


def test_its_integers_can_be_tuned(both, network, tmp_path):
    result = retune(both / "both.tvmq", tmp_path / "tuned.tvmq", TuneRequest(6))
    assert result.manifest.bit_exact
    assert result.tuned.after <= result.tuned.before
    inputs = {"x": network[1].numpy()}
    plain, tuned = (
        Session(Artifact.load(each), "npu").run(inputs)
        for each in (both / "both.tvmq", tmp_path / "tuned.tvmq")
    )
    for name, array in plain.items():
        np.testing.assert_array_equal(tuned[name], array)


def test_the_compiled_tail_is_the_networks_own_within_rounding(both, network):
    """Behind the integers: what the library makes of them, and what torch does."""
    from tvmq.capture.capture import capture

    model = capture(both / "both.pt2")
    artifact = Artifact.load(both / "both.tvmq")
    with np.load(artifact.path("golden.npz")) as golden:
        sums = [golden[f"integers.{spec.name}"] for spec in model.outputs]
        given = {spec.name: golden[f"output.{spec.name}"] for spec in model.network_outputs}
    want = model.ends.tail.graph_module(*map(torch.from_numpy, sums))
    for spec, expected in zip(model.network_outputs, want, strict=True):
        if spec.dtype == "int64":  # of equal sums each may choose another
            assert (given[spec.name] == expected.numpy()).mean() > 0.8
        else:
            np.testing.assert_allclose(given[spec.name], expected.numpy(), rtol=1e-5, atol=1e-6)


def test_the_integers_end_with_the_sums_of_the_last_layer(both):
    artifact = Artifact.load(both / "both.tvmq")
    with np.load(artifact.path("golden.npz")) as golden:
        sums = {name: golden[name] for name in golden.files if name.startswith("integers.")}
    (name,) = sums
    assert sums[name].shape[1:] == (4, 8, 8)
    steps = sums[name] * 2.0**24
    assert len(np.unique(steps)) > 256  # no 8-bit codes
    np.testing.assert_array_equal(steps, np.rint(steps))  # but whole multiples of a power of two


@pytest.mark.parametrize("device", DEVICES)
def test_what_the_head_makes_nan_is_refused(both, device):
    constant = np.full((2, 8, 8, 3), 7, np.uint8)
    constant[0, 0] = 9
    session = Session(Artifact.load(both / "both.tvmq"), device)
    with pytest.raises(InputError, match=r"image 1 of the batch.* NaN .* divide by something"):
        session.run({"x": constant})


def test_a_librarys_functions_are_the_network_in_three_parts(both):
    run = LibraryRunner(both / "both.tvmq" / "cpu.so")
    with np.load(both / "both.tvmq" / "golden.npz") as golden:
        arrays = {name: golden[name] for name in golden.files}
    made = run([arrays["input.x"]], "head")
    between = run(made, "integers")
    results = run(between, "tail")
    for (_, value), found in zip(
        [item for item in arrays.items() if item[0].startswith("output.")], results, strict=True
    ):
        np.testing.assert_array_equal(found, value)
    assert made[0].dtype == np.float32


def test_eval_inspect_and_profile_know_the_ends(both, tvmq):
    artifact = both / "both.tvmq"
    result = tvmq("eval", artifact, "--data", both / "data.npz", "--json", "--min-top1", "0.8")
    assert result.code == 0, result.err
    numbers = json.loads(result.out)
    assert "top5" not in numbers
    assert numbers["top1"] > 0.8

    for subject in (both / "both.pt2", artifact):
        result = tvmq("inspect", subject, "--json")
        rows = json.loads(result.out)["operators"]
        floats = [row for row in rows if row["device"] == "float"]
        assert {"std", "argmax", "topk", "softmax"} <= {row["kind"] for row in floats}
        assert all(row["reason"] and "test_float_ends.py" in row["source"] for row in floats)
        assert rows[0] in floats
        assert rows[-1] in floats
        assert f"float: {len(floats)} operators on the host" in tvmq("inspect", subject).out

    result = tvmq("profile", artifact, "--json")
    rows = {row["name"]: row for row in json.loads(result.out)["operators"]}
    for end in ("head", "tail"):
        assert rows[f"float {end}"]["device"] == "cpu"
        assert rows[f"float {end}"]["us"] > 0
    assert "topk" in rows["float tail"]["reason"]
    assert not {"integers", "head", "tail"} & set(rows)

    manifest = Artifact.load(artifact).manifest
    assert manifest.placement["float"] == len(manifest.float_ends.operators)
    assert [info.dtype for info in manifest.outputs] == ["int64", "float32", "int64"]
    assert manifest.inputs[0].dtype == "uint8"


def test_build_says_what_stays_in_float(both, tvmq, tmp_path):
    out = tmp_path / "o.tvmq"
    words = ["--calib-data", both / "data.npz", "-o", out, "--target", "cpu"]
    result = tvmq("build", both / "both.pt2", *words)
    assert result.code == 0, result.err
    assert "in float on the host" in result.out
    assert "float head: std (" in result.out.replace("\n", " ")
    assert "float tail:" in result.out
    mean = tvmq("build", both / "both.pt2", *words, "--mean", "0.5", "--std", "0.5")
    assert mean.code == 2
    assert "normalizes them itself" in mean.err


def test_a_head_needs_images_to_calibrate_with(both, tvmq, tmp_path):
    result = tvmq("build", both / "both.pt2", "-o", tmp_path / "o.tvmq", "--target", "cpu")
    assert result.code == 2
    assert "--calib-data" in result.err
    assert "runs in float" in result.err.replace("\n", " ")
    assert not (tmp_path / "o.tvmq").exists()


def test_what_tvm_would_compute_otherwise_is_refused(network, monkeypatch):
    from tvmq import float_ends
    from tvmq.capture.capture import capture_program

    module, images = network
    free = ({0: torch.export.Dim("n")},)
    model = capture_program(torch.export.export(module, (images[:2],), dynamic_shapes=free))
    honest = float_ends.import_float

    def another(program, what):
        for node in program.graph.nodes:
            if "argmax" in node.name:
                node.target = torch.ops.aten.argmin.default
        return honest(program, what)

    monkeypatch.setattr(float_ends, "import_float", another)
    with pytest.raises(UnsupportedError, match=r"behind the last layer: TVM computes result 0"):
        float_ends.compilable_ends(model)


def test_layers_between_the_ends_are_debugged(both, tvmq):
    words = ("--data", both / "data.npz", "--samples", 4, "--json")
    result = tvmq("debug", both / "both.tvmq", *words)
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert [each["kind"] for each in found["layers"]] == ["input", "conv2d", "conv2d"]
    assert min(each["own_db"] for each in found["layers"]) > 25
    assert [each["different"] for each in found["devices"][1:]] == [0, 0]
