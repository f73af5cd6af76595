"""Data from an .npz: arrays by input name, or 8-bit images; read row by row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from targets.errors import InputError
from tvmq.data.arrays import as_floats, check_array
from tvmq.data.labels import (
    ClassNumbers,
    Labelling,
    as_class_numbers,
    check_one_each,
    check_range,
)
from tvmq.data.npz_rows import NpzMember, npz_keys, npz_member
from tvmq.data.preprocessing import Preprocessing
from tvmq.data.source import Batch, DataSource, sha256_of_file
from tvmq.float_model import TensorSpec


class NpzSource(DataSource):
    """An .npz keyed by input name, or with ``images``; ``labels`` are optional."""

    def __init__(
        self,
        spec: str,
        inputs: Sequence[TensorSpec],
        preprocessing: Preprocessing,
        labelling: Labelling,
    ) -> None:
        super().__init__(spec, inputs, preprocessing, labelling)
        self.path = Path(spec)
        keys = npz_keys(self.path)
        self.members = self._find_inputs(keys)
        self.count = self._common_count()
        for wanted in self.inputs:
            member = self.members[wanted.name]
            check_array(self._where(member), member.shape, member.dtype, wanted, preprocessing)
        self.takes_images = any(member.dtype == np.uint8 for member in self.members.values())
        self.has_labels = "labels" in keys and "labels" not in self.members
        self.label_rows: NpzMember | None = None
        self.class_numbers: ClassNumbers | None = None
        if self.has_labels and labelling.use != "ignored":
            self._open_labels(npz_member(self.path, "labels"), self.count)

    def _open_labels(self, member: NpzMember, count: int) -> None:
        if self.labelling.use == "classes":
            check_one_each(member.shape, count, self.spec)
            self.class_numbers = as_class_numbers(member.read(), count, self.spec)
            check_range(self.class_numbers, self.labelling.classes, self.spec)
            return
        if member.shape[:1] != (count,):
            raise InputError(
                f"{self._where(member)} has shape {list(member.shape)} for {count} images; "
                "the first axis counts them"
            )
        self.label_rows = member

    def fingerprint(self) -> str:
        """Sha256 of the file."""
        return sha256_of_file(self.path)

    def _chunks(self, size: int, indices: Sequence[int] | None) -> Iterator[Batch]:
        streams = [member.chunks(size, indices) for member in self.members.values()]
        if self.label_rows is not None:
            streams.append(self.label_rows.chunks(size, indices))
        done = 0
        for arrays in zip(*streams, strict=True):
            named = dict(zip(self.members, arrays, strict=False))
            stop = done + len(arrays[0])
            rows = slice(done, stop) if indices is None else list(indices[done:stop])
            labels = None if self.class_numbers is None else self.class_numbers[rows]
            inputs = {
                spec.name: as_floats(
                    self._where(self.members[spec.name]), named[spec.name], spec, self.preprocessing
                )
                for spec in self.inputs
            }
            if self.label_rows is not None:  # to be used as any array: writable, of native bytes
                labels = arrays[-1].astype(arrays[-1].dtype.newbyteorder("="))
            yield Batch(inputs, labels)
            done = stop

    def _where(self, member: NpzMember) -> str:
        return f"{self.spec}: {member.key!r}"

    def _find_inputs(self, keys: Sequence[str]) -> dict[str, NpzMember]:
        names = [wanted.name for wanted in self.inputs]
        if all(name in keys for name in names):
            return {name: npz_member(self.path, name) for name in names}
        if "images" in keys:
            return {self._only_input().name: npz_member(self.path, "images")}
        raise InputError(
            f"{self.spec} has the keys {', '.join(keys) or 'none'}; wanted are "
            f"{', '.join(names)} (the inputs of the network), or images where it reads nothing else"
        )

    def _common_count(self) -> int:
        counts = {name: (m.shape[0] if m.shape else 0) for name, m in self.members.items()}
        if len(set(counts.values())) != 1:
            raise InputError(f"{self.spec}: the inputs differ in their number of images: {counts}")
        count = next(iter(counts.values()))
        if count == 0:
            raise InputError(f"{self.spec} has no images; the first axis counts them")
        return count
