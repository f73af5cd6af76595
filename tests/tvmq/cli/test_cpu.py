"""`--cpu`: artifacts for other processors, and what becomes of them here."""

import json

import numpy as np
import pytest
from model_files import save, save_inputs

from targets.cpu import host
from targets.cpu.host import foreign_architecture, host_sets
from targets.cpu.instruction_sets import NAMED
from targets.errors import MissingDependencyError
from targets.linker import find_linker
from tvmq.artifact.artifact import Artifact


def _foreign() -> str:
    """A processor that this one is not, but that it can link for."""
    for each in NAMED:
        if each not in host_sets():
            try:
                find_linker(foreign_architecture(each.target))
            except MissingDependencyError:
                continue
            return each.name
    pytest.skip("this machine executes all that it links for")


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    folder = tmp_path_factory.mktemp("network")
    return save("resnet_small", folder), save_inputs("resnet_small", folder)


def _built(tvmq, network, folder, *words):
    model, data = network
    done = tvmq("build", model, "--calib-data", data, "--target", "cpu", "-o", folder, *words)
    assert done.code == 0, done.err
    return Artifact.load(folder), done


def test_every_processor_gets_the_same_integers(tvmq, network, tmp_path):
    """The smallest that this one executes; and one that it doesn't, of which nothing is loaded."""
    small, _ = _built(tvmq, network, tmp_path / "small", "--cpu", host_sets()[-1].name)
    assert small.manifest.cpu.executed
    name = _foreign()
    other, done = _built(tvmq, network, tmp_path / "other", "--cpu", name)
    assert "can't execute what is built for --cpu" in done.err
    assert f"the libraries for {name} were not executed" in done.out
    assert not other.manifest.cpu.executed
    assert other.manifest.bit_exact
    golden = [np.load(artifact.path("golden.npz")) for artifact in (small, other)]
    for key in golden[0].files:
        np.testing.assert_array_equal(golden[0][key], golden[1][key])
    words = ("run", tmp_path / "other", "-i", network[1], "-o", tmp_path / "o.npz")
    refused = tvmq(*words)
    assert refused.code == 2
    assert "was built for another processor" in refused.err
    assert f"--cpu {name}" in refused.err
    reference = tvmq(*words, "--device", "reference")
    assert reference.code == 0, reference.err


@pytest.mark.parametrize("verb", ["run", "profile"])
def test_a_processor_that_lacks_what_an_artifact_needs(tvmq, small, tmp_path, monkeypatch, verb):
    needed = Artifact.load(small).manifest.cpu.needs
    assert needed
    without = host._host_features() - {needed[0]}
    monkeypatch.setattr(host, "_host_features", lambda: without)
    data = save_inputs("resnet_small", tmp_path)
    words = ("-i", data, "-o", tmp_path / "o.npz") if verb == "run" else ()
    done = tvmq(verb, small, *words)
    assert done.code == 2
    assert f"this processor has no {needed[0]}." in done.err
    assert not (tmp_path / "o.npz").exists()


def test_an_unknown_processor_is_a_usage_error(tvmq, network, tmp_path):
    done = tvmq("build", network[0], "--cpu", "pentium", "-o", tmp_path / "o")
    assert done.code == 2
    assert "processor pentium: no such instruction set" in done.err


def test_an_architecture_without_linker_is_a_missing_tool(tvmq, network, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    other = next(each for each in NAMED if foreign_architecture(each.target))
    done = tvmq("build", network[0], "--cpu", other.name, "-o", tmp_path / "o")
    assert done.code == 5
    assert f"no C++ compiler that links for {other.architecture}" in done.err


def test_targets_and_doctor_say_what_this_machine_executes(tvmq):
    listed = json.loads(tvmq("targets", "--json").out)["cpu"]
    assert [each["--cpu"] for each in listed] == [each.name for each in NAMED]
    here = [each["--cpu"] for each in listed if each["on this machine"]]
    assert here == [each.name for each in host_sets()]
    assert "cpu" not in json.loads(tvmq("targets", "npu:e256", "--json").out)
    checks = {each["name"]: each for each in json.loads(tvmq("doctor", "--json").out)["checks"]}
    assert f"executes --cpu {', '.join(here)}" in checks["processor"]["found"]
