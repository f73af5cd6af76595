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
