"""Data from a folder of images in ImageNet layout, decoded one by one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from targets.errors import InputError
from targets.reading import reading
from tvmq.data.folder_classes import FolderClasses, classes_of_folders, classes_of_table
from tvmq.data.labels import Labelling
from tvmq.data.pictures import picture_as_floats
from tvmq.data.preprocessing import Floats, Preprocessing
from tvmq.data.source import Batch, DataSource
from tvmq.float_model import TensorSpec

_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff"}
)
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "GIF", "TIFF")
"""Whatever a file is called: for others, such as EPS, Pillow would start programs."""


class ImageFolderSource(DataSource):
    """One folder per class, or images whose classes stand in a table; or images without labels."""

    def __init__(
        self,
        spec: str,
        inputs: Sequence[TensorSpec],
        preprocessing: Preprocessing,
        labelling: Labelling,
    ) -> None:
        super().__init__(spec, inputs, preprocessing, labelling)
        self.root = Path(spec)
        with reading(spec, "a folder of images"):
            entries = sorted(self.root.iterdir())
        folders = [entry for entry in entries if entry.is_dir() and entry.name[0] != "."]
        self.takes_images = True
        inside = [  # folder by folder, since each may be a link
            file for folder in folders for file in sorted(folder.rglob("*")) if self._is_image(file)
        ]
        every = sorted([*inside, *(entry for entry in entries if self._is_image(entry))])
        by_folder = bool(inside) and labelling.table is None
        self.files = inside if by_folder else every
        if not self.files:
            raise InputError(f"{spec} has no images; wanted is one folder per class with images")
        beside = len(every) - len(self.files)
        if beside:
            self.notes = (f"{spec}: of the images, {beside} beside the class folders are left out",)
        self.count = len(self.files)
        self.has_labels = by_folder or labelling.table is not None
        self.classes = FolderClasses(())
        if labelling.use != "ignored" and self.has_labels:
            self.classes = self._classes([folder.name for folder in folders])
            self.notes += self.classes.notes
        elif labelling.names is not None:
            raise InputError(
                f"{spec} has no class folders, so --classes {labelling.names} changes nothing. "
                "Leave it out, or give --labels FILE.csv, which has lines of file,label."
            )
        channels = self._only_input().shape[1]
        if self._only_input().dtype != "float32":
            raise InputError(
                f"{spec} holds images, the network takes {self._only_input().dtype} as it is. Give "
                "a .npz or a function that has them in its size"
            )
        if channels not in (1, 3):
            raise InputError(f"{spec} holds images, the network takes {channels} channels")
        preprocessing.check_given(spec, channels)

    def fingerprint(self) -> str:
        """Sha256 of the names and sizes of all images."""
        digest = hashlib.sha256()
        for file in self.files:
            name = file.relative_to(self.root).as_posix()
            digest.update(f"{name} {file.stat().st_size}\n".encode())
        return digest.hexdigest()

    def _is_image(self, file: Path) -> bool:
        """Not hidden, as the thumbnails and checkpoints of other programs are."""
        hidden = any(part.startswith(".") for part in file.relative_to(self.root).parts)
        return not hidden and file.suffix.lower() in _SUFFIXES and file.is_file()

    def _classes(self, folders: Sequence[str]) -> FolderClasses:
        files = [PurePosixPath(file.relative_to(self.root)) for file in self.files]
        table = self.labelling.table
        if table is None:
            return classes_of_folders(self.root, folders, files, self.labelling)
        return classes_of_table(self.root, files, table, self.labelling)

    def _chunks(self, size: int, indices: Sequence[int] | None) -> Iterator[Batch]:
        chosen = range(len(self.files)) if indices is None else indices
        name = self.inputs[0].name
        for start in range(0, len(chosen), size):
            part = chosen[start : start + size]
            images = np.stack([self._decode(self.files[index]) for index in part])
            labels = None
            if self.classes.numbers:
                labels = np.array([self.classes.numbers[index] for index in part], np.int64)
            yield Batch({name: images}, labels)

    def _decode(self, file: Path) -> Floats:
        try:
            with Image.open(file, formats=_FORMATS) as image:
                return picture_as_floats(image, self.inputs[0], self.preprocessing)
        except InputError as error:
            raise InputError(f"{file}: {error}") from error
        except Exception as error:  # decoders raise whatever a damaged image leads them to
            raise InputError(
                f"{file} can't be read as an image ({error}); remove or replace it"
            ) from error
