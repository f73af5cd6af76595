"""Which class an image of a folder has: by its class folder, by a table, and by a list of classes.

Class folders are numbered in the order of their names as text, as torchvision does, unless a list
(``--classes``) says otherwise. A table (``--labels``) needs no class folders.
"""

from __future__ import annotations

import csv
import io
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from targets.errors import InputError
from targets.reading import read_text
from tvmq.data.labels import Labelling

_SHOWN = 5
"""Names that a message lists of many."""
_LARGEST = 2**31 - 1
"""Class number of a network that doesn't say how many it has."""
_TABLE = "Write one line per image: file,label"
_LIST = "Write one class per line; the first is class 0"


@dataclass(frozen=True)
class FolderClasses:
    """The class of every image of a folder.

    Attributes:
        numbers: by image, in the order of the images.
        notes: what the user should know of the numbering.
    """

    numbers: tuple[int, ...]
    notes: tuple[str, ...] = ()


def classes_of_folders(
    root: Path, folders: Sequence[str], files: Sequence[PurePosixPath], wanted: Labelling
) -> FolderClasses:
    """By the folder that an image lies in.

    Args:
        root: the folder of images.
        folders: all class folders, in the order of their names.
        files: images, relative to ``root``.
        wanted: of the labels.

    Raises:
        InputError: the folders don't give the numbering of the network's classes.
    """
    notes = []
    if wanted.names is not None:
        number_of = read_class_list(wanted.names, wanted.classes)
        unknown = [folder for folder in folders if folder not in number_of]
        if unknown:
            raise InputError(
                f"{wanted.names} doesn't name {_some(unknown, 'class folder')} of {root}. Add "
                "what is missing, or remove the folders."
            )
    else:
        _check_count(root, len(folders), wanted.classes)
        number_of = {folder: number for number, folder in enumerate(folders)}
        notes += _order_note(root, folders)
    filled = {file.parts[0] for file in files}
    if empty := [folder for folder in folders if folder not in filled]:
        notes.append(f"{root}: no images in {_some(empty, 'class folder')}")
    return FolderClasses(tuple(number_of[file.parts[0]] for file in files), tuple(notes))


def classes_of_table(
    root: Path, files: Sequence[PurePosixPath], table: Path, wanted: Labelling
) -> FolderClasses:
    """By a CSV of file and label.

    Args:
        root: the folder of images.
        files: all images, relative to ``root``.
        table: its path.
        wanted: of the labels.

    Raises:
        InputError: names the line that is wrong, or the images that have none.
    """
    number_of = None if wanted.names is None else read_class_list(wanted.names, wanted.classes)
    known = set(files)
    numbers: dict[PurePosixPath, int] = {}
    lines: dict[PurePosixPath, int] = {}
    for line, name, label in _rows(table):
        file = PurePosixPath(name)
        if file in numbers:
            raise InputError(f"{table}:{line}: {name!r} has a label in line {lines[file]} already.")
        if file not in known:
            raise InputError(
                f"{table}:{line}: {root} has no image {reprlib.repr(name)}. Names of files are "
                "relative to the folder of images; correct the line, or remove it."
            )
        numbers[file] = _number(f"{table}:{line}", label, number_of, wanted)
        lines[file] = line
    if without := [str(file) for file in files if file not in numbers]:
        raise InputError(
            f"{table} has no label for {_some(without, 'image')} of {root}. Add a line for each, "
            "or remove the images."
        )
    return FolderClasses(tuple(numbers[file] for file in files))


def read_class_list(path: Path, classes: int | None) -> dict[str, int]:
    """Number of each class of a list.

    Args:
        path: of a text with one class per line.
        classes: that the network has; None if unknown.

    Raises:
        InputError: a class is there twice, or there are more than the network has.
    """
    text = read_text(path, "a list of classes", f"{_LIST}.").removeprefix("\ufeff")
    numbers: dict[str, int] = {}
    for number, line in enumerate(io.StringIO(text.rstrip(), newline=None)):
        name = line.strip()
        if not name:
            raise InputError(f"{path}:{number + 1}: is empty. {_LIST}.")
        if name in numbers:
            raise InputError(
                f"{path}:{number + 1}: {reprlib.repr(name)} is class {numbers[name]} already."
            )
        numbers[name] = number
    if not numbers:
        raise InputError(f"{path}: names no class. {_LIST}.")
    if classes is not None and len(numbers) > classes:
        raise InputError(
            f"{path} names {len(numbers)} classes, the network has {classes}. Give the list that "
            "it was trained with."
        )
    return numbers


def _rows(table: Path) -> list[tuple[int, str, str]]:
    """Line, file and label of each row."""
    text = read_text(table, "a table of labels", f"{_TABLE}.").removeprefix("\ufeff")
    reader = csv.reader(io.StringIO(text, newline=None))
    rows: list[tuple[int, str, str]] = []
    columns = (0, 1)
    try:
        for index, row in enumerate(reader):
            cells = [cell.strip() for cell in row]
            if index == 0 and "file" in cells and "label" in cells:
                columns = (cells.index("file"), cells.index("label"))
            elif any(cells):
                if len(cells) <= max(columns):
                    short = reprlib.repr(row)
                    raise InputError(f"{table}:{reader.line_num}: {short} is no pair. {_TABLE}.")
                rows.append((reader.line_num, cells[columns[0]], cells[columns[1]]))
    except csv.Error as error:
        raise InputError(f"{table}:{reader.line_num}: not CSV ({error}). {_TABLE}.") from error
    return rows


def _number(where: str, label: str, number_of: dict[str, int] | None, wanted: Labelling) -> int:
    if number_of is not None and label in number_of:
        return number_of[label]
    if not (label.isascii() and label.isdigit()):
        advice = (
            f"Give its number, or a class of {wanted.names}."
            if number_of is not None
            else "Give its number, or the names of all classes with --classes."
        )
        raise InputError(f"{where}: label {reprlib.repr(label)} is no class. {advice}")
    most = _LARGEST if wanted.classes is None else wanted.classes - 1
    if len(label) > len(str(_LARGEST)) or int(label) > most:
        short = reprlib.repr(label)[1:-1]
        raise InputError(f"{where}: label {short} is out of range; classes are 0 to {most}.")
    return int(label)


def _check_count(root: Path, have: int, classes: int | None) -> None:
    if classes is None or have == classes:
        return
    if have > classes:
        raise InputError(f"{root} has {have} class folders, the network has {classes} classes")
    raise InputError(
        f"{root} has {have} class folders, the network has {classes} classes, so the order of the "
        "folders doesn't give their numbers. Give --classes FILE, which names the folder of each "
        "class, one per line, or --labels FILE.csv, which has lines of file,label."
    )


def _order_note(root: Path, folders: Sequence[str]) -> list[str]:
    """Where a reader would take the names for the numbers, and they aren't."""
    if not all(folder.isascii() and folder.isdigit() for folder in folders):
        return []
    if [int(folder) for folder in folders] == list(range(len(folders))):
        return []
    shown = ", ".join(f"{name} is class {number}" for number, name in enumerate(folders[:_SHOWN]))
    more = " and so on" if len(folders) > _SHOWN else ""
    return [
        f"{root}: class folders are numbered in the order of their names as text: {shown}{more}. "
        "Where the network was trained otherwise, give --classes FILE with the folder of each "
        "class, one per line."
    ]


def _some(names: Sequence[str], what: str) -> str:
    """The first of many names, and how many there are."""
    many = what if len(names) == 1 else f"{len(names)} {what}s"
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{many} {', '.join(names[:_SHOWN])}{more}"
