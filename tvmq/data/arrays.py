"""An array of the user's as the network reads it; its type says what it is, its name does not.

8-bit numbers are images, which are preprocessed. Floats are preprocessed already and are never
preprocessed again. Everything else is refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from targets.errors import InputError
from tvmq.data.preprocessing import Floats, Preprocessing
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
    if np.issubdtype(dtype, np.floating):
        return
    if dtype != np.uint8:
        raise InputError(
            f"{where} is {dtype}; wanted float32 as the network reads it, or uint8 for images"
        )
    if len(wanted.shape) != 4:
        sizes = ", ".join(map(str, wanted.shape[1:]))
        raise InputError(
            f"{where} is uint8, which is for images; the input {wanted.name!r} is none, give "
            f"float32 of shape (N, {sizes})"
        )
    if len(shape) not in (3, 4) or 0 in shape[1:]:
        raise InputError(f"{where} has shape {list(shape)}; wanted are images (N, H, W, C)")
    how.check_given(where, shape[3] if len(shape) == 4 else 1)


def as_floats(where: str, array: npt.NDArray[Any], how: Preprocessing) -> Floats:
    """Float32 [N, ...] of an array that ``check_array`` let pass.

    Raises:
        InputError: the images don't go with ``--resize`` and ``--crop``.
    """
    if array.dtype != np.uint8:
        with np.errstate(over="ignore"):  # what float32 can't hold is refused with what is infinite
            return np.ascontiguousarray(array, np.float32)
    images = array if array.ndim == 4 else array[..., None]
    try:
        return how.normalize(how.fit(images))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
