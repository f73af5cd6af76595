"""`tvmq profile`: it adds up, it says why, and its files are what they claim to be."""

import csv
import io
import json

import pytest
from model_files import save

from targets.npu.machine.program import Program
from targets.npu.machine.spec import load_spec
from targets.npu.price.timing import simulate_timing

E256 = load_spec("e256")


@pytest.fixture(scope="module")
def files(small, tmp_path_factory):
    """What one command line writes: the JSON, and paths of the CSV, the trace and the page."""
    from tvmq.cli import main

    folder = tmp_path_factory.mktemp("profile")
    paths = {kind: folder / f"profile.{kind}" for kind in ("csv", "trace", "html")}
    words = [word for kind, path in paths.items() for word in (f"--{kind}", str(path))]
    assert main(["profile", str(small), "-q", *words]) == 0
    return {kind: path.read_text() for kind, path in paths.items()}


@pytest.fixture
def data(tvmq, small):
    result = tvmq("profile", small, "--json")
    assert result.code == 0, result.err
    return json.loads(result.out)


def test_it_adds_up(data, small):
    rows = data["operators"]
    keys = {"name", "layer", "op", "device", "cycles", "us", "macs", "bytes", "utilization"}
    keys |= {"bound", "reason", "energy_pj", "stalls", "filled", "busy", "unfilled"}
    assert all(keys == set(row) for row in rows)
    npu = [row for row in rows if row["device"] == "npu"]
    assert all(
        row["filled"] * row["busy"] == pytest.approx(row["utilization"], abs=2e-4) for row in npu
    )
    assert data["total_cycles"] == sum(row["cycles"] for row in npu) > 0
    assert data["total_ms"] == pytest.approx(sum(row["us"] for row in rows) / 1000, abs=1e-5)
    macs = sum(row["macs"] for row in npu)
    peak = E256.peak_macs_per_cycle
    assert data["mac_utilization"] == pytest.approx(macs / (data["total_cycles"] * peak), abs=1e-4)
    assert 0 < data["mac_utilization"] <= 1
    assert data["energy_pj"] == pytest.approx(sum(row["energy_pj"] for row in rows), rel=1e-6)
    # resnet_small: 3x16x9 weights on 12x12, and so on; every layer is in the profile once.
    stem = next(row for row in rows if "stem" in row["layer"])
    assert stem["macs"] == 3 * 16 * 9 * 12 * 12
    layers = json.loads((small / "layers.json").read_text())
    assert [layer["name"] for layer in layers] == [row["name"] for row in rows[: len(layers)]]


def test_the_total_is_the_clocks(data, small):
    program = Program.from_bytes((small / "program_0.bin").read_bytes())
    assert data["total_cycles"] == simulate_timing(program.instructions, E256).total


def test_stalls_fill_the_windows(data):
    for row in data["operators"]:
        for unit in row["stalls"].values():
            assert sum(unit.values()) == row["cycles"]
    assert any("LD" in row["stalls"].get("MM", {}) for row in data["operators"])


def test_the_simulation_of_the_npu_is_no_time_of_the_host(data):
    host = {row["name"] for row in data["operators"] if row["device"] == "cpu"}
    assert "cpu_quantize" in host  # the input's codes
    assert not [name for name in host if name.startswith("npu_")]


def test_transfers_between_cpu_and_npu_are_counted(data):
    transfers = {r["name"]: r for r in data["operators"] if r["op"] == "transfer"}
    assert set(transfers) == {"program_0.bin inputs", "program_0.bin outputs"}
    inputs = transfers["program_0.bin inputs"]
    assert (inputs["device"], inputs["bytes"], inputs["cycles"]) == ("bus", 3 * 12 * 12, 0)
    assert inputs["us"] == (100 + 448 / 8) / 1000  # 432 bytes are 7 bursts of 64
    assert "between CPU and NPU" in inputs["reason"]


def test_another_energy_table(tvmq, small, data):
    other = json.loads(tvmq("profile", small, "--energy", "accelergy45", "--json").out)
    assert (data["energy_table"], other["energy_table"]) == ("horowitz45", "accelergy45")
    assert other["total_cycles"] == data["total_cycles"]
    row, same = (
        next(r for r in each["operators"] if r["op"] == "transfer") for each in (data, other)
    )
    assert row["energy_pj"] / same["energy_pj"] == pytest.approx(162.5 / 64)
    result = tvmq("profile", small, "--energy", "mine")
    assert result.code == 2
    assert "no energy table 'mine': the description has horowitz45, accelergy45" in result.err


def test_of_a_cpu_artifact_measures_every_kernel(tvmq, tmp_path):
    model = save("mobilenet_small", tmp_path)
    assert tvmq("build", model, "--target", "cpu", "-o", tmp_path / "a", "-q").code == 0
    data = json.loads(tvmq("profile", tmp_path / "a", "--json").out)
    assert data["total_cycles"] == 0
    assert data["machine"] is None
    convolutions = [row for row in data["operators"] if "conv2d" in row["op"]]
    assert len(convolutions) == 8
    assert all(row["us"] > 0 and row["device"] == "cpu" for row in convolutions)
    assert {row["reason"] for row in convolutions} == {"the target is the CPU"}
    assert not [row for row in data["operators"] if row["op"] == "transfer"]
    result = tvmq("profile", tmp_path / "a", "--trace", tmp_path / "t.json")
    assert result.code == 2
    assert "nothing runs on an NPU" in result.err
    assert tvmq("profile", tmp_path / "a", "--html", tmp_path / "p.html").code == 0


def test_in_words(tvmq, small):
    result = tvmq("profile", small)
    assert "NPU cycles" in result.out
    assert "NPU cycles by what bounds the layer: " in result.out
    assert "relative: events at the prices of horowitz45" in result.out
    assert "NPU time is modelled, CPU time measured on this machine." in result.out


def test_a_narrow_terminal_gets_the_columns_that_matter(tvmq, small, monkeypatch):
    from tvmq.cli import terminal

    monkeypatch.setattr(terminal, "PIPE_WIDTH", 80)
    lines = tvmq("profile", small).out.splitlines()
    heading = next(line for line in lines if "operator" in line)
    for column in ("operator", "cycles", "util %", "bound by", "where in the model"):
        assert column in heading
    assert "energy" not in heading
    (stem,) = (line for line in lines if "module stem" in line)
    assert stem.split()[0] == "conv2d"
    assert "models.py" in stem
    assert max(map(len, lines[: lines.index(heading) + 12])) <= 80
    assert any("too narrow for energy µJ" in line for line in lines)


def test_csv_has_the_numbers_of_the_json(files, data):
    rows = list(csv.DictReader(io.StringIO(files["csv"])))
    assert [row["name"] for row in rows] == [row["name"] for row in data["operators"]]
    for line, row in zip(rows, data["operators"], strict=True):
        assert int(line["cycles"]) == row["cycles"]
        assert int(line["MM work"]) == row["stalls"].get("MM", {}).get("work", 0)
        for unit in ("LD", "MM", "VU", "ST"):
            cells = [int(n) for column, n in line.items() if column.startswith(f"{unit} ")]
            assert sum(cells) == row["cycles"]


def test_trace_has_a_slice_per_instruction(files, small, data):
    events = json.loads(files["trace"])["traceEvents"]
    program = Program.from_bytes((small / "program_0.bin").read_bytes())
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert names == {0: "LD", 1: "MM", 2: "VU", 3: "ST", 4: "bus"}
    slices = [event for event in events if event["ph"] == "X"]
    units = [event for event in slices if event["tid"] < 4]
    indices = sorted(event["args"]["index"] for event in units)
    assert indices == list(range(len(program.instructions)))
    layers = {event["args"]["layer"] for event in units} - {""}
    npu = {r["name"]: r["cycles"] for r in data["operators"] if r["device"] == "npu"}
    assert {name for name, cycles in npu.items() if cycles} <= layers <= set(npu)
    gemm = next(event for event in units if event["name"] == "GEMM")
    instruction = program.instructions[gemm["args"]["index"]]
    assert gemm["args"]["kvalid"] == instruction.kvalid
    assert gemm["args"]["pop"] == "LD"
    last = max(event["ts"] + event["dur"] for event in slices)
    assert last <= data["total_cycles"] / 1000
    fetched = [event for event in slices if event["name"] == "fetch"]
    assert len(fetched) == -(-len(program.instructions) // 2)


def test_slices_of_a_track_nest_or_follow(files):
    tracks = {}
    for event in json.loads(files["trace"])["traceEvents"]:
        if event["ph"] == "X":
            tracks.setdefault(event["tid"], []).append((event["ts"], event["ts"] + event["dur"]))
    for slices in tracks.values():
        open_until = []
        for begin, end in sorted(slices, key=lambda s: (s[0], -s[1])):
            open_until = [e for e in open_until if e > begin + 1e-9]
            assert all(end <= e + 1e-9 for e in open_until)
            open_until.append(end)


def test_the_page_is_of_the_same_run(files, data):
    assert f"{data['total_cycles']:,} NPU cycles" in files["html"]
    assert all(f">{row['name']}</td>" in files["html"] for row in data["operators"])


def test_two_artifacts_side_by_side(tvmq, small, digits):
    result = tvmq("profile", small, digits)
    assert result.code == 0, result.err
    assert "cycles 1" in result.out
    assert "NPU cycles of 1 over 2" in result.out
    both = json.loads(tvmq("profile", small, digits, "--json").out)
    assert set(both) == {"first", "second", "operators"}
    names = {row["name"] for side in ("first", "second") for row in both[side]["operators"]}
    assert {row["name"] for row in both["operators"]} == names
    rows = [{r["name"]: r for r in both[side]["operators"]} for side in ("first", "second")]
    row = next(r for r in both["operators"] if r["name"] == "conv2d")
    expected = rows[0]["conv2d"]["us"] / rows[1]["conv2d"]["us"]
    assert row["speedup"] == pytest.approx(expected, abs=1e-4)
    assert tvmq("profile", small, digits, "--csv", "x.csv").code == 2


def test_a_file_that_cannot_be_written(tvmq, small, tmp_path):
    result = tvmq("profile", small, "--csv", tmp_path / "none" / "a.csv")
    assert result.code == 2
    assert "can't be written" in result.err


def test_a_page_says_what_was_built_and_of_two_both(tvmq, small, digits, tmp_path):
    pages = [tmp_path / "one.html", tmp_path / "both.html"]
    assert tvmq("profile", small, "--html", pages[0]).code == 0
    assert tvmq("profile", small, digits, "--html", pages[1]).code == 0
    one, both = (page.read_text() for page in pages)
    manifest = json.loads((small / "manifest.json").read_text())
    for words in ("w8a8, ", " on the NPU, ", f"tvmq {manifest['versions']['tvmq']}", " UTC by "):
        assert one.count(words) == 1
        assert both.count(words) == 2
    assert f"1: {small} for npu" in both
    assert f"2: {digits} for npu" in both
    layers = json.loads((digits / "layers.json").read_text())
    assert all(f">{layer['name']}</td>" in both for layer in layers)
