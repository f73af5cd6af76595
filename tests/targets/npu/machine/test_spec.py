"""Machine descriptions: presets, and errors that name the field."""

import re
from importlib import resources

import pytest

from targets.errors import SpecError
from targets.npu.machine.spec import load_spec, parse_spec, presets

E256 = (resources.files("targets.npu") / "specs" / "e256.toml").read_text()


def test_presets_have_their_macs_and_fill():
    assert {"e256", "m2048"} <= set(presets())
    e256, m2048 = load_spec("e256"), load_spec("m2048")
    assert (e256.peak_macs_per_cycle, e256.array.fill_cycles, e256.acc_rows) == (256, 30, 1024)
    assert (m2048.peak_macs_per_cycle, m2048.array.fill_cycles, m2048.acc_rows) == (2048, 9, 2048)


def test_machines_for_comparisons_are_listed_last():
    names = presets()
    comparisons = [name for name in names if name.startswith("conformance")]
    assert names[-len(comparisons) :] == comparisons != names


def test_a_path_is_read_and_the_digest_is_of_the_content(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("# a comment\n" + E256)
    assert load_spec(str(path)).digest == load_spec("e256").digest
    path.write_text(E256.replace("read_latency = 100", "read_latency = 101"))
    assert load_spec(str(path)).digest != load_spec("e256").digest


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('kind = "systolic"', 'kind = "ring"', "array.kind.*systolic.*tree"),
        ("rows = 16\n", "rows = 0\n", "array.rows.*greater than or equal to 2"),
        ("cols = 16\n", "cols = 1\n", "array.cols.*greater than or equal to 2"),
        ("rows = 16\n", 'rows = "16"\n', "array.rows.*integer"),
        (
            "burst = 64",
            "burts = 64",
            "dma.burst is missing.*dma.burts is no field .did you mean burst",
        ),
        ("bytes = 65536", "bytes = 65500", "sram.acc.bytes.*whole rows"),
        ("bytes = 8192", "bytes = 16385", "sram.par.bytes must be at most 16384"),
        (
            "act = { bytes = 262144,",
            "act = { banks = 8, bytes = 262144,",
            "sram.act.banks is no field",
        ),
        ("bytes = 262144", "bytes = 64", "sram.act.bytes is 64; give at least 96, .* two pixels"),
        ("bytes = 131072", "bytes = 511", "sram.wgt.bytes is 511; give at least 512, .* two tiles"),
        ("[vu]", "[vu", "not valid TOML"),
    ],
)
def test_a_wrong_field_is_named(old, new, message):
    assert old in E256
    with pytest.raises(SpecError, match=f"(?s)mine: .*{message}"):
        parse_spec(E256.replace(old, new, 1), "mine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = " + "[" * 50_000, "can't be read: nested too deeply"),
        ("a" + ".a" * 50_000 + " = 1", "it has 100,005 characters"),
        ("x = " + "9" * 5_000, "not valid TOML"),
    ],
)
def test_a_text_that_nobody_wrote(text, message):
    with pytest.raises(SpecError, match=f"mine: .*{message}"):
        parse_spec(text, "mine")


NUMBERS = [match.span(1) for match in re.finditer(r"\b[a-z_0-9]+ = ([\d_.]+)", E256)]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "1e999", "9" * 25, "'1'"])
def test_no_number_of_a_machine_may_be_none(value):
    assert len(NUMBERS) > 35
    for begin, end in NUMBERS:
        with pytest.raises(SpecError, match="mine: "):
            parse_spec(E256[:begin] + value + E256[end:], "mine")


def test_an_unknown_machine_names_the_known_ones():
    with pytest.raises(SpecError, match="e256, m2048"):
        load_spec("e265")


def test_accumulator_rows_are_those_that_an_instruction_can_name():
    narrow = E256.replace("cols = 16\n", "cols = 4\n")
    assert parse_spec(narrow.replace("bytes = 65536", "bytes = 131072"), "mine").acc_rows == 1 << 13
    with pytest.raises(SpecError, match="2 to 8192 whole rows"):
        parse_spec(narrow.replace("bytes = 65536", "bytes = 131088"), "mine")
