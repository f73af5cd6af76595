"""What a network reads as it is: bytes and indices."""

from __future__ import annotations

import numpy as np
import pytest

from targets.errors import InputError
from tvmq.data.labels import Labelling
from tvmq.data.open import open_data
from tvmq.data.preprocessing import Preprocessing
from tvmq.float_model import TensorSpec

BYTES = TensorSpec("x", (1, 3, 4, 6), "uint8")
BYTES_LAST = TensorSpec("x", (1, 4, 6, 3), "uint8")
INDICES = TensorSpec("x", (1, 5), "int64")


def read(tmp_path, spec, array, how=None):
    np.savez(tmp_path / "d.npz", x=array)
    how = how or Preprocessing()
    source = open_data(str(tmp_path / "d.npz"), [spec], how, Labelling("ignored"))
    return next(iter(source.batches(2))).inputs["x"]


@pytest.mark.parametrize("spec", [BYTES, BYTES_LAST])
@pytest.mark.parametrize("last", [True, False])
def test_bytes_are_given_as_the_network_reads_them(tmp_path, spec, last):
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3)).astype(np.uint8)
    given = images if last else images.transpose(0, 3, 1, 2)
    found = read(tmp_path, spec, given)
    assert found.dtype == np.uint8
    want = images if spec is BYTES_LAST else images.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(found, want)


def test_indices_may_be_of_a_smaller_type(tmp_path):
    found = read(tmp_path, INDICES, np.arange(10, dtype=np.int32).reshape(2, 5))
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, np.arange(10).reshape(2, 5))


def test_an_index_may_be_all_there_is_of_an_image(tmp_path):
    found = read(tmp_path, TensorSpec("x", (1,), "int64"), np.arange(7))
    np.testing.assert_array_equal(found, [0, 1])


@pytest.mark.parametrize(
    ("spec", "array", "how", "words"),
    [
        (BYTES, np.zeros((2, 3, 4, 6), np.float32), {}, r"is float32 .*takes uint8 \[N, 3, 4, 6\]"),
        (BYTES, np.zeros((2, 5, 6, 3), np.uint8), {}, r"shape \[2, 5, 6, 3\].*takes uint8"),
        (INDICES, np.zeros((2, 5)), {}, "is float64"),
        (BYTES, np.zeros((2, 3, 4, 6), np.uint8), {"crop": 3}, "normalizes them itself"),
    ],
)
def test_anything_else_is_refused(tmp_path, spec, array, how, words):
    with pytest.raises(InputError, match=words):
        read(tmp_path, spec, array, Preprocessing(**how))
