"""`tvmq inspect` and `disasm`: they say what is there, and why."""

import json
import re

import pytest
import tomli_w
from model_files import save

from targets.npu.machine.program import Program
from targets.npu.machine.spec import load_spec


def test_inspect_model_forecasts_what_the_build_does(tvmq, small):
    data = json.loads(tvmq("inspect", small.parent / "resnet_small.pt2", "--json").out)
    built = json.loads((small / "layers.json").read_text())
    fields = ("name", "source", "kind", "macs", "device", "reason")
    assert [[row[key] for key in fields] for row in data["operators"]] == [
        [row[key] for key in fields] for row in built
    ]


def test_inspect_prices_every_layer(tvmq, small):
    model = small.parent / "resnet_small.pt2"
    priced = json.loads(tvmq("inspect", model, "--json").out)["operators"]
    exact = json.loads(tvmq("profile", small, "--json").out)["operators"]
    total = sum(row["cycles"] for row in exact)
    assert sum(row["cycles"] for row in priced) == pytest.approx(total, rel=0.15)
    assert all(row["bound"] for row in priced if row["cycles"])
    said = tvmq("inspect", model).out
    assert f" MACs per image, {sum(row['cycles'] for row in priced):,} cycles\n" in said
    assert "Cycles are of one image and estimated" in said


def test_inspect_prices_residuals_of_more_bits(tvmq, small):
    model = small.parent / "resnet_small.pt2"
    words = ("inspect", model, "--precision", "w2a2")
    bare = json.loads(tvmq(*words, "--json").out)
    words += ("--residual-bits", "8")
    data = json.loads(tvmq(*words, "--json").out)
    assert bare["residuals"] is None
    kinds = {row["name"]: row["kind"] for row in data["operators"]}
    assert [name for name in kinds if kinds[name] == "requantize"] == [
        "relu_rounded",
        "relu_2_rounded",
    ]
    cycles, without = (sum(r["cycles"] for r in d["operators"]) for d in (data, bare))
    assert data["residuals"] == {
        "residual_bits": 8,
        "residual_reads": "rounded",
        "cycles": cycles,
        "without": without,
    }
    said = tvmq(*words).out
    assert "forecast for npu, w2a2, residuals 8 bits" in said
    assert f"residuals of 8 bits: {100 * (cycles / without - 1):+.2f} % cycles" in said


def test_inspect_prices_what_the_machine_refuses(tvmq, small, tmp_path):
    tight = load_spec("e256").model_dump()
    tight["sram"]["act"]["bytes"] = 512
    machine = tmp_path / "tight.toml"
    machine.write_text(tomli_w.dumps(tight))
    said = tvmq("inspect", small.parent / "resnet_small.pt2", "--target", machine).out
    row = next(line for line in said.splitlines() if " cpu " in line)
    assert re.search(r" cpu +\([\d,]+\) ", row), said
    assert re.search(r"cpu: \d+ operators, [\d,]+ MACs per image, \([\d,]+\) cycles", said)


def test_without_an_npu_there_are_no_cycles(tvmq, small):
    words = ("inspect", small.parent / "resnet_small.pt2", "--target", "cpu")
    assert all(row["cycles"] is None for row in json.loads(tvmq(*words, "--json").out)["operators"])
    assert "cycles" not in tvmq(*words).out


def test_inspect_model_without_batch_norm_and_in_words(tvmq, tmp_path):
    result = tvmq("inspect", save("mlp", tmp_path), "--target", "npu:m2048")
    assert result.code == 0, result.err
    assert "forecast for npu:m2048, w8a8" in result.out
    assert f"npu: 3 operators, {20 * 33 + 33 * 16 + 16 * 5:,} MACs per image" in result.out


def test_inspect_artifact(tvmq, small):
    result = tvmq("inspect", small)
    assert result.code == 0, result.err
    assert "in  x: float32[N, 3, 12, 12]" in result.out
    assert "module layer1.conv1, models.py:" in result.out
    assert "Stages for --stage: float, annotated, Import" in result.out
    data = json.loads(tvmq("inspect", small, "--json").out)
    assert data["manifest"]["bit_exact"] is True
    assert data["operators"] == json.loads((small / "layers.json").read_text())


@pytest.mark.parametrize(
    ("stage", "text"),
    [
        ("float", "torch.ops.aten.conv2d"),
        ("annotated", "torch.ops.tvmq.fake_quantize"),
        ("integer", 'out_dtype="int32"'),
        ("verifyinteger", 'out_dtype="int32"'),
        ("Placed", "npu_program_0"),
    ],
)
def test_inspect_stage(tvmq, small, stage, text):
    assert text in tvmq("inspect", small, "--stage", stage).out


def test_unknown_stage_lists_the_known(tvmq, small):
    result = tvmq("inspect", small, "--stage", "relay")
    assert result.code == 2
    assert "has no stage 'relay'. Choose one of float, annotated" in result.err
    assert (
        "--stage is for artifacts"
        in tvmq("inspect", small.parent / "resnet_small.pt2", "--stage", "float").err
    )


def test_disasm_prints_what_is_stored(tvmq, small):
    program = Program.from_bytes((small / "program_0.bin").read_bytes())
    result = tvmq("disasm", small)
    assert result.code == 0, result.err
    lines = [line for line in result.out.splitlines() if not line.startswith(";")]
    assert len(lines) == len(program.instructions)
    assert lines[-1].split() == [str(len(lines) - 1), "HALT"]
    assert "; conv2d  conv2d  62208 MACs  module stem.0, models.py" in result.out
    data = json.loads(tvmq("disasm", small, "--json").out)
    assert len(data["programs"]["program_0.bin"]["instructions"]) == len(lines)
