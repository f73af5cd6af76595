"""What RAPQ promises, checked on the files of an artifact: powers of two, few codes, shifts."""

import math

import numpy as np
import pytest
import tvm
from model_files import save, save_inputs

from relay_passes.relax_nodes import Graph, array_of, op_of
from targets.npu.machine import isa
from tvmq.artifact.artifact import Artifact
from tvmq.cli import main
from tvmq.pages.profile_page import render

NAME = "resnet_small"
LEARNED = {"conv2d_1", "conv2d_2", "conv2d_3", "conv2d_4"}
"""Layers that are neither first nor last: these have the bits that were asked for."""


def _build(folder, *words) -> Artifact:
    model, data = save(NAME, folder), save_inputs(NAME, folder, 16)
    artifact = folder / "a.tvmq"
    words = ["build", model, "-o", artifact, "--calib-data", data, "-q", "--iters", 5, *words]
    assert main([str(word) for word in words]) == 0
    return Artifact.load(artifact)


@pytest.fixture(scope="module")
def rapq(tmp_path_factory) -> Artifact:
    return _build(
        tmp_path_factory.mktemp("rapq"),
        *("--method", "rapq", "--precision", "w2a4", "--granularity", "channel"),
    )


def _weights(artifact: Artifact) -> list[np.ndarray]:
    """int8 kernels of the integer module, output channels first, in order of the network."""
    graph = Graph(tvm.ir.load_json(artifact.path("integer.json").read_text()))
    kernels = []
    for _, value in graph.bindings:
        if op_of(value) in ("nn.conv2d", "matmul"):
            array = array_of(value.args[1])
            kernels.append(array if array.ndim == 4 else array.T)
    return kernels


def test_every_step_is_a_power_of_two(rapq):
    plan = rapq.read_json("plan.json")
    steps = [value["step"] for value in plan["values"].values()]
    steps += [
        step
        for name, layer in plan["layers"].items()
        if name != "avg_pool2d"
        for step in layer["weight_steps"]
    ]
    assert len(steps) > 50
    for step in steps:
        number = 2.0 ** int(step.removeprefix("2^")) if isinstance(step, str) else step
        assert math.log2(number).is_integer()


def test_zero_points_are_integers(rapq):
    assert all(type(v["zero_point"]) is int for v in rapq.read_json("plan.json")["values"].values())


def test_a_channel_of_b_bits_has_at_most_2_to_the_b_values(rapq):
    kernels = _weights(rapq)
    few = [kernel for kernel in kernels if kernel.min() >= -2 and kernel.max() <= 1]
    assert len(few) >= len(LEARNED)
    for kernel in kernels[1 : 1 + len(LEARNED)]:
        assert max(len(np.unique(channel)) for channel in kernel) <= 4
        assert len(np.unique(kernel)) > 2  # and not all zero


def test_no_multiplier_but_for_pooling(rapq):
    (program,) = rapq.programs().values()
    multiplied = set()
    for span in program.layers:
        for instruction in span.of(program.instructions):
            if isinstance(instruction, isa.Requantize) and (
                instruction.multiply or instruction.res_mult != 1
            ):
                multiplied.add(span.name)
            if isinstance(instruction, isa.Add):
                assert instruction.ma == instruction.mb == 1
    assert multiplied <= {"avg_pool2d"}  # 6 * 6 is not a power of two
    assert rapq.manifest.bit_exact


def test_the_manifest_tells_what_was_done(rapq):
    facts = rapq.manifest.reconstruction
    assert [unit["unit"] for unit in facts["units"]] == [
        *("conv2d", "conv2d_1..conv2d_2", "conv2d_3..conv2d_4", "linear")
    ]
    for unit in facts["units"]:
        losses = {candidate["name"]: candidate["loss"] for candidate in unit["candidates"]}
        inner = ["scaled tensors"] if ".." in unit["unit"] else []
        assert list(losses) == ["nearest", *inner, "compensated", "learned"]
        assert unit["kept"] == min(losses, key=losses.__getitem__)
        accepted = [one["name"] for one in unit["candidates"] if one["accepted"]]
        assert accepted[-1] == unit["kept"]
        assert unit["iterations"] == 5
    (network,) = facts["network"]
    assert network["name"] == "exponents"
    assert network["loss_after"] <= network["loss_before"]
    assert {cost["layer"] for cost in facts["power_of_two_cost"]} >= LEARNED


def test_a_page_shows_it(rapq):
    facts = rapq.manifest.reconstruction
    page = render("reconstruction.html", reconstruction=facts)
    assert "<h2>Reconstruction</h2>" in page
    assert all(f"<td>{unit['unit']}</td>" in page for unit in facts["units"])
    names = ("nearest", "scaled tensors", "compensated", "learned")
    heads = [f'<th class="number">{name}</th>' for name in names]
    assert "".join(heads) in page
    first, second, *_ = (page[page.index(f"<td>{unit['unit']}</td>") :] for unit in facts["units"])
    assert '<td class="number"></td>' in first[: first.index("</tr>")]  # nothing inside to scale
    assert '<td class="number"></td>' not in second[: second.index("</tr>")]
    assert "<h2>Cost of powers of two</h2>" in page
    assert all(f"<td>{cost['layer']}</td>" in page for cost in facts["power_of_two_cost"])


def test_a_page_says_so_where_no_exponent_was_moved():
    network = {"name": "exponents", "loss_before": 0.5, "loss_after": 0.25, "moves": []}
    move = {"values": ["relu"], "before": -1, "after": 0, "loss": 0.25}
    facts = {"units": [], "network": [network], "power_of_two_cost": []}
    assert "Nothing was moved." in render("reconstruction.html", reconstruction=facts)
    facts["network"] = [{**network, "moves": [move]}]
    page = render("reconstruction.html", reconstruction=facts)
    assert "Nothing was moved." not in page
    assert '<td>relu</td><td class="number">-1</td><td class="number">0</td>' in page


def test_weights_of_3_bits_lie_in_4(tmp_path):
    artifact = _build(tmp_path, "--method", "qdrop", "--precision", "w3a3", "--scales", "free")
    assert all(abs(kernel).max() <= 4 for kernel in _weights(artifact)[1 : 1 + len(LEARNED)])
    (program,) = artifact.programs().values()
    bits = {
        span.name: {
            isa.WIDTHS[instruction.wgt_bits]
            for instruction in span.of(program.instructions)
            if isinstance(instruction, isa.Gemm)
        }
        for span in program.layers
    }
    assert [bits[name] for name in sorted(LEARNED)] == [{4}] * len(LEARNED)
    plan = artifact.read_json("plan.json")
    assert [plan["layers"][name]["weight_bits"] for name in sorted(LEARNED)] == [3] * len(LEARNED)
    assert artifact.manifest.bit_exact


RAPQ = ("--method", "rapq", "--calib-data", "images.npz")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--method", "foo"], 2, "foo"),
        (["--iters", "0", "--method", "rapq"], 2, "--iters"),
        (["--learn-batch", "0", "--method", "rapq"], 2, "--learn-batch"),
        ([*RAPQ, "--learn-device", "gpu"], 2, "--learn-device gpu: give cpu, cuda"),
        ([*RAPQ, "--learn-device", "cuda:99"], 2, "--learn-device cuda:99: torch sees"),
        (["--learn-device", "cuda"], 2, "--learn-device: --method rtn learns nothing"),
        (["--kappa", "2", "--method", "rapq"], 2, "--kappa"),
        (["--method", "rapq"], 2, "--calib-data"),
        (["--method", "rapq", "--scales", "free"], 2, "power-of-two"),
        (["--method", "rapq,qdrop"], 2, "choose one"),
    ],
)
def test_wrong_arguments_are_refused(tvmq, tmp_path, words, code, message):
    result = tvmq("build", save(NAME, tmp_path), "-o", tmp_path / "a", *words)
    assert result.code == code
    assert message in result.err
    assert not (tmp_path / "a").exists()


def test_all_methods_together_are_a_plan_that_builds_the_same(tmp_path):
    """Steps and shifts of channels, scaled tensors, learned codes, factors and borders."""
    words = ("--method", "wess,rapq,waps,aquant,distill", "--precision", "w2a2")
    artifact = _build(tmp_path, *words)
    assert artifact.manifest.bit_exact
    again = tmp_path / "again.tvmq"
    model, plan = tmp_path / f"{NAME}.pt2", tmp_path / "a.tvmq" / "plan.json"
    words = ["build", model, "-o", again, "--plan", plan, "--target", "cpu", "-q"]
    assert main([str(word) for word in words]) == 0
    assert Artifact.load(again).path("plan.json").read_bytes() == (
        artifact.path("plan.json").read_bytes()
    )
