"""Rows of all images: in memory or in a file, what is read is what was written."""

import pytest
import torch

from tvmq.reconstruct import stored_rows
from tvmq.reconstruct.stored_rows import StoredRows


@pytest.fixture(params=[0, 2**28], ids=["file", "memory"])
def made(request, monkeypatch, tmp_path):
    monkeypatch.setattr(stored_rows, "IN_MEMORY", request.param)
    monkeypatch.setattr(stored_rows, "AT_ONCE", 200)
    return lambda rows, dtype: StoredRows(tmp_path / "x.bin", rows, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_rows_are_those_that_were_put(made, dtype):
    numbers = torch.arange(7 * 4 * 3).reshape(7, 4, 3).to(dtype)
    rows = made((7, 4, 3), dtype)
    rows.put(3, numbers[3:])
    rows.put(0, numbers[:3])
    which = torch.tensor([5, 0, 5, 2])
    assert torch.equal(rows.get(which), numbers[which])
    for some in (slice(0, 7), slice(2, 5), slice(6, 7), slice(3, 3)):
        assert torch.equal(rows.get(some), numbers[some])
    assert torch.equal(torch.cat(list(rows.parts())), numbers)


def test_rows_drawn_at_random_may_be_overwritten(made):
    rows = made((3, 2), torch.float32)
    rows.put(0, torch.ones(3, 2))
    rows.get(torch.tensor([0, 1, 2])).zero_()
    assert torch.equal(rows.get(slice(0, 3)), torch.ones(3, 2))


def test_a_file_goes_when_its_rows_are_dropped(made, tmp_path):
    rows = made((3, 2), torch.float32)
    rows.drop()
    assert not list(tmp_path.iterdir())


def test_no_room_is_an_error_before_anything_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr(stored_rows, "IN_MEMORY", 0)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stored_rows.os, "posix_fallocate", full)
    with pytest.raises(stored_rows.InputError, match=r"needs 3 MB there.*TMPDIR"):
        StoredRows(tmp_path / "x.bin", (3, 2**18), torch.float32)
