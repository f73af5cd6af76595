"""What all verbs share: help, exit codes, options, config files; verbs without a model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import targets
from targets.npu.machine.spec import NpuSpec, load_spec
from tvmq import doctor
from tvmq.cli import VERBS
from tvmq.doctor import Check

ROOT = Path(__file__).resolve().parents[3]


def process(*words, **environment):
    """The command in a process of its own."""
    command = [sys.executable, "-m", "tvmq", *words]
    settings = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, env=settings, capture_output=True, text=True, check=False)


def test_help_lists_the_verbs_and_imports_no_framework():
    script = (
        "import sys; from tvmq.cli import main; code = main(['--help']);"
        "assert not {'torch', 'tvm'} & set(sys.modules); sys.exit(code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert all(f"  {verb} " in result.stdout for verb in VERBS)


def test_exit_codes_reach_the_shell():
    assert process("--version").stdout.startswith("tvmq, version ")
    result = process("build", "none.pt2", "--target", "cpu")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: none.pt2: no such file")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Usage: tvmq"),
        (["make"], "No such command 'make'"),
        (["buidl"], "No such command 'buidl'. Did you mean build? See `tvmq --help`."),
        (["build"], "Missing argument 'MODEL'"),
        (["run", "a"], "Missing option '-i'"),
        (["eval", "a", "--data", "d", "--device", "gpu"], "'gpu' is not one of"),
        (["targets", "--jsn"], "No such option"),
    ],
    ids=["nothing", "verb", "misspelt", "argument", "option", "choice", "typo"],
)
def test_usage_errors(tvmq, words, message):
    result = tvmq(*words)
    assert result.code == 2
    assert message in result.err + result.out
    assert "Traceback" not in result.err


def test_every_verb_has_help(tvmq):
    for verb in VERBS:
        result = tvmq(verb, "--help")
        assert result.code == 0
        assert result.out.startswith(f"Usage: tvmq {verb}")


def test_targets(tvmq):
    data = json.loads(tvmq("targets", "--json").out)
    rows = {row["target"]: row for row in data["targets"]}
    assert rows["npu:e256"]["MACs per cycle"] == 256
    assert rows["npu:m2048"]["MACs per cycle"] == 2048
    assert rows["npu:m2048"]["TOPS at 8 bit"] == 4.096
    assert rows["npu:m2048"]["MACs per cycle by width"] == "8 bit 2048, 4 bit 4096, 2 bit 8192"
    assert rows["npu:e256"]["MACs per DRAM byte at balance"] == 32
    assert rows["npu:m2048"]["bits of a root or reciprocal per cycle"] == 2
    assert NpuSpec.model_validate(rows["npu:e256"]["description"]) == load_spec("e256")
    assert "npu:m2048" in tvmq("targets").out


def test_targets_shows_and_checks_ones_own_machine(tvmq, tmp_path):
    mine = tmp_path / "mine.toml"
    text = (Path(targets.__file__).parent / "npu" / "specs" / "e256.toml").read_text()
    mine.write_text(text.replace("bytes_per_cycle = 8 ", "bytes_per_cycle = 4 "))
    data = json.loads(tvmq("targets", mine, "--json").out)
    assert [row["target"] for row in data["targets"]] == [f"npu:{mine}"]
    assert data["targets"][0]["DRAM bytes per cycle"] == 4
    both = json.loads(tvmq("targets", "npu:m2048", f"npu:{mine}", "--json").out)
    assert [row["MACs per cycle"] for row in both["targets"]] == [2048, 256]
    assert "conformance" not in tvmq("targets", "e256").out
    mine.write_text(text.replace("burst", "brust"))
    refused = tvmq("targets", mine)
    assert refused.code == 2
    assert "dma.brust is no field (did you mean burst?)" in refused.err


def test_doctor(tvmq, monkeypatch):
    assert tvmq("doctor").code == 0
    broken = Check("apache-tvm-ffi", "error", "0.1.15", "pip install 'apache-tvm-ffi<0.1.15'")
    monkeypatch.setattr(doctor, "examine", lambda: [broken])
    result = tvmq("doctor", "--json")
    assert result.code == 5
    assert json.loads(result.out)["checks"][0]["state"] == "error"
    assert "apache-tvm-ffi 0.1.15: pip install" in result.err


def test_color_only_where_it_is_wanted():
    red = "31m"
    forced = {"FORCE_COLOR": "1", "TERM": "xterm-256color"}
    wrong = ("--scales", "cubic")  # refused before torch or TVM is imported
    assert red in process("build", *wrong, **forced).stderr
    assert red not in process("build", *wrong, **forced, NO_COLOR="1").stderr
    assert red not in process("build", "--no-color", *wrong, **forced).stderr
    assert "\x1b[" not in process("build", *wrong).stderr


def test_a_missing_package_has_a_code_of_its_own(tvmq, monkeypatch):
    monkeypatch.setitem(sys.modules, "tvmq.build_request", None)  # its import fails
    result = tvmq("build", "m.pt2")
    assert result.code == 5
    assert "tvmq doctor" in result.err


def test_config_gives_defaults_and_the_command_line_wins(tvmq, tmp_path):
    config = tmp_path / "tvmq.toml"
    config.write_text('precision = "w9a9"\n[build]\ntarget = "gpu"\n')
    words = ["build", tmp_path / "none.pt2", "--config", config]
    assert "precision 'w9a9' is not of the form" in tvmq(*words).err
    assert "--target gpu" in tvmq(*words, "--precision", "w8a8").err
    assert "no such file" in tvmq(*words, "--precision", "w8a8", "--target", "cpu").err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a = ", "not TOML"),
        ("a = " + "[" * 2_000 + "]" * 2_000, "can't be read: nested too deeply"),
        ("[build]\nprecisoin = 'w8a8'\n", "[build] has 'precisoin', which is no option"),
        ("[eval]\nstrict = true\n", "[eval] has 'strict', which is no option of `tvmq eval`"),
        ("calib-date = 'c.npz'\n", "'calib-date' is no option of any verb"),
        ("build = 3\n", "'build' is no option of any verb"),
        ("[biuld]\nstrict = true\n", "[biuld] is no verb; sections are build, run"),
        (None, "no such file"),
    ],
    ids=[
        "syntax",
        "depth",
        "typo",
        "other verb",
        "common typo",
        "no section",
        "verb typo",
        "missing",
    ],
)
def test_wrong_config(tvmq, tmp_path, content, message):
    if content is not None:
        (tmp_path / "c.toml").write_text(content)
    result = tvmq("build", "m.pt2", "--config", tmp_path / "c.toml")
    assert result.code == 2
    assert message in result.err


def test_names_do_not_break_the_line_of_an_error(tvmq, tmp_path):
    result = tvmq("inspect", tmp_path / "a\nb\x1b[31m\udcff[bold].pt2")
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert "a\\nb\\x1b[31m\\udcff[bold].pt2: no such file" in result.err


def test_quiet_says_only_errors(tvmq, tmp_path):
    result = tvmq("build", tmp_path / "none.pt2", "-q")
    assert result.err.startswith("error: ")
