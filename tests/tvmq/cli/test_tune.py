"""`tvmq tune` and `tvmq build` with trials: faster programs, the same outputs, nothing lost."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from model_files import save, save_inputs

from targets.npu.machine.spec import load_spec
from tvmq.artifact.artifact import Artifact
from tvmq.cli import main
from tvmq.run.session import Session
from tvmq.tune import search as search_module
from tvmq.tune.records import TRIALS, WORKLOADS, Records

TRIALS_MADE = 96


@pytest.fixture(scope="module")
def tuned(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned") / "tuned.tvmq"
    words = ["tune", small, "-o", folder, "--trials", TRIALS_MADE, "-q"]
    assert main([str(word) for word in words]) == 0
    return folder


def cycles(artifact) -> tuple[int, int]:
    found = Artifact.load(artifact).manifest.tuning["cycles"]
    return sum(found["before"]), sum(found["after"])


def test_a_tuned_artifact_gives_the_same_outputs_in_fewer_cycles(small, tuned, tvmq):
    artifact = Artifact.load(tuned)
    assert artifact.manifest.bit_exact
    with Artifact.load(small).reading("golden.npz") as path, np.load(path) as file:
        golden = dict(file)
    inputs = {name[6:]: array for name, array in golden.items() if name.startswith("input.")}
    for device in ("npu", "cpu", "reference"):
        for name, array in Session(artifact, device).run(inputs).items():
            np.testing.assert_array_equal(array, golden[f"output.{name}"])
    before, after = cycles(tuned)
    assert after < before
    profiles = [json.loads(tvmq("profile", each, "--json").out) for each in (small, tuned)]
    assert [each["total_cycles"] for each in profiles] == [before, after]


def test_the_manifest_says_what_was_done(tuned):
    manifest = Artifact.load(tuned).manifest
    assert manifest.tuning["trials"] == TRIALS_MADE
    assert manifest.tuning["seed"] == 0
    assert "tune" in manifest.seconds
    assert {"choices.json", "program_0.bin", "model.so"} <= set(manifest.files)
    assert manifest.settings["seed"] == 7


def test_the_same_again_makes_no_trial(small, tuned, tvmq, tmp_path):
    records = tuned.with_name(f"{tuned.name}.tuning")
    lines = (records / TRIALS).read_bytes()
    words = ["--trials", TRIALS_MADE, "--tuning-records", records, "--json"]
    result = tvmq("tune", small, "-o", tmp_path / "again.tvmq", *words)
    assert result.code == 0, result.err
    assert (records / TRIALS).read_bytes() == lines
    assert json.loads(result.out)["cycles_after"] == cycles(tuned)[1]
    programs = [
        Artifact.load(each).path("program_0.bin").read_bytes()
        for each in (tuned, tmp_path / "again.tvmq")
    ]
    assert programs[0] == programs[1]


def test_an_interrupt_loses_no_trial(small, tuned, tvmq, tmp_path, monkeypatch):
    output, made = tmp_path / "out.tvmq", []
    count = search_module.Search._count

    def interrupted(self, cycles):
        count(self, cycles)
        made.append(cycles)
        if len(made) == 10:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(search_module.Search, "_count", interrupted)
        result = tvmq("tune", small, "-o", output, "--trials", TRIALS_MADE)
    assert result.code == 130
    assert "finished trials are kept" in result.err
    assert not output.exists()
    records = output.with_name("out.tvmq.tuning")
    before = (records / TRIALS).read_bytes().splitlines()
    assert len(before) >= 10
    result = tvmq("tune", small, "-o", output, "--trials", TRIALS_MADE, "-q")
    assert result.code == 0, result.err
    after = (records / TRIALS).read_bytes().splitlines()
    assert after[: len(before)] == before
    other = tuned.with_name(f"{tuned.name}.tuning")
    assert after == (other / TRIALS).read_bytes().splitlines()
    assert cycles(output) == cycles(tuned)


@pytest.mark.slow
def test_a_build_uses_records_without_trials(tuned, tvmq, tmp_path):
    model, data = save("resnet_small", tmp_path), save_inputs("resnet_small", tmp_path)
    records = tuned.with_name(f"{tuned.name}.tuning")
    lines = (records / TRIALS).read_bytes()
    words = ["--calib-data", data, "--seed", 7, "--tuning-records", records, "--json"]
    result = tvmq("build", model, "-o", tmp_path / "a.tvmq", *words)
    assert result.code == 0, result.err
    facts = json.loads(result.out)["tuning"]
    assert (facts["trials"], facts["cycles"]["after"]) == (0, [cycles(tuned)[1]])
    assert json.loads(result.out)["bit_exact"]
    assert (records / TRIALS).read_bytes() == lines


@pytest.mark.slow
def test_a_build_for_another_machine_does_not_use_them(tuned, tvmq, tmp_path):
    model, data = save("resnet_small", tmp_path), save_inputs("resnet_small", tmp_path)
    records = tuned.with_name(f"{tuned.name}.tuning")
    assert Records(load_spec("e256"), [records]).read > 0
    words = ["--calib-data", data, "--seed", 7, "--tuning-records", records, "--json"]
    result = tvmq("build", model, "-o", tmp_path / "a.tvmq", "--target", "npu:m2048", *words)
    assert result.code == 0, result.err
    facts = json.loads(result.out)["tuning"]["cycles"]
    assert facts["before"] == facts["after"]
    assert "is of this machine, this compiler and these versions" in " ".join(result.err.split())


def test_products_are_priced_beside_programs_by_rule(tvmq, tmp_path):
    """What factors cost must not be hidden by what tuning gains."""
    model, data = save("odd_channels", tmp_path), save_inputs("odd_channels", tmp_path, 16)
    words = [
        "--calib-data",
        data,
        "--method",
        "waps",
        "--precision",
        "w2a2",
        "--product-budget",
        20,
    ]
    target = ["-o", tmp_path / "a.tvmq", "--target", "npu", "--trials", TRIALS_MADE]
    result = tvmq("build", model, *words, *target)
    assert result.code == 0, result.err
    before, after = cycles(tmp_path / "a.tvmq")
    assert after < before
    products = Artifact.load(tmp_path / "a.tvmq").manifest.reconstruction["products"]
    assert products["with_factors"]["cycles"] == before


def test_damaged_records_are_said(small, tuned, tvmq, tmp_path):
    records = tmp_path / "records"
    records.mkdir()
    for name in (WORKLOADS, TRIALS):
        content = (tuned.with_name(f"{tuned.name}.tuning") / name).read_bytes()
        (records / name).write_bytes(content + b"[7, {\n")
    words = ["--trials", 0, "--tuning-records", records]
    result = tvmq("tune", small, "-o", tmp_path / "a.tvmq", *words)
    assert result.code == 0, result.err
    assert "1 damaged" in result.err
    assert cycles(tmp_path / "a.tvmq") == cycles(tuned)


@pytest.mark.slow
def test_a_plot_falls_from_the_rules_cycles(small, tuned, tvmq, tmp_path):
    records = tuned.with_name(f"{tuned.name}.tuning")
    words = ["--trials", TRIALS_MADE, "--tuning-records", records, "--plot", tmp_path / "p.svg"]
    result = tvmq("tune", small, "-o", tmp_path / "a.tvmq", *words)
    assert result.code == 0, result.err
    text = (tmp_path / "p.svg").read_text()
    assert "<svg" in text
    assert "best so far" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--trials", "0", "--tuning-records", "nowhere"], "no such folder of tuning records"),
        (["--trials", "-1"], "--trials"),
    ],
)
def test_what_can_not_be_asked_for_is_refused(small, tvmq, tmp_path, words, said):
    result = tvmq("tune", small, "-o", tmp_path / "a.tvmq", *words)
    assert result.code == 2
    assert said in result.err


def test_an_artifact_is_no_folder_of_records(small, tvmq, tmp_path):
    words = ["--trials", 4, "--tuning-records", small]
    result = tvmq("tune", small, "-o", tmp_path / "a.tvmq", *words)
    assert result.code == 2
    assert "whose records of tuning lie beside it" in result.err
    assert not [path for path in small.iterdir() if path.name.startswith("database")]


def test_a_folder_of_which_nothing_is_used_is_said(small, tvmq, tmp_path):
    (tmp_path / "empty").mkdir()
    words = ["--trials", 0, "--tuning-records", tmp_path / "empty"]
    result = tvmq("tune", small, "-o", tmp_path / "a.tvmq", *words)
    assert result.code == 0, result.err
    assert "is of this machine, this compiler and these versions" in " ".join(result.err.split())


def test_wrong_records_are_said_and_not_believed(small, tuned, tvmq, tmp_path):
    records = tmp_path / "records"
    shutil.copytree(tuned.with_name(f"{tuned.name}.tuning"), records)
    lines = [json.loads(line) for line in (records / TRIALS).read_text().splitlines()]
    for line in lines:
        line[1][1] = [seconds / 2 for seconds in line[1][1]]
    (records / TRIALS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["--trials", TRIALS_MADE, "--tuning-records", records]
    result = tvmq("tune", small, "-o", tmp_path / "a.tvmq", *words)
    assert result.code == 0, result.err
    assert cycles(tmp_path / "a.tvmq")[0] == cycles(tuned)[0]
    assert cycles(tmp_path / "a.tvmq")[1] <= cycles(tuned)[0]
    assert "something else, or damaged" in " ".join(result.err.split())
