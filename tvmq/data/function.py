"""Data from a function of the user: ``module:function``, called anew for every pass."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from targets.errors import InputError
from tvmq.data.arrays import as_floats, check_array
from tvmq.data.labels import ClassNumbers, Labelling, as_class_numbers
from tvmq.data.preprocessing import Floats, Preprocessing
from tvmq.data.source import Batch, DataSource
from tvmq.float_model import TensorSpec
from tvmq.users_code import import_object, users_code

_END = object()


class FunctionSource(DataSource):
    """What a function yields: arrays or dicts by input name, alone or with labels."""

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

    def _chunks(self, size: int, indices: Sequence[int] | None) -> Iterator[Batch]:
        seen = 0
        for item in self._items():
            batch = self._as_batch(item)
            seen += len(batch)
            # Slices are checked and given away one by one, however large the user's batch is.
            for start in range(0, len(batch), size):
                yield batch[start : start + size]
        if seen == 0:
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
        labels: Any = None
        if isinstance(item, tuple | list):
            if len(item) != 2:
                raise InputError(
                    f"{self.spec} yields {len(item)} things at a time; wanted are inputs, or "
                    "(inputs, labels)"
                )
            item, labels = item
        if not isinstance(item, Mapping):
            if len(self.inputs) != 1:
                raise InputError(
                    f"{self.spec} yields one array; the network has {len(self.inputs)} inputs, "
                    f"yield a dict with {', '.join(spec.name for spec in self.inputs)}"
                )
            item = {self.inputs[0].name: item}
        missing = [spec.name for spec in self.inputs if spec.name not in item]
        if missing:
            raise InputError(
                f"{self.spec} yields the keys {', '.join(map(str, item))}; "
                f"missing: {', '.join(missing)}"
            )
        inputs = {spec.name: self._prepared(spec, item[spec.name]) for spec in self.inputs}
        counts = {len(value) for value in inputs.values()}
        if len(counts) != 1:
            raise InputError(f"{self.spec}: the inputs of a batch differ in length: {counts}")
        return Batch(inputs, self._labels(labels, counts.pop()))

    def _labels(self, labels: Any, count: int) -> ClassNumbers | None:
        if labels is None or self.labelling.use == "ignored":
            return None
        with users_code(f"{self.spec}: making an array of the labels that it yields"):
            array = _as_array(labels)
        return as_class_numbers(array, count, self.spec)

    def _prepared(self, wanted: TensorSpec, value: Any) -> Floats:
        with users_code(f"{self.spec}: making an array of what it yields as {wanted.name!r}"):
            array = _as_array(value)
        where = f"{self.spec}: {wanted.name!r}"
        check_array(where, array.shape, array.dtype, wanted, self.preprocessing)
        if array.dtype != np.uint8 and array.ndim != len(wanted.shape):
            raise InputError(
                f"{self.spec} yields {wanted.name!r} of shape {list(array.shape)}; wanted are "
                f"batches of {list(wanted.shape[1:])}"
            )
        return as_floats(where, array, self.preprocessing)


def _as_array(value: Any) -> np.ndarray[Any, Any]:
    detach = getattr(value, "detach", None)  # a torch tensor
    return np.asarray(value if detach is None else detach().cpu().numpy())
