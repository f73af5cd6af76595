"""Pickles are followed, not executed, before torch reads them."""

import io
import pickle
import zipfile

import pytest
import torch

from tvmq.capture.inert_pickle import load_tensors, verify_pickle

HEAD = b"\x80\x02"


@pytest.mark.parametrize("new", [True, False])
def test_checkpoints_come_back(new):
    state = {f"layer{i}.weight": torch.randn(3, 4) for i in range(1_500)}
    optimizer = {"param_groups": [{"lr": 0.1, "params": list(range(1_500))}], "betas": (0.9, 0.99)}
    file = io.BytesIO()
    torch.save({"state": state, "optimizer": optimizer}, file, _use_new_zipfile_serialization=new)
    loaded = load_tensors(file)
    assert loaded["optimizer"] == optimizer
    assert torch.equal(loaded["state"]["layer1499.weight"], state["layer1499.weight"])


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        (b"c__builtin__\nbytearray\n\x8a\x01\x7f\x85R.", "Unpickling", "bytearray"),
        (b"}" + b")" + b"\x85" * 1_000 + b"K\x01s.", "Unpickling", "nested too deep"),
        (b"}" + b")" + b"q\x00h\x00\x85" * 1_000 + b"K\x01s.", "Unpickling", "nested too deep"),
        (b"N0" * 100_000 + b"N.", "Unpickling", "too long"),
        (b"h\x07.", "Value", "no whole pickle"),
        (b"R.", "Value", "no whole pickle"),
        (b"}", "Value", "pickle exhausted"),
        (b"X\xff\xff\xff\x7fabc.", "Value", "expected"),
    ],
)  # fmt: skip
def test_pickles_that_take_memory_or_stack(text, error, words, monkeypatch):
    monkeypatch.setattr("tvmq.capture.inert_pickle._MOST_STEPS", 100_000)
    errors = {"Unpickling": pickle.UnpicklingError, "Value": ValueError}
    with pytest.raises(errors[error], match=words):
        verify_pickle(io.BytesIO(HEAD + text))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("state/data.pkl", HEAD + text)
    with pytest.raises(errors[error], match=words):
        load_tensors(file)


BYTEARRAY = HEAD + b"c__builtin__\nbytearray\n\x8a\x01\x7f\x85R."


def _saved(**tensors):
    file = io.BytesIO()
    torch.save(tensors, file)
    return file


def _as_old_file(file):
    """Looks like an archive from behind, which is not where torch looks."""
    return pickle.dumps(0x1950A86A20F9469CFC6C, 2) + BYTEARRAY + file.getvalue()


def _rewritten(file, change, compression=zipfile.ZIP_STORED):
    copy = io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(copy, "w", compression) as new:
        for name in old.namelist():
            for other, content in change(name, old.read(name)):
                new.writestr(other, content)
    return copy.getvalue()


def _hide(name, content):
    if not name.endswith("data.pkl"):
        return [(name, content)]
    folder = name.rpartition("/")[0]
    return [(f"{folder}/DATA.PKL", BYTEARRAY), (f"{folder}/inner/data.pkl", content)]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_as_old_file, "bytearray"),
        (lambda file: _rewritten(file, _hide), "bytearray"),
        (
            lambda file: _rewritten(file, lambda *record: [record], zipfile.ZIP_DEFLATED),
            "compressed",
        ),
    ],
    ids=["archive from behind", "name in another case", "deflated"],
)
def test_what_torch_reads_is_what_was_looked_through(make, words):
    file = _saved(weight=torch.zeros(2**16))
    with pytest.raises(pickle.UnpicklingError, match=words):
        load_tensors(io.BytesIO(make(file)))
