"""Data from a function of the user: ``module:function``, called anew for every pass."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from targets.errors import InputError
from tvmq.data.arrays import as_floats, check_array
from tvmq.data.labels import Labelling, as_class_numbers
from tvmq.data.loader_items import Item, divide, is_one, shape_and_type
from tvmq.data.pictures import picture_as_floats
from tvmq.data.preprocessing import Floats, Preprocessing
from tvmq.data.source import Batch, DataSource
from tvmq.float_model import TensorSpec
from tvmq.users_code import import_object, users_code

_END = object()


class FunctionSource(DataSource):
    """What a function or a loader yields, in the forms of ``tvmq/data/loader_items.py``."""

    def __init__(
        self,
        spec: str,
        inputs: Sequence[TensorSpec],
        preprocessing: Preprocessing,
        labelling: Labelling,
    ) -> None:
        super().__init__(spec, inputs, preprocessing, labelling)
        self.function = import_object(spec, "data")

    def fingerprint(self) -> str:
        """Sha256 of the source file of the function; what it reads can't be known."""
        digest = hashlib.sha256(self.spec.encode())
        try:
            digest.update(Path(inspect.getfile(inspect.unwrap(self.function))).read_bytes())
        except (TypeError, OSError):
            return digest.hexdigest()  # an object without source, such as a list of batches
        return digest.hexdigest()

    def batches(self, size: int, *, limit: int | None = None) -> Iterator[Batch]:
        """As of any source; for a metric, the batches of the loader, which its labels belong to."""
        if self.labelling.use == "given":
            return self._loader_batches(limit)
        return super().batches(size, limit=limit)

    def _chunks(self, size: int, indices: Sequence[int] | None) -> Iterator[Batch]:
        for batch in self._whole_batches():
            # Slices are checked and given away one by one, however large the user's batch is.
            for start in range(0, len(batch), size):
                yield batch[start : start + size]

    def _loader_batches(self, limit: int | None) -> Iterator[Batch]:
        seen = 0
        for batch in self._whole_batches():
            self._check(batch, seen)
            seen += len(batch)
            if limit is not None and seen > limit:
                try:
                    batch = batch[: len(batch) - (seen - limit)]
                except InputError as error:
                    raise InputError(f"{self.spec}: {error}") from error
            yield batch
            if limit is not None and seen >= limit:
                return

    def _whole_batches(self) -> Iterator[Batch]:
        empty = True
        for item in self._items():
            batch = self._as_batch(item)
            if len(batch):
                empty = False
                yield batch
        if empty:
            raise InputError(f"{self.spec} yields no data")

    def _items(self) -> Iterable[Any]:
        with users_code(self.spec):
            items = iter(self.function() if callable(self.function) else self.function)
        while True:
            with users_code(self.spec):
                item = next(items, _END)
            if item is _END:
                return
            yield item

    def _as_batch(self, item: Any) -> Batch:
        try:
            found = divide(item, self.inputs)
        except InputError as error:
            raise InputError(f"{self.spec} {error}") from error
        inputs = {spec.name: self._prepared(spec, found.inputs[spec.name]) for spec in self.inputs}
        counts = {len(value) for value in inputs.values()}
        if len(counts) != 1:
            raise InputError(f"{self.spec}: the inputs of a batch differ in length: {counts}")
        return Batch(inputs, self._labels(found, counts.pop()))

    def _labels(self, found: Item, count: int) -> Any:
        if self.labelling.use == "ignored":
            return None
        if self.labelling.use == "given":
            return found.given_labels()
        try:
            labels = found.class_labels()
        except InputError as error:
            raise InputError(f"{self.spec}: {error}") from error
        if labels is None:
            return None
        with users_code(f"{self.spec}: making an array of the labels that it yields"):
            array = _as_array(labels)
        return as_class_numbers(array[None] if array.shape == () else array, count, self.spec)

    def _prepared(self, wanted: TensorSpec, value: Any) -> Floats:
        where = f"{self.spec}: {wanted.name!r}"
        values = value if isinstance(value, tuple | list) else [value]
        if values and all(isinstance(one, Image.Image) for one in values):
            return self._of_pictures(where, wanted, values)
        with users_code(f"{self.spec}: making an array of what it yields as {wanted.name!r}"):
            array = _as_array(value)
        if is_one(array, wanted):
            array = array[None]
        check_array(where, array.shape, array.dtype, wanted, self.preprocessing)
        self.takes_images = bool(self.takes_images) or array.dtype == np.uint8
        return as_floats(where, array, wanted, self.preprocessing)

    def _of_pictures(
        self, where: str, wanted: TensorSpec, pictures: Sequence[Image.Image]
    ) -> Floats:
        if len(wanted.shape) != 4 or wanted.shape[1] not in (1, 3) or wanted.dtype != "float32":
            raise InputError(
                f"{where} is a Pillow image, the network takes "
                f"[N, {', '.join(map(str, wanted.shape[1:]))}]"
            )
        self.preprocessing.check_given(where, wanted.shape[1])
        self.takes_images = True
        floats = []
        for picture in pictures:
            try:
                with users_code(f"{where}: decoding an image"):
                    floats.append(picture_as_floats(picture, wanted, self.preprocessing))
            except InputError as error:
                raise InputError(f"{where}: {error}") from error
        return np.stack(floats)


def _as_array(value: Any) -> np.ndarray[Any, Any]:
    if isinstance(value, tuple | list) and value and shape_and_type(value[0]) is not None:
        return np.stack([_as_array(one) for one in value])
    detach = getattr(value, "detach", None)
    if detach is None:
        array = np.asarray(value)
        return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
    tensor = detach().cpu()  # of torch
    return np.asarray((tensor.float() if "bfloat16" in str(tensor.dtype) else tensor).numpy())
