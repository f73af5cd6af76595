"""Data from an .npz: arrays by input name, or 8-bit images; read row by row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from targets.errors import InputError
from tvmq.data.npz_rows import NpzMember, npz_members
from tvmq.data.preprocessing import Floats, Preprocessing
from tvmq.data.source import Batch, DataSource, as_labels, check_one_each, sha256_of_file
from tvmq.float_model import TensorSpec


class NpzSource(DataSource):
    """An .npz keyed by input name, or with ``images``; ``labels`` are optional."""

    def __init__(
        self,
        spec: str,
        inputs: Sequence[TensorSpec],
        preprocessing: Preprocessing,
        classes: int | None,
    ) -> None:
        super().__init__(spec, inputs, preprocessing, classes)
        self.path = Path(spec)
        members = npz_members(self.path)
        self.members = self._find_inputs(members)
        self.count = self._common_count()
        self._check_types()
        self.labels = None
        if "labels" in members:
            check_one_each(members["labels"].shape, self.count, spec)
            self.labels = as_labels(members["labels"].read(), self.count, spec)
            self._check_labels(self.labels)
        self.has_labels = self.labels is not None

    def fingerprint(self) -> str:
        """Sha256 of the file."""
        return sha256_of_file(self.path)

    def _chunks(self, size: int, indices: Sequence[int] | None) -> Iterator[Batch]:
        streams = [member.chunks(size, indices) for member in self.members.values()]
        done = 0
        for arrays in zip(*streams, strict=True):
            named = dict(zip(self.members, arrays, strict=True))
            stop = done + len(arrays[0])
            rows = slice(done, stop) if indices is None else list(indices[done:stop])
            labels = None if self.labels is None else self.labels[rows]
            yield Batch({name: self._prepared(array) for name, array in named.items()}, labels)
            done = stop

    def _prepared(self, array: npt.NDArray[Any]) -> Floats:
        if array.dtype != np.uint8:
            return np.ascontiguousarray(array, np.float32)
        images = array if array.ndim == 4 else array[..., None]
        return self.preprocessing.normalize(self.preprocessing.fit(images))

    def _find_inputs(self, members: dict[str, NpzMember]) -> dict[str, NpzMember]:
        names = [wanted.name for wanted in self.inputs]
        if all(name in members for name in names):
            return {name: members[name] for name in names}
        if "images" in members:
            return {self._only_input().name: members["images"]}
        raise InputError(
            f"{self.spec} has the keys {', '.join(members) or 'none'}; wanted are "
            f"{', '.join(names)} (the inputs of the network), or images for 8-bit images"
        )

    def _common_count(self) -> int:
        counts = {name: (m.shape[0] if m.shape else 0) for name, m in self.members.items()}
        if len(set(counts.values())) != 1:
            raise InputError(f"{self.spec}: the inputs differ in their number of images: {counts}")
        count = next(iter(counts.values()))
        if count == 0:
            raise InputError(f"{self.spec} has no images; the first axis counts them")
        return count

    def _check_types(self) -> None:
        for name, member in self.members.items():
            where = f"{self.spec}: {member.key!r}"
            if member.dtype == np.uint8:
                if len(member.shape) not in (3, 4):
                    raise InputError(f"{where} has shape {list(member.shape)}; wanted (N, H, W, C)")
                channels = member.shape[3] if len(member.shape) == 4 else 1
                self.preprocessing.check_given(self.spec, channels)
            elif member.key != name:
                raise InputError(
                    f"{where} is {member.dtype}; wanted uint8 images (N, H, W, C), or float32 "
                    f"arrays under the name of the input, {name!r}"
                )
            elif not np.issubdtype(member.dtype, np.floating):
                raise InputError(f"{where} is {member.dtype}; wanted float32, or uint8 for images")
            elif self.preprocessing != Preprocessing():
                raise InputError(
                    f"{where} is {member.dtype}, which is taken as it is; leave out --mean, --std, "
                    "--resize and --crop, or store uint8 images"
                )
