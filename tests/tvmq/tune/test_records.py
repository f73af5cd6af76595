"""Records of trials: MetaSchedule's files, of one machine, whole lines only."""

from __future__ import annotations

import json

import pytest
from tvm.s_tir import meta_schedule

from targets.errors import InputError
from targets.npu.machine.spec import NpuSpec, load_spec
from tvmq.tune import records as module
from tvmq.tune.records import FAILED, TRIALS, WORKLOADS, Records

E256 = load_spec("e256")
TRIAL = {"rows": 3, "in_pieces": False}


def written(folder, spec=E256, trials=(("w", TRIAL, 12345), ("w", 7, 0), ("x", None, 99))):
    with Records(spec, output=folder) as records:
        for workload, choice, cycles in trials:
            records.add(workload, choice, cycles, "around conv")
    return folder


def found(spec, *folders):
    return Records(spec, folders)


def test_what_was_added_is_found_again(tmp_path):
    records = found(E256, written(tmp_path / "r"))
    assert records.read == 3
    assert not records.notes
    assert records.find("w", TRIAL) == 12345
    assert records.find("w", dict(reversed(TRIAL.items()))) == 12345
    assert records.find("w", 7) == 0
    assert records.find("x", None) == 99
    assert records.find("w", 8) is None
    assert records.find("y", 7) is None


def test_the_best_is_the_fastest_that_did_not_fail(tmp_path):
    trials = (("w", 7, 0), ("w", 8, 30), ("w", 9, 20), ("x", 1, 0))
    records = found(E256, written(tmp_path / "r", trials=trials))
    assert records.best("w") == 9
    assert records.best("x") is None
    assert records.best("y") is None


@pytest.mark.parametrize("cycles", [1, 579270, 123456789012])
def test_cycles_are_exact(tmp_path, cycles):
    spec = NpuSpec.model_validate(E256.model_dump() | {"clock_hz": 999_999_937})
    records = found(spec, written(tmp_path / "r", spec, (("w", 1, cycles),)))
    assert records.find("w", 1) == cycles


def test_a_record_of_another_machine_is_never_used(tmp_path):
    folder = written(tmp_path / "r")
    content = E256.model_dump()
    content["dma"]["read_latency"] += 1
    other = NpuSpec.model_validate(content)
    assert other.name == E256.name
    assert found(other, folder).read == 0
    assert found(other, folder).find("w", TRIAL) is None
    written(folder, other, (("w", TRIAL, 54321),))
    assert found(other, folder).find("w", TRIAL) == 54321
    assert found(E256, folder).find("w", TRIAL) == 12345


def test_a_record_of_another_compiler_is_never_used(tmp_path, monkeypatch):
    folder = written(tmp_path / "r")
    monkeypatch.setattr(module, "compiler_digest", lambda _: "0" * 64)
    assert found(E256, folder).read == 0


@pytest.mark.parametrize("name", [WORKLOADS, TRIALS])
@pytest.mark.parametrize(
    "damage", [b"[0, [", b"", b"{}", b"\xff\x00", b"[1, 2, 3, 4]", b'["1","AA"]']
)
def test_a_damaged_line_is_left_out_and_said(tmp_path, name, damage):
    folder = written(tmp_path / "r")
    path = folder / name
    _first, *others = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([damage, *others]))
    records = found(E256, folder)
    assert records.find("x", None) == 99
    assert records.find("w", TRIAL) is None
    (note,) = records.notes
    assert str(path) in note
    assert "1 damaged" in note
    assert "(1)" in note


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path):
    folder = written(tmp_path / "r")
    for name in (WORKLOADS, TRIALS):
        path = folder / name
        path.write_bytes(path.read_bytes()[:-9])
    written(folder, trials=(("x", None, 98), ("z", 1, 5)))
    records = found(E256, folder)
    assert records.find("w", TRIAL) == 12345
    assert records.find("z", 1) == 5
    assert records.find("x", None) == 98
    assert len(records.notes) == 2


def test_folders_are_read_together(tmp_path):
    one = written(tmp_path / "a", trials=(("w", 1, 10),))
    other = written(tmp_path / "b", trials=(("w", 2, 20), ("x", 3, 30)))
    records = found(E256, one, other, tmp_path / "not_there")
    assert [records.find("w", 1), records.find("w", 2), records.find("x", 3)] == [10, 20, 30]


def test_tvm_reads_the_files(tmp_path):
    folder = written(tmp_path / "r")
    database = meta_schedule.database.JSONDatabase(work_dir=str(folder))
    made = list(database.get_all_tuning_records())
    assert sorted(float(each.run_secs[0]) for each in made) == [
        99 / E256.clock_hz,
        12345 / E256.clock_hz,
        FAILED,
    ]
    attributes = {each.workload.mod["main"].attrs["tvmq.machine"] for each in made}
    assert attributes == {E256.digest}
    (trace,) = (
        str(each.trace) for each in made if float(each.run_secs[0]) == 12345 / E256.clock_hz
    )
    assert "in_pieces" in trace


def test_one_process_writes_at_a_time(tmp_path):
    with Records(E256, output=tmp_path), pytest.raises(InputError, match="another tuning"):
        Records(E256, output=tmp_path)
    Records(E256, output=tmp_path).__exit__(None, None, None)


def test_what_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        Records(E256, [tmp_path / "file"])
    with pytest.raises(InputError, match="can't be written"):
        Records(E256, output=tmp_path / "file")


def test_a_workload_has_one_line(tmp_path):
    folder = written(written(tmp_path / "r"), trials=(("x", 5, 6), ("y", 5, 6)))
    lines = (folder / TRIALS).read_text().splitlines()
    assert [json.loads(line)[0] for line in lines] == [0, 0, 1, 1, 2]
    assert len((folder / WORKLOADS).read_text().splitlines()) == 3
