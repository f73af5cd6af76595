"""Data from a folder of images in ImageNet layout, decoded one by one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from targets.errors import InputError
from tvmq.data.preprocessing import Bytes, Preprocessing, as_array
from tvmq.data.source import Batch, DataSource
from tvmq.float_model import TensorSpec

_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff"}
)
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "GIF", "TIFF")
"""Whatever a file is called: for others, such as EPS, Pillow would start programs."""


class ImageFolderSource(DataSource):
    """One folder per class, numbered in the order of their names; or images without labels."""

    def __init__(
        self,
        spec: str,
        inputs: Sequence[TensorSpec],
        preprocessing: Preprocessing,
        classes: int | None,
    ) -> None:
        super().__init__(spec, inputs, preprocessing, classes)
        self.root = Path(spec)
        folders = sorted(
            entry for entry in self.root.iterdir() if entry.is_dir() and entry.name[0] != "."
        )
        self.class_names = [folder.name for folder in folders]
        self.has_labels = bool(folders)
        self.files: list[tuple[Path, int]] = [
            (file, label)
            for label, folder in enumerate(folders or [self.root])
            for file in sorted(folder.rglob("*"))
            if file.suffix.lower() in _SUFFIXES and file.is_file()
        ]
        if not self.files:
            raise InputError(f"{spec} has no images; wanted is one folder per class with images")
        if classes is not None and len(folders) > classes:
            raise InputError(
                f"{spec} has {len(folders)} class folders, the network has {classes} classes"
            )
        self.count = len(self.files)
        self._channels = self._only_input().shape[1]
        if self._channels not in (1, 3):
            raise InputError(f"{spec} holds images, the network takes {self._channels} channels")
        preprocessing.check_given(spec, self._channels)

    def fingerprint(self) -> str:
        """Sha256 of the names and sizes of all images."""
        digest = hashlib.sha256()
        for file, _ in self.files:
            name = file.relative_to(self.root).as_posix()
            digest.update(f"{name} {file.stat().st_size}\n".encode())
        return digest.hexdigest()

    def _chunks(self, size: int, indices: Sequence[int] | None) -> Iterator[Batch]:
        chosen = self.files if indices is None else [self.files[index] for index in indices]
        name = self.inputs[0].name
        for start in range(0, len(chosen), size):
            part = chosen[start : start + size]
            images = np.stack([self._decode(file) for file, _ in part])
            labels = np.array([label for _, label in part], np.int64) if self.has_labels else None
            yield Batch({name: self.preprocessing.normalize(images)}, labels)

    def _decode(self, file: Path) -> Bytes:
        try:
            with Image.open(file, formats=_FORMATS) as image:
                picture = image.convert("RGB" if self._channels == 3 else "L")
        except Exception as error:  # decoders raise whatever a damaged image leads them to
            raise InputError(
                f"{file} can't be read as an image ({error}); remove or replace it"
            ) from error
        try:
            array = as_array(self.preprocessing.resize_and_crop(picture))
        except InputError as error:
            raise InputError(f"{file}: {error}") from error
        height, width = self.inputs[0].shape[2:]
        if array.shape[:2] != (height, width):
            raise InputError(
                f"{file} comes out as {array.shape[1]}x{array.shape[0]}, the network takes "
                f"{width}x{height}; give --resize and --crop that lead to it"
            )
        return array
