"""What a loader yields, divided into inputs and labels.

The forms are those of ``torch.utils.data.DataLoader`` and of Hugging Face ``datasets``: an array or
tensor, a tuple or list of inputs and labels, a dict of columns, a list of rows; of batches or of
single images, which become batches of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from targets.errors import InputError
from tvmq.data.arrays import is_one_image
from tvmq.float_model import TensorSpec

IMAGE_KEYS = ("pixel_values", "image", "images", "img", "input", "inputs", "x")
"""Of a dict for a network of one input, where none is called as the input is; the first counts."""
LABEL_KEYS = ("label", "labels", "target", "targets", "y")


@dataclass(frozen=True)
class Item:
    """What was yielded at a time.

    Attributes:
        inputs: by name of the network's input, as they were yielded.
        rest: what came with them: the other columns of a dict, or what follows in a tuple.
    """

    inputs: dict[str, Any]
    rest: Mapping[Any, Any] | tuple[Any, ...]

    def given_labels(self) -> Any:
        """For a metric: the rest, and alone if it is one thing; None if it is nothing."""
        if len(self.rest) > 1:
            return self.rest
        return next(iter(self.rest.values() if isinstance(self.rest, Mapping) else self.rest), None)

    def class_labels(self) -> Any:
        """Where class numbers must be: the first thing behind the inputs, or the column of labels.

        Raises:
            InputError: no column is called as labels are.
        """
        found: Any = self.rest
        if isinstance(found, tuple):
            found = found[0] if found else None
        while isinstance(found, Mapping):
            named = [key for key in LABEL_KEYS if key in found]
            if not named and len(found) > 1:
                raise InputError(
                    f"class numbers may be any of {_listed(found)}; call one 'label', or yield "
                    "(inputs, labels)"
                )
            found = found[named[0]] if named else next(iter(found.values()), None)
        return found


def divide(item: Any, inputs: Sequence[TensorSpec]) -> Item:
    """Find the inputs in what a loader yields.

    Raises:
        InputError: they are not there; the message goes on after the name of the loader.
    """
    if isinstance(item, tuple | list):
        return _divide_sequence(item, inputs)
    if isinstance(item, Mapping):
        return _divide_mapping(item, inputs)
    _check_alone(inputs)
    return Item({inputs[0].name: item}, ())


def shape_and_type(value: Any) -> tuple[tuple[int, ...], Any] | None:
    """Of an array or tensor; None of anything else. bfloat16 counts as float32."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None or dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    try:
        return tuple(shape), np.dtype("float32" if name == "bfloat16" else name)
    except TypeError:
        return tuple(shape), None


def is_one(value: Any, wanted: TensorSpec) -> bool:
    """Whether a value is a single image, without the axis that counts them."""
    if isinstance(value, Image.Image):
        return True
    known = shape_and_type(value)
    return known is not None and is_one_image(*known, wanted)


def _divide_sequence(item: Sequence[Any], inputs: Sequence[TensorSpec]) -> Item:
    if not item:
        raise InputError("yields nothing at a time; wanted are inputs, or (inputs, labels)")
    if rows := _rows(item, inputs):
        return _divide_mapping(rows, inputs)
    first = item[0]
    if len(inputs) == 1 and all(is_one(value, inputs[0]) for value in item):
        return Item({inputs[0].name: item}, ())
    if isinstance(first, Mapping):
        return Item(_divide_mapping(first, inputs).inputs, tuple(item[1:]))
    names = [spec.name for spec in inputs]
    if len(inputs) == 1:
        return Item({names[0]: first}, tuple(item[1:]))
    if isinstance(first, tuple | list) and len(first) == len(inputs):
        return Item(dict(zip(names, first, strict=True)), tuple(item[1:]))
    if len(item) < len(inputs):
        raise InputError(
            f"yields {len(item)} things at a time, the network has {len(inputs)} inputs; yield "
            f"{', '.join(names)} in this order, or a dict with these keys"
        )
    return Item(dict(zip(names, item, strict=False)), tuple(item[len(inputs) :]))


def _rows(item: Sequence[Any], inputs: Sequence[TensorSpec]) -> dict[Any, list[Any]] | None:
    """A list of dicts, one per image, as columns; None if it is something else."""
    if not all(isinstance(row, Mapping) and row.keys() == item[0].keys() for row in item):
        return None
    found = _divide_mapping(item[0], inputs).inputs
    if not all(is_one(found[spec.name], spec) for spec in inputs):
        return None
    return {key: [row[key] for row in item] for key in item[0]}


def _divide_mapping(item: Mapping[Any, Any], inputs: Sequence[TensorSpec]) -> Item:
    keys = {spec.name: spec.name for spec in inputs}
    if len(inputs) == 1 and inputs[0].name not in item:
        keys = {inputs[0].name: _image_key(item, inputs[0])}
    missing = [name for name in keys if keys[name] not in item]
    if missing:
        raise InputError(f"yields the keys {_listed(item)}; missing: {', '.join(missing)}")
    rest = {key: value for key, value in item.items() if key not in keys.values()}
    return Item({name: item[key] for name, key in keys.items()}, rest)


def _image_key(item: Mapping[Any, Any], wanted: TensorSpec) -> Any:
    """By the usual names, or else by what only one value looks like."""
    for key in IMAGE_KEYS:
        if key in item:
            return key
    like = [key for key in item if key not in LABEL_KEYS and _is_like(item[key], wanted)]
    if len(like) != 1:
        raise InputError(
            f"yields the keys {_listed(item)}; missing: {wanted.name}, and "
            f"{'none' if not like else 'more than one'} of them looks like it. Call the input "
            f"{wanted.name!r}"
        )
    return like[0]


def _is_like(value: Any, wanted: TensorSpec) -> bool:
    """Whether a column may be the input, one image of it or many."""
    if isinstance(value, tuple | list):
        return bool(value) and all(is_one(part, wanted) for part in value)
    if is_one(value, wanted):
        return True
    known = shape_and_type(value)
    return known is not None and bool(known[0]) and is_one_image(known[0][1:], known[1], wanted)


def _check_alone(inputs: Sequence[TensorSpec]) -> None:
    if len(inputs) != 1:
        raise InputError(
            f"yields one array; the network has {len(inputs)} inputs, yield a dict with "
            f"{', '.join(spec.name for spec in inputs)}"
        )


def _listed(item: Mapping[Any, Any]) -> str:
    return ", ".join(map(str, item)) or "none"
