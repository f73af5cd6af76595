"""From 8-bit images to the float input of the network: resize, crop, scale to 0..1, mean, std.

Kept in the manifest of an artifact, so that ``eval`` and ``run`` repeat exactly what ``build`` did.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from targets.errors import InputError
from tvmq.float_model import TensorSpec

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

LARGEST_SIDE = 2**14
"""Pixels of a side that ``--resize`` and ``--crop`` may ask for."""
MOST_PIXELS = 2**28
"""Of a resized image, which may be many times as long as it is wide."""


@dataclass(frozen=True)
class Preprocessing:
    """What happens to images; nothing of it happens to float arrays.

    Attributes:
        mean: per channel, of values scaled to 0..1; None if not given.
        std: as ``mean``.
        resize: the shorter side is brought to this many pixels, bilinear, before the crop.
        crop: size of the square in the center that is kept.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: int | None = None
    crop: int | None = None

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise InputError("--mean and --std belong together; give both or none")
        if self.mean is not None and self.std is not None:
            if len(self.mean) != len(self.std):
                raise InputError(f"--mean has {len(self.mean)} values and --std {len(self.std)}")
            if not all(map(math.isfinite, self.mean + self.std)) or min(self.std) <= 0:
                raise InputError("--mean must be finite and --std positive")
            extremes = np.array([[[[0] * len(self.mean)], [[255] * len(self.mean)]]], np.uint8)
            with np.errstate(all="ignore"):
                if not np.isfinite(self.normalize(extremes)).all():
                    raise InputError("--mean and --std lead beyond float32; give those of pixels")
        for flag, size in (("--resize", self.resize), ("--crop", self.crop)):
            if size is not None and not (isinstance(size, int) and 1 <= size <= LARGEST_SIDE):
                raise InputError(f"{flag} {size} is no size; give 1 to {LARGEST_SIDE} pixels")

    @classmethod
    def from_flags(
        cls,
        mean: str | None = None,
        std: str | None = None,
        resize: int | None = None,
        crop: int | None = None,
    ) -> Preprocessing:
        """Read the flags as typed, such as ``--mean 0.485,0.456,0.406``.

        Raises:
            InputError: names the flag that is wrong.
        """
        return cls(_numbers("--mean", mean), _numbers("--std", std), resize, crop)

    @classmethod
    def from_manifest(cls, entry: Mapping[str, Any]) -> Preprocessing:
        """The inverse of ``to_manifest``.

        Raises:
            InputError: if the entry has other keys or values.
        """
        try:
            mean, std = entry["mean"], entry["std"]
            return cls(
                None if mean is None else tuple(float(value) for value in mean),
                None if std is None else tuple(float(value) for value in std),
                entry["resize"],
                entry["crop"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the manifest's preprocessing {dict(entry)} is damaged") from error

    def otherwise(self, other: Preprocessing) -> Preprocessing:
        """This one, where ``other`` does not say otherwise."""
        said = {name: value for name, value in vars(other).items() if value is not None}
        return replace(self, **said)

    def to_manifest(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "mean": None if self.mean is None else list(self.mean),
            "std": None if self.std is None else list(self.std),
            "resize": self.resize,
            "crop": self.crop,
        }

    def check_given(self, what: str, channels: int) -> None:
        """Check that mean and std are there, for 8-bit images of so many channels.

        Raises:
            InputError: asks for the flags.
        """
        if self.mean is None or self.std is None:
            raise InputError(
                f"{what} holds 8-bit images; give the --mean and --std of the training, for values "
                "scaled to 0..1 (--mean 0 --std 1 if it used none)"
            )
        if len(self.mean) not in (1, channels):
            raise InputError(
                f"--mean and --std have {len(self.mean)} values, the images of {what} have "
                f"{channels} channels"
            )

    def check_size(self, size: tuple[int, int], wanted: TensorSpec) -> None:
        """Check that images have come out as the network takes them.

        Args:
            size: width and height.
            wanted: the input that they are for.

        Raises:
            InputError: they have not.
        """
        height, width = wanted.shape[2:]
        if size != (width, height):
            raise InputError(
                f"comes out as {size[0]}x{size[1]}, the network takes {width}x{height}; give "
                "--resize and --crop that lead to it"
            )

    def normalize(self, images: Bytes | Floats, largest: int = 255) -> Floats:
        """(x / largest - mean) / std in float32.

        Args:
            images: uint8 or float32[N, H, W, C], from 0 to ``largest``.
            largest: value of a pixel.

        Returns:
            float32[N, C, H, W].
        """
        assert self.mean is not None
        assert self.std is not None
        scaled = images.astype(np.float32) / np.float32(largest)
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return np.ascontiguousarray(((scaled - mean) / std).transpose(0, 3, 1, 2))

    def resize_and_crop(self, image: Image.Image) -> Image.Image:
        """Bring the shorter side to ``resize`` pixels, then keep the center.

        Raises:
            InputError: if the image is smaller than the crop.
        """
        if self.resize is not None:
            width, height = image.size
            short = min(width, height)
            # The longer side is rounded down, as torchvision does.
            size = (self.resize * width // short, self.resize * height // short)
            if size[0] * size[1] > MOST_PIXELS:
                raise InputError(
                    f"{width}x{height} with --resize {self.resize} is {size[0]}x{size[1]}, beyond "
                    f"{MOST_PIXELS:,} pixels; give a smaller --resize"
                )
            image = image.resize(size, Image.Resampling.BILINEAR)
        if self.crop is None:
            return image
        width, height = image.size
        if min(width, height) < self.crop:
            raise InputError(
                f"{width}x{height} is smaller than --crop {self.crop}; give a larger --resize"
            )
        left, top = round((width - self.crop) / 2), round((height - self.crop) / 2)
        return image.crop((left, top, left + self.crop, top + self.crop))

    def fit(self, images: Bytes) -> Bytes:
        """Resize and crop uint8[N, H, W, C]; returns the same array where neither was asked.

        Raises:
            InputError: the images are smaller than the crop, or neither gray nor RGB.
        """
        if self.resize is None and self.crop is None:
            return images
        if images.shape[3] not in (1, 3):
            raise InputError(
                f"images of {images.shape[3]} channels can't be resized or cropped, only those of "
                "1 and 3; store them in the size that the network takes"
            )
        gray = images.shape[3] == 1
        pictures = [Image.fromarray(image[:, :, 0] if gray else image) for image in images]
        return np.stack([as_array(self.resize_and_crop(picture)) for picture in pictures])


def as_array(image: Image.Image) -> npt.NDArray[Any]:
    """An image as uint8[H, W, C], or float32 if it has mode F."""
    array = np.asarray(image)
    return array[:, :, None] if array.ndim == 2 else array


def _numbers(flag: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    values: Sequence[str] = text.split(",")
    try:
        return tuple(float(value) for value in values)
    except ValueError as error:
        raise InputError(f"{flag} {text!r} is not of the form 0.485,0.456,0.406") from error
