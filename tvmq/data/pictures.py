"""A Pillow image as the network reads it, whatever mode it was stored in.

Alpha is dropped and palettes are looked up, as torchvision's loader does. Gray of 16 bits is scaled
by 65535 and keeps its precision, which ``Image.convert`` does not: it cuts everything above 255.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from targets.errors import InputError
from tvmq.data.preprocessing import Floats, Preprocessing, as_array
from tvmq.float_model import TensorSpec

_LARGEST = {8: 255, 16: 65535}


def picture_as_floats(picture: Image.Image, wanted: TensorSpec, how: Preprocessing) -> Floats:
    """Resize, crop and normalize an image.

    Args:
        picture: of any mode; decoded here if it was not yet.
        wanted: the input that it is for, of 1 or 3 channels.
        how: what is done to images, mean and std included.

    Returns:
        float32[C, H, W].

    Raises:
        InputError: the mode has no largest value, or the size is not the network's.
    """
    channels = wanted.shape[1]
    bits = _bits(picture)
    mode = "F" if bits == 16 else "RGB" if channels == 3 else "L"
    fitted = how.resize_and_crop(picture.convert(mode))
    how.check_size(fitted.size, wanted)
    array = as_array(fitted)
    if array.shape[2] != channels:
        array = np.repeat(array, channels, axis=2)
    return how.normalize(array[None], _LARGEST[bits])[0]


def _bits(picture: Image.Image) -> int:
    """Of a value of a channel."""
    if picture.mode.startswith("I;16"):
        return 16
    if picture.mode == "I" and picture.format in ("PNG", "PPM"):  # older Pillow's mode of 16 bits
        return 16
    if picture.mode in ("I", "F"):
        kind = "32-bit integers" if picture.mode == "I" else "32-bit floats"
        raise InputError(
            f"is an image of {kind} (mode {picture.mode}), whose largest value is not known; store "
            "8 or 16 bits, or give floats in an .npz"
        )
    return 8
