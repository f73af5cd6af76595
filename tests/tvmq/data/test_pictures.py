"""Images of every mode that files come in: scaled as they are meant, or refused by name."""

import numpy as np
import pytest
from PIL import Image

from targets.errors import InputError
from tvmq.data.open import open_data
from tvmq.data.pictures import picture_as_floats
from tvmq.data.preprocessing import Preprocessing
from tvmq.float_model import TensorSpec

GRAY, RGB = TensorSpec("x", (1, 1, 4, 5)), TensorSpec("x", (1, 3, 4, 5))
HOW = Preprocessing((0.0,), (1.0,))
RNG = np.random.default_rng(0)
WIDE = RNG.integers(0, 2**16, (4, 5)).astype(np.uint16)
BYTES = RNG.integers(0, 256, (4, 5, 4), np.uint8)


def saved(tmp_path, image, name):
    image.save(tmp_path / name)
    (batch,) = open_data(str(tmp_path), (GRAY,), HOW).batches(9)
    return batch.inputs["x"]


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_gray_of_16_bits_is_scaled_by_its_largest_value(tmp_path, name):
    found = saved(tmp_path, Image.fromarray(WIDE), name)
    np.testing.assert_array_equal(found[0, 0], WIDE.astype(np.float32) / np.float32(65535))


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_gray_of_16_bits_in_three_channels(mode):
    image = Image.frombytes(mode, (5, 4), WIDE.astype("<u2" if mode == "I;16" else ">u2").tobytes())
    found = picture_as_floats(image, RGB, HOW)
    np.testing.assert_array_equal(found, np.repeat(WIDE[None] / np.float32(65535), 3, axis=0))


def test_gray_of_16_bits_as_older_versions_of_pillow_open_it():
    image = Image.fromarray(WIDE.astype(np.int32))
    image.format = "PNG"
    found = picture_as_floats(image, GRAY, HOW)
    np.testing.assert_array_equal(found[0], WIDE / np.float32(65535))


def test_16_bits_are_resized_and_cropped_as_8_are():
    how = Preprocessing((0.25,), (0.5,), resize=6, crop=4)
    wanted = TensorSpec("x", (1, 1, 4, 4))
    eight = BYTES[..., 0]
    sixteen = picture_as_floats(Image.fromarray(eight.astype(np.uint16) * 257), wanted, how)
    expected = picture_as_floats(Image.fromarray(eight), wanted, how)
    assert np.abs(sixteen - expected).max() < 1.01 / 255 / 0.5  # 8 bits are rounded twice


@pytest.mark.parametrize(("mode", "words"), [("I", "32-bit integers"), ("F", "32-bit floats")])
def test_modes_without_a_largest_value_are_refused_by_name(tmp_path, mode, words):
    Image.new(mode, (5, 4), 7).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=rf"a.tif: is an image of {words} \(mode {mode}\)"):
        list(open_data(str(tmp_path), (GRAY,), HOW).batches(4))


@pytest.mark.parametrize("wanted", [GRAY, RGB], ids=["gray", "rgb"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_other_modes_are_what_pillow_makes_of_them(wanted, mode):
    image = Image.fromarray(BYTES).convert(mode)
    expected = np.asarray(image.convert("L" if wanted is GRAY else "RGB")).reshape(4, 5, -1)
    found = picture_as_floats(image, wanted, HOW)
    np.testing.assert_array_equal(found, expected.transpose(2, 0, 1) / np.float32(255))


def test_alpha_is_dropped_and_not_mixed_in():
    clear = BYTES.copy()
    clear[..., 3] = 0
    found = picture_as_floats(Image.fromarray(clear, "RGBA"), RGB, HOW)
    np.testing.assert_array_equal(found, BYTES[..., :3].transpose(2, 0, 1) / np.float32(255))
