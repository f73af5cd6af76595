"""An array of the user's as the network reads it; its type says what it is, its name does not.

8-bit numbers are images, which are preprocessed. Floats are preprocessed already and are never
preprocessed again. Everything else is refused. A network that reads bytes or indices gets them as
they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from targets.errors import InputError
from tvmq.data.preprocessing import Bytes, Floats, Preprocessing
from tvmq.float_model import TensorSpec


def check_array(
    where: str, shape: tuple[int, ...], dtype: Any, wanted: TensorSpec, how: Preprocessing
) -> None:
    """Check what can be known of an array without reading it.

    Args:
        where: it is from, as the message begins.
        shape: of the array, images first.
        dtype: of the array.
        wanted: the input that it is for.
        how: what is done to images.

    Raises:
        InputError: says what would be right.
    """
    if wanted.dtype != "float32":
        _check_unchanged(where, shape, dtype, wanted, how)
        return
    if np.issubdtype(dtype, np.floating):
        if shape[1:] != wanted.shape[1:] or not shape:
            raise InputError(
                f"{where} has shape {list(shape)}, the network takes {_takes(wanted)}"
                f"{_hint(shape, wanted.shape[1:])}"
            )
        return
    if dtype != np.uint8:
        raise InputError(
            f"{where} is {dtype}; wanted float32 as the network reads it, or uint8 for images"
        )
    if len(wanted.shape) != 4:
        raise InputError(
            f"{where} is uint8, which is for images; the input {wanted.name!r} is none, give "
            f"float32 of shape {_takes(wanted)}"
        )
    channels = wanted.shape[1]
    if len(shape) not in (3, 4) or 0 in shape[1:] or not _order(shape, channels):
        raise InputError(
            f"{where} is uint8 of shape {list(shape)}; wanted are images [N, H, W, {channels}]"
            f"{' or [N, H, W]' if channels == 1 else ''}, or [N, {channels}, H, W]"
        )
    how.check_given(where, channels)


def as_floats(
    where: str, array: npt.NDArray[Any], wanted: TensorSpec, how: Preprocessing
) -> Floats:
    """What the network reads, [N, ...], of an array that ``check_array`` let pass.

    Raises:
        InputError: the images don't go with ``--resize`` and ``--crop``, or these don't lead to
            what the network takes.
    """
    if wanted.dtype != "float32":
        return np.ascontiguousarray(_in_order_of(wanted, array), wanted.dtype)
    if array.dtype != np.uint8:
        with np.errstate(over="ignore"):  # what float32 can't hold is refused with what is infinite
            return np.ascontiguousarray(array, np.float32)
    try:
        images = how.fit(_channels_last(array, wanted.shape[1]))
        how.check_size((images.shape[2], images.shape[1]), wanted)
        return how.normalize(images)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def is_one_image(shape: Sequence[int], dtype: Any, wanted: TensorSpec) -> bool:
    """Whether an array is one image or one input, without the axis that counts them."""
    if dtype != np.uint8 or wanted.dtype != "float32":
        return tuple(shape) == wanted.shape[1:]
    if len(wanted.shape) != 4 or wanted.shape[1] == 1:  # [N, H, W] are gray images
        return len(wanted.shape) == 4 and len(shape) == 2
    return len(shape) == 3 and bool(_order((1, *shape), wanted.shape[1]))


def _check_unchanged(
    where: str, shape: tuple[int, ...], dtype: Any, wanted: TensorSpec, how: Preprocessing
) -> None:
    """Check what a network reads as it is, but for the order of an image's axes."""
    sizes = wanted.shape[1:]
    turned = (*sizes[1:], *sizes[:1]), (*sizes[-1:], *sizes[:-1])
    fits = shape[1:] == sizes or (len(sizes) == 3 and shape[1:] in turned)
    if not np.can_cast(dtype, wanted.dtype) or not shape or not fits:
        raise InputError(
            f"{where} is {dtype} of shape {list(shape)}, the network takes {wanted.dtype} "
            f"{_takes(wanted)} as it is"
        )
    if wanted.dtype == "uint8" and how != Preprocessing():
        raise InputError(
            f"{where}: the network reads bytes and normalizes them itself. Leave --mean, --std, "
            "--resize and --crop out, and give images of its size"
        )


def _in_order_of(wanted: TensorSpec, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Images with their axes as a network reads them."""
    if array.shape[1:] == wanted.shape[1:]:
        return array
    channels_last = array.transpose(0, 2, 3, 1)
    return (
        channels_last
        if channels_last.shape[1:] == wanted.shape[1:]
        else array.transpose(0, 3, 1, 2)
    )


def _order(shape: Sequence[int], channels: int) -> str:
    """Of the axes of 8-bit images; nothing where none has so many channels."""
    if len(shape) == 3:
        return "NHW" if channels == 1 else ""
    if shape[3] == channels:
        return "NHWC"
    return "NCHW" if shape[1] == channels else ""


def _channels_last(images: Bytes, channels: int) -> Bytes:
    order = _order(images.shape, channels)
    if order == "NCHW":
        return np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    return images[..., None] if order == "NHW" else images


def _takes(wanted: TensorSpec) -> str:
    return f"[N, {', '.join(map(str, wanted.shape[1:]))}]"


def _hint(have: Sequence[int], want: Sequence[int]) -> str:
    """What to do about floats of another shape."""
    if tuple(have) == tuple(want):
        return "; the first axis must count the images"
    if len(have) == 4 and len(want) == 3:
        if (have[3], have[1], have[2]) == tuple(want):
            return "; transpose it to [N, C, H, W]"
        if have[1] == want[0]:
            return (
                "; floats are taken as they are, so give them in this size, or give uint8 images "
                "with --resize and --crop"
            )
    return ""
