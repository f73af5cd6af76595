"""The artifact folder: whole or absent, and refused when damaged."""

import hashlib
import json
import os
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from targets.errors import InputError
from targets.npu.machine.program import VERSION
from tvmq.artifact.artifact import (
    FORMAT,
    Artifact,
    Manifest,
    _sha256_of_fields,
    _text_of,
    write_manifest,
    writing,
)

MANIFEST = Manifest(
    format=FORMAT,
    versions={"tvmq": "0.1.0"},
    model={"file": "m.pt2", "kind": "ExportedProgram archive", "fingerprint": "abc"},
    target="npu:e256",
    settings={
        "precision": "w8a8",
        "method": ["rtn"],
        "scales": "pot",
        "granularity": "tensor",
        "first_last_bits": 8,
    },
    calibration={"source": "data-free", "samples": 0},
    preprocessing=None,
    inputs=({"name": "x", "shape": ("N", 3, 8, 8), "dtype": "float32"},),
    outputs=({"name": "y", "shape": ("N", 10), "dtype": "float32"},),
    placement={"npu": 3, "cpu": 1},
    bit_exact=True,
    seconds={"capture": 0.5},
)


def make(folder: Path, content: str = "plan", meanwhile: Callable = bool) -> Path:
    with writing(folder) as room:
        meanwhile()
        (room / "ir").mkdir()
        (room / "plan.json").write_text(content)
        (room / "ir" / "01-float.txt").write_text("graph")
        write_manifest(room, MANIFEST)
    return folder


def interrupted(folder: Path) -> None:
    with writing(folder) as room:
        (room / "plan.json").write_text("half")
        raise KeyboardInterrupt


def read(folder: Path) -> str:
    return Artifact.load(folder).path("plan.json").read_text()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_written_is_read(tmp_path):
    artifact = Artifact.load(make(tmp_path / "a"))
    assert sorted(artifact.manifest.files) == ["ir/01-float.txt", "plan.json"]
    assert artifact.manifest.inputs[0].shape == ("N", 3, 8, 8)
    assert artifact.path("plan.json").read_text() == "plan"
    assert artifact.has("plan.json")
    assert not artifact.has("npu.toml")
    with pytest.raises(InputError, match=r"has no npu.toml. Build it again"):
        artifact.path("npu.toml")


def test_a_failed_build_leaves_the_old_artifact_and_nothing_else(tmp_path):
    folder = make(tmp_path / "a", "old")
    with pytest.raises(KeyboardInterrupt):
        interrupted(folder)
    assert Artifact.load(folder).path("plan.json").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_a_failed_first_build_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="stage"), writing(tmp_path / "a"):
        raise ValueError("stage")
    assert names(tmp_path) == []


def test_folders_that_a_failed_build_made_go_again(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "mine" / "b" / "c" / "a")
    assert names(tmp_path) == ["mine"]
    assert names(tmp_path / "mine") == []
    Artifact.load(make(tmp_path / "mine" / "b" / "c" / "a"))


def test_an_artifact_is_replaced_whole(tmp_path):
    folder = make(tmp_path / "a", "old")
    (folder / "program_7.bin").write_text("from before")
    make(folder, "new")
    assert Artifact.load(folder).path("plan.json").read_text() == "new"
    assert names(folder) == ["ir", "manifest.json", "plan.json"]
    assert names(tmp_path) == ["a"]


def test_an_empty_folder_may_be_the_destination(tmp_path):
    (tmp_path / "a").mkdir()
    Artifact.load(make(tmp_path / "a"))


def test_other_folders_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not empty and not an artifact"):
        make(tmp_path)
    assert names(tmp_path) == ["thesis.tex"]


def test_what_a_user_has_put_into_an_artifact_is_not_lost(tmp_path):
    folder = make(tmp_path / "a", "old")
    (folder / "profile.html").write_text("mine")
    with pytest.raises(InputError, match=r"holds other things, too \(profile.html\)"):
        make(folder, "new")
    (folder / "profile.html").unlink()
    with pytest.raises(InputError, match="holds other things"):
        make(folder, "new", lambda: (folder / "notes.txt").write_text("mine, meanwhile"))
    assert (folder / "notes.txt").read_text().startswith("mine")
    assert names(tmp_path) == ["a"]


def test_another_programs_manifest_is_no_artifact(tmp_path):
    (tmp_path / "manifest.json").write_text('{"manifest_version": 3}')
    (tmp_path / "background.js").write_text("years of work")
    with pytest.raises(InputError, match=r"background\.js"):
        make(tmp_path)
    assert names(tmp_path) == ["background.js", "manifest.json"]


def test_a_link_leads_to_what_is_replaced(tmp_path):
    folder = make(tmp_path / "a", "old")
    (tmp_path / "link").symlink_to(folder)
    make(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert Artifact.load(folder).path("plan.json").read_text() == "new"


def test_who_reads_an_artifact_reads_one_to_the_end(tmp_path):
    folder = make(tmp_path / "a", "old")
    reader = Artifact.load(folder)
    make(folder, "new")
    assert reader.path("plan.json").read_text() == "old"
    assert Artifact.load(folder).path("plan.json").read_text() == "new"
    del reader
    make(folder, "newer")
    assert names(tmp_path) == ["a"]


def test_readers_and_writers_side_by_side(tmp_path):
    """No reader finds nothing or a mixture, no writer fails, and nothing is left."""
    folder = make(tmp_path / "a", "x")
    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(make, folder, text) for text in "yz" * 40]
        readers = [pool.submit(read, folder) for _ in range(300)]
        assert all(writer.result() == folder for writer in writers)
        assert {reader.result() for reader in readers} <= {*"xyz"}
    make(folder, "end")
    assert names(tmp_path) == ["a"]


def test_a_file_as_destination_is_refused(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(InputError, match="is a file"):
        make(tmp_path / "a")


def test_a_destination_below_a_file_is_refused(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(InputError, match="can't be written"):
        make(tmp_path / "a" / "b")


def test_missing_folder(tmp_path):
    with pytest.raises(InputError, match=r"no such artifact. Build one"):
        Artifact.load(tmp_path / "none")


def test_folder_without_manifest(tmp_path):
    with pytest.raises(InputError, match=r"not an artifact \(it has no manifest.json\)"):
        Artifact.load(tmp_path)


def test_changed_file(tmp_path):
    folder = make(tmp_path / "a")
    (folder / "plan.json").write_text("edited")
    with pytest.raises(InputError, match=r"plan.json: changed since it was built"):
        Artifact.load(folder)


def test_missing_file(tmp_path):
    folder = make(tmp_path / "a")
    (folder / "plan.json").unlink()
    with pytest.raises(InputError, match=r"plan.json: missing from the artifact"):
        Artifact.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": FORMAT + 1}, f"has format {FORMAT + 1}, this tvmq reads format {FORMAT}"),
        (
            {"format": 1, "reconstruction": {"units": [{"unit": "u", "loss_before": 0.1}]}},
            f"has format 1, this tvmq reads format {FORMAT}. Build it again",
        ),
        ({"placement": "all"}, "placement is 'all': Input should be an object"),
        ({"preprocessing": {"mean": [0.5]}}, r"manifest.json: changed since it was built"),
        ({"files": {}}, r"manifest.json: changed since it was built"),
    ],
    ids=["newer", "older", "field", "edited", "no files"],
)
def test_wrong_manifest(tmp_path, change, message):
    folder = make(tmp_path / "a")
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=message):
        Artifact.load(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_manifest_that_is_none(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="not a manifest of tvmq"):
        Artifact.load(tmp_path)


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text + "\n",
        lambda text: text[:-1],
        lambda text: text.replace('"format": 2', '"format":  2'),
        lambda text: text.replace('"format": 2', '"format": 1, "format": 2'),
        lambda text: text.replace("0.5", "0.50"),
        lambda text: json.dumps(json.loads(text)),
        lambda text: text.replace('"capture": 0.5', '"capture": 0.7'),
    ],
    ids=["newline", "no newline", "space", "twice", "digit", "one line", "entry"],
)
def test_a_manifest_is_checked_byte_for_byte(tmp_path, edit):
    path = make(tmp_path / "a") / "manifest.json"
    text = path.read_text()
    assert edit(text) != text
    path.write_text(edit(text))
    with pytest.raises(InputError, match=r"manifest.json: changed since it was built"):
        Artifact.load(tmp_path / "a")


def forge(folder: Path, **changes) -> None:
    """Change fields of a manifest and make its digest fit."""
    path = folder / "manifest.json"
    fields = json.loads(path.read_text()) | changes
    fields["sha256"] = _sha256_of_fields(fields)
    path.write_text(_text_of(fields))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": {"../notes.txt": "0"}}, "'../notes.txt' is no file of the folder"),
        ({"files": {"/etc/hosts": "0"}}, "'/etc/hosts' is no file of the folder"),
        ({"files": {"a\0b": "0"}}, "is no file of the folder"),
        ({"files": {"x" * 300: "0"}}, "file name too long"),
        ({"settings": {"seed": 0}}, "settings.precision is missing"),
        ({"calibration": {}}, "calibration.source is missing"),
        ({"placement": {"npu": 1}}, "placement.cpu is missing"),
        ({"outputs": []}, "outputs is"),
        ({"inputs": [{"name": "x", "shape": [], "dtype": "float32"}]}, "inputs.0.shape"),
        ({"inputs": [{"name": "x", "shape": ["N", -1], "dtype": "float32"}]}, "inputs.0.shape"),
        ({"format": True}, "format"),
    ],
)
def test_a_manifest_that_no_build_writes(tmp_path, changes, message):
    forge(make(tmp_path / "a"), **changes)
    with pytest.raises(InputError, match=message) as error:
        Artifact.load(tmp_path / "a")
    assert "\n" not in str(error.value)


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path):
    folder = make(tmp_path / "a")
    (folder / "plan.json").unlink()
    os.mkfifo(folder / "plan.json")
    with pytest.raises(InputError, match=r"plan.json: missing from the artifact"):
        Artifact.load(folder)


def test_files_that_hold_something_else(tmp_path):
    folder = make(tmp_path / "a", "[" * 100_000)
    artifact = Artifact.load(folder)
    with pytest.raises(InputError, match=r"plan.json: can't be read: nested too deeply"):
        artifact.read_json("plan.json")
    (folder / "layers.json").write_text('[{"name": 3}]')
    (folder / "program_0.bin").write_bytes(_program_of({"machine": "e256"}))
    (folder / "manifest.json").unlink()
    write_manifest(folder, artifact.manifest)
    artifact = Artifact.load(folder)
    with pytest.raises(InputError, match=r"layers.json: not what tvmq writes .* Build it again"):
        artifact.layers()
    with pytest.raises(InputError, match=r"program_0.bin: not what tvmq writes .* Build it again"):
        artifact.programs()


def _program_of(header: dict[str, str]) -> bytes:
    """A program whose checksum fits, and whose header says too little."""
    text = json.dumps(header).encode()
    payload = struct.pack("<I", len(text)) + text
    digest = hashlib.sha256(payload).digest()
    return struct.pack("<4sI32sQ", b"TVMQ", VERSION, digest, len(payload)) + payload
