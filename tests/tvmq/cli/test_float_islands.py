"""Networks with float islands: built, run on every device, inspected, profiled, learned."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tvmq.artifact.artifact import Artifact
from tvmq.build_request import BuildRequest
from tvmq.cli import main
from tvmq.flow import build
from tvmq.run.session import Session
from tvmq.settings import Settings

DEVICES = ("npu", "cpu", "reference")


def conv(inputs, outputs, kernel=3):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


class TwoIslands(nn.Module):
    """One with two inputs around which an addition skips, one with two results."""

    def __init__(self):
        super().__init__()
        self.first, self.beside, self.middle = conv(3, 16), conv(16, 16), conv(16, 16)
        self.last = conv(16, 10)

    def forward(self, x):
        x = F.relu(self.first(x))
        y = x.cumsum(2) / (1 + self.beside(x).abs())
        x = F.relu(self.middle(y)) + x
        values, order = x.sort(1)
        return (self.last(values) + self.last(order.float() / 16)).mean((2, 3))


class LongNorm(nn.Module):
    """A block as PoolFormer's: its group norm is of too many numbers for integers."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 64, 7, stride=4, padding=2), nn.GroupNorm(1, 64)
        self.pool, self.up = nn.AvgPool2d(3, 1, 1, count_include_pad=False), conv(64, 96, 1)
        self.down, self.head = conv(96, 64, 1), nn.Linear(64, 10)

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(x)
        x = x + (self.pool(y) - y)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x.mean((2, 3)))


class AtTheEnd(nn.Module):
    """An island whose result is an output of the network as well."""

    def __init__(self):
        super().__init__()
        self.first, self.last = conv(3, 8), conv(8, 8)

    def forward(self, x):
        x = self.first(x).cumsum(3)
        return {"sums": x, "logits": self.last(x).mean((2, 3)), "class": self.last(x).argmax(1)}


class Warped(nn.Module):
    """Images are sampled in the middle and at the end; numbers are sorted, many of them 0."""

    def __init__(self):
        super().__init__()
        self.first, self.places, self.middle, self.last = (conv(*c) for c in CHANNELS)

    def forward(self, x):
        x = F.relu(self.first(x))
        places = torch.tanh(self.places(x)).permute(0, 2, 3, 1)
        y = F.relu(self.middle(F.grid_sample(x, places, align_corners=False)))
        values, order = y.topk(4, 1)
        y = values + order.float() / 1000
        return F.grid_sample(self.last(y), places, align_corners=True)


CHANNELS = ((3, 8), (8, 2), (8, 8), (4, 4))

NETWORKS = {
    "two islands": (TwoIslands, (3, 8, 8)),
    "long norm": (LongNorm, (3, 264, 264)),
    "at the end": (AtTheEnd, (3, 8, 8)),
    "warped": (Warped, (3, 8, 8)),
}


def written(room, name):
    """Model file and calibration data."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    module, images = make().eval(), torch.randn(8, *shape)
    free = ({0: torch.export.Dim("n")},)
    program = torch.export.export(module, (images[:2],), dynamic_shapes=free)
    torch.export.save(program, room / "model.pt2")
    np.savez(room / "data.npz", x=images.numpy())
    return module, images


def asked(room, **options):
    out = options.pop("out", "model.tvmq")
    return BuildRequest(
        room / "model.pt2", room / out, calib_data=str(room / "data.npz"), **options
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of the network with two islands, its module, its images; built as it says."""
    room = tmp_path_factory.mktemp("two")
    module, images = written(room, "two islands")
    words = ["build", room / "model.pt2", "--float-islands", "--strict"]
    words += ["--calib-data", room / "data.npz", "-o", room / "model.tvmq"]
    with (room / "said.txt").open("w") as said, contextlib.redirect_stdout(said):
        assert main([str(word) for word in words]) == 0
    assert Artifact.load(room / "model.tvmq").manifest.bit_exact
    return room, module, images


def decibels(want, got):
    return 10 * np.log10(float((want**2).sum() / (((want - got) ** 2).sum() + 1e-30)))


def check_devices(folder, module, images):
    """All give the same bits, and the network about the same."""
    artifact = Artifact.load(folder)
    runs = {d: Session(artifact, d).run({"x": images.numpy()}) for d in (*DEVICES, "float")}
    want = module(images)
    want = want if isinstance(want, dict) else {next(iter(runs["npu"])): want}
    for name, value in runs["npu"].items():
        for device in DEVICES[1:]:
            np.testing.assert_array_equal(runs[device][name], value)
        expected = want[name].detach().numpy()
        if expected.dtype.kind == "f":
            assert decibels(expected, runs["float"][name]) > 80
            assert decibels(expected, value) > 20
    return artifact


def test_two_islands_are_the_same_on_all_devices(two):
    room, module, images = two
    artifact = check_devices(room / "model.tvmq", module, images)
    first, second = artifact.manifest.float_islands
    assert [op.kind for op in first.operators] == ["cumsum", "div"]
    assert second.operators[0].kind == "sort"
    assert len(first.reads) == 2
    assert len(second.makes) == 2
    assert first.reads == {"relu": 1024, "conv2d_5_sums": 4096}
    assert first.bytes == 1024 + 4096 + 1024
    assert artifact.manifest.placement == {"npu": 11, "cpu": 0, "float": 4}
    assert len(artifact.programs()) == 3
    assert artifact.manifest.float_ends is None


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        pytest.param("long norm", [["group_norm"]] * 2, marks=pytest.mark.slow),
        ("at the end", [["cumsum"]]),
        pytest.param("warped", [["grid_sampler"], ["topk", "_to_copy"]], marks=pytest.mark.slow),
    ],
)
def test_an_island_is_the_same_on_all_devices(name, kinds, tmp_path):
    module, images = written(tmp_path, name)
    assert build(asked(tmp_path, float_islands=True)).manifest.bit_exact
    artifact = check_devices(tmp_path / "model.tvmq", module, images[:3])
    assert [[op.kind for op in i.operators] for i in artifact.manifest.float_islands] == kinds


def test_it_is_refused_unless_asked_for(two, tvmq, tmp_path):
    room, *_ = two
    result = tvmq(
        "build", room / "model.pt2", "-o", tmp_path / "o", "--calib-data", room / "data.npz"
    )
    assert result.code == 4
    words = result.err.replace("\n", " ")
    assert "cumsum" in words
    assert "test_float_islands.py" in words
    assert "--float-islands" in words
    assert not (tmp_path / "o").exists()
    assert tvmq("inspect", room / "model.pt2").code == 4


def test_build_and_inspect_list_the_islands_with_their_price(two, tvmq):
    room, *_ = two
    said = " ".join((room / "said.txt").read_text().split())
    assert "island_0: cumsum (" in said
    assert "float islands: 2," in said
    assert "bytes per image between codes and floats; the NPU runs the rest in 3 programs" in said
    for subject in ((room / "model.pt2", "--float-islands"), (room / "model.tvmq",)):
        rows = json.loads(tvmq("inspect", *subject, "--json").out)["operators"]
        kinds = [row["kind"] for row in rows]
        floats = [row for row in rows if row["device"] == "float"]
        assert {"cumsum", "div", "sort"} <= {row["kind"] for row in floats}
        assert all(row["reason"] and "test_float_islands.py" in row["source"] for row in floats)
        assert kinds.index("conv2d") < kinds.index("cumsum") < kinds.index("sort")
        assert f"float: {len(floats)} operators on the host" in tvmq("inspect", *subject).out


def test_profile_has_a_row_for_each_island(two, tvmq):
    room, *_ = two
    result = tvmq("profile", room / "model.tvmq", "--json")
    rows = json.loads(result.out)["operators"]
    islands = [row for row in rows if row["op"] == "float"]
    assert [row["name"] for row in islands] == ["island_0", "island_1"]
    assert all(row["us"] > 0 and row["device"] == "cpu" for row in islands)
    assert "cumsum, div" in islands[0]["reason"]
    assert not any(row["name"].startswith("island_0_") for row in rows)


def test_ranges_without_data_are_refused_with_what_to_do(two, tvmq, tmp_path):
    room, *_ = two
    words = ["--float-islands", "-o", tmp_path / "o.tvmq"]
    result = tvmq("build", room / "model.pt2", *words)
    assert result.code == 2
    words = result.err.replace("\n", " ")
    assert "runs in float in the middle of the network" in words
    assert "--calib-data" in words


def test_what_an_island_makes_no_number_is_zero_on_every_device(tmp_path):
    class Divided(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = conv(3, 8), conv(8, 4)

        def forward(self, x):
            x = F.relu(self.first(x))
            return self.last(x / x.amax((1, 2, 3), keepdim=True))

    torch.manual_seed(0)
    module, images = Divided().eval(), torch.randn(4, 3, 8, 8)
    module.first.bias.data.fill_(-0.25)
    free = ({0: torch.export.Dim("n")},)
    program = torch.export.export(module, (images[:2],), dynamic_shapes=free)
    torch.export.save(program, tmp_path / "model.pt2")
    np.savez(tmp_path / "data.npz", x=images.numpy())
    build(asked(tmp_path, float_islands=True, target="cpu"))
    artifact = Artifact.load(tmp_path / "model.tvmq")
    zeros = np.zeros((2, 3, 8, 8), np.float32)  # of which the ReLU leaves nothing
    runs = [next(iter(Session(artifact, d).run({"x": zeros}).values())) for d in DEVICES[1:]]
    for run in runs[1:]:
        np.testing.assert_array_equal(run, runs[0])
    bias = module.last.bias.detach().numpy()
    np.testing.assert_allclose(runs[0][0, :, 3, 3], bias, atol=0.01)


SLOW = [pytest.param(m, marks=pytest.mark.slow) for m in ("wess", "adaround", "brecq,waps")]


@pytest.mark.parametrize("method", ["equalize", *SLOW])
def test_methods_go_through_islands(two, method, tmp_path):
    room, module, images = two
    settings = Settings(method=tuple(method.split(",")), iterations=4)
    request = BuildRequest(
        room / "model.pt2",
        tmp_path / "o.tvmq",
        settings=settings,
        calib_data=str(room / "data.npz"),
        float_islands=True,
    )
    assert build(request).manifest.bit_exact
    check_devices(tmp_path / "o.tvmq", module, images)


def test_a_plan_is_built_from_again(two, tmp_path):
    room, *_ = two
    plan = room / "model.tvmq" / "plan.json"
    request = BuildRequest(room / "model.pt2", tmp_path / "o.tvmq", plan=plan, float_islands=True)
    assert build(request).manifest.bit_exact
    one, other = (folder / "integer.json" for folder in (room / "model.tvmq", tmp_path / "o.tvmq"))
    assert one.read_bytes() == other.read_bytes()


def test_what_the_comparison_would_miss_without_the_codes_behind_an_island(two, monkeypatch):
    """The reference runs an island by the library, and what stands behind reads what it made."""
    from tvmq.run import session

    room, _, images = two
    artifact = Artifact.load(room / "model.tvmq")
    inputs = {"x": images.numpy()}
    honest = Session(artifact, "reference").run(inputs)
    call = session.LibraryRunner.__call__

    def wrong(self, arrays, function="main"):
        return [made + 1 for made in call(self, arrays, function)]

    monkeypatch.setattr(session.LibraryRunner, "__call__", wrong)
    other = Session(artifact, "reference").run(inputs)
    assert any((honest[name] != other[name]).any() for name in honest)


def test_layers_beside_islands_are_debugged(two, tvmq):
    room, _, _ = two
    result = tvmq("debug", asked(room).output, "--data", asked(room).calib_data, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert [each["different"] for each in found["devices"][1:]] == [0, 0]
    assert {"conv2d", "conv2d_1", "conv2d_2"} <= {each["name"] for each in found["layers"]}
    weighted = [each for each in found["layers"] if each["kind"] == "conv2d"]
    assert min(each["own_db"] for each in weighted) > 20
