"""Artifacts that were tampered with: every file of one, in every way, given to every verb.

What no manifest covers any more is refused before anything is executed. Where the digests were made
to fit again, an artifact is what its manifest says, so that files may hold anything; then a verb
either does its work or says in words what it can't read.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attacks import Attempt
from attacks.command_server import CommandServer, Done
from attacks.materials import make_room
from tvmq.artifact.artifact import MANIFEST, Manifest, write_manifest

SECONDS = 60
CODES = {0, 1, 2, 4}

NATIVE = (".so", ".pt2")
"""Ends of files that run code when they are read; with a digest that fits, they may do anything."""

VERBS = {
    "run": ["-i", "../images.npz", "-o", "../out.npz"],
    "run --device cpu": ["-i", "../images.npz", "-o", "../out.npz"],
    "run --device reference": ["-i", "../images.npz", "-o", "../out.npz"],
    "run --device float": ["-i", "../images.npz", "-o", "../out.npz"],
    "eval": ["--data", "../images.npz", "--json"],
    "profile": ["--html", "../page.html", "--csv", "../rows.csv"],
    "inspect": [],
    "inspect --json": [],
    "inspect --stage placed": [],
    "disasm": [],
}

NASTY: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**70, float("nan"), float("inf"), "", "x", "a\0b", "\x1b[31m", [], {}),
    *([1], {"a": 1}, [[[]]], "../../etc/passwd", "/etc/passwd", "npu.toml", 0.5, "9" * 300),
)


@dataclass(frozen=True)
class _Tampering:
    """What was done to a copy of the artifact.

    Attributes:
        words: for a reader.
        harmless: the artifact still is what its manifest says, so a verb may succeed.
    """

    words: str
    harmless: bool = False


def attempts(count: int, seed: int, room: Path) -> Iterator[Attempt]:
    """Tamper with copies of an artifact and give each to a verb."""
    make_room(room)
    with CommandServer() as server:
        words = ["build", "model.pt2", "-o", "whole", "--calib-data", "images.npz"]
        built = server.run([*words, "--mean", "0.5", "--std", "0.5"], room, 600)
        if built.code != 0:
            yield Attempt("the artifact that is attacked", built.err)
            return
        files = sorted(p.relative_to(room / "whole").as_posix() for p in _files(room / "whole"))
        for index in range(count):
            chance = random.Random(f"{seed} {index}")
            copy = room / "copy"
            shutil.copytree(room / "whole", copy)
            tamper = chance.choice(_WAYS)
            done = tamper(copy, files[index % len(files)], chance)
            verb = chance.choice(sorted(VERBS))
            first, *more = verb.split()
            found = server.run([first, ".", *more, *VERBS[verb]], copy, SECONDS)
            yield Attempt(f"{index}: {done.words}: tvmq {verb}", _broke(room, done, found))
            shutil.rmtree(copy)


def _broke(room: Path, tampering: _Tampering, found: Done) -> str:
    said = f"; it said: {found.err[-300:]}"
    left = [name for name in ("out.npz", "page.html", "rows.csv") if (room / name).exists()]
    for name in left:
        (room / name).unlink()
    if found.code not in CODES:
        return f"exit code {found.code}{said}"
    if "internal:" in found.err or "Traceback" in found.err:
        return f"called its own fault what is none{said}"
    if found.code == 0 and not tampering.harmless:
        return "accepted"
    if found.code and left:
        return f"left {', '.join(left)} after an error{said}"
    if found.code and not found.err.strip().splitlines()[-1].startswith("error: "):
        return f"no line of error at the end{said}"
    return ""


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _flip(copy: Path, name: str, chance: random.Random) -> _Tampering:
    data = bytearray((copy / name).read_bytes())
    bit = chance.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    (copy / name).write_bytes(data)
    return _Tampering(f"bit {bit} of {name} flipped")


def _truncate(copy: Path, name: str, chance: random.Random) -> _Tampering:
    size = (copy / name).stat().st_size
    left = chance.choice((0, 1, size - 1, chance.randrange(size)))
    os.truncate(copy / name, left)
    return _Tampering(f"{name} cut from {size} to {left} bytes", harmless=left == size)


def _append(copy: Path, name: str, chance: random.Random) -> _Tampering:
    more = chance.choice((b"\n", b" ", b"\0", b"{}", bytes(1000)))
    with (copy / name).open("ab") as file:
        file.write(more)
    return _Tampering(f"{more[:4]!r} behind {name}")


def _remove(copy: Path, name: str, _: random.Random) -> _Tampering:
    (copy / name).unlink()
    return _Tampering(f"{name} removed")


def _swap(copy: Path, name: str, chance: random.Random) -> _Tampering:
    others = [path for path in _files(copy) if path != copy / name]
    other = chance.choice(sorted(others))
    one, two = (copy / name).read_bytes(), other.read_bytes()
    (copy / name).write_bytes(two)
    other.write_bytes(one)
    return _Tampering(f"{name} and {other.name} swapped", harmless=one == two)


def _replace(copy: Path, name: str, chance: random.Random) -> _Tampering:
    (copy / name).unlink()
    kinds: dict[str, Callable[[], object]] = {
        "a folder": (copy / name).mkdir,
        "a pipe": lambda: os.mkfifo(copy / name),
        "a link to nothing": lambda: (copy / name).symlink_to("nothing"),
        "a link to itself": lambda: (copy / name).symlink_to(Path(name).name),
        "a link to /dev/zero": lambda: (copy / name).symlink_to("/dev/zero"),
        "an empty file": (copy / name).touch,
    }
    kind = chance.choice(sorted(kinds))
    kinds[kind]()
    return _Tampering(f"{kind} in place of {name}")


def _link(copy: Path, name: str, _: random.Random) -> _Tampering:
    """The same bytes, elsewhere: nothing was changed."""
    (copy / name).rename(copy.parent / "moved")
    (copy / name).symlink_to(copy.parent / "moved")
    return _Tampering(f"{name} is a link to its bytes", harmless=True)


def _extra(copy: Path, name: str, chance: random.Random) -> _Tampering:
    """What the manifest doesn't name is not read."""
    extra = chance.choice((f"{name}.bak", "program_9.bin", "ir/zzz.py", "notes.txt"))
    if extra.removesuffix(".bak") != name and (copy / extra).exists():
        extra = "notes.txt"
    (copy / extra).write_bytes(chance.randbytes(50))
    return _Tampering(f"{extra} added", harmless=True)


def _edit(copy: Path, _: str, chance: random.Random) -> _Tampering:
    """An entry of the manifest, whose own digest is as it was."""
    fields = json.loads((copy / MANIFEST).read_text())
    words = _change(fields, chance)
    text = json.dumps(fields, indent=chance.choice((None, 2, 2)))
    same = text + "\n" == (copy / MANIFEST).read_text()
    (copy / MANIFEST).write_text(text + "\n")
    return _Tampering(f"manifest, {words}", harmless=same)


def _forge_manifest(copy: Path, _: str, chance: random.Random) -> _Tampering:
    """An entry of the manifest, and its digest made to fit."""
    fields = json.loads((copy / MANIFEST).read_text())
    words = "; ".join(_change(fields, chance) for _ in range(chance.choice((1, 1, 2))))
    others = {name: value for name, value in fields.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()
    (copy / MANIFEST).write_text(json.dumps({**others, "sha256": digest}, indent=2) + "\n")
    return _Tampering(f"manifest forged, {words}", harmless=True)


def _forge_file(copy: Path, name: str, chance: random.Random) -> _Tampering:
    """A data file, and all digests made to fit."""
    if name == MANIFEST or name.endswith(NATIVE):
        name = chance.choice(("layers.json", "program_0.bin", "npu.toml", "integer.json"))
    path = copy / name
    way = chance.choice((_flip, _truncate, _append, _remove, _program, _document))
    done = way(copy, name, chance) if path.suffix != ".bin" else _program(copy, name, chance)
    manifest = Manifest.model_validate_json((copy / MANIFEST).read_text())
    (copy / MANIFEST).unlink()
    write_manifest(copy, manifest)
    return _Tampering(f"forged, {done.words}", harmless=True)


def _program(copy: Path, name: str, chance: random.Random) -> _Tampering:
    """A change behind the checksum of a program, which is made to fit."""
    if not name.endswith(".bin"):
        return _flip(copy, name, chance)
    data = bytearray((copy / name).read_bytes())
    head = 48
    where = chance.choice((chance.randrange(head, len(data)), chance.randrange(head, head + 300)))
    data[where] = chance.randrange(256)
    data[8:40] = hashlib.sha256(data[head:]).digest()
    (copy / name).write_bytes(data)
    return _Tampering(f"byte {where} of {name}")


def _document(copy: Path, name: str, chance: random.Random) -> _Tampering:
    """An entry of a JSON file, or a number of another text."""
    path = copy / name
    if path.suffix == ".json":
        fields = json.loads(path.read_text())
        words = _change(fields, chance)
        path.write_text(json.dumps(fields))
        return _Tampering(f"{name}, {words}")
    if path.suffix == ".npz":
        np.savez(path, **{"input.x": np.array(["a"])})
        return _Tampering(f"{name} of strings")
    return _append(copy, name, chance)


def _change(fields: Any, chance: random.Random) -> str:
    """Change an entry somewhere in JSON; says which."""
    where = []
    here: Any = fields
    while True:
        key = chance.choice(sorted(here) if isinstance(here, dict) else range(len(here)))
        where.append(str(key))
        below = here[key]
        if not isinstance(below, dict | list) or not below or chance.random() < 0.3:
            break
        here = below
    place = ".".join(where)
    if chance.random() < 0.2:
        del here[key]
        return f"without {place}"
    if isinstance(here, dict) and chance.random() < 0.2:
        here[str(chance.choice(NASTY))] = here[key]
        return f"{place} twice"
    here[key] = chance.choice(NASTY)
    return f"{place} is {here[key]!r}"


_WAYS: tuple[Callable[[Path, str, random.Random], _Tampering], ...] = (
    *(_flip, _flip, _flip, _truncate, _append, _append, _remove, _swap, _replace, _link, _extra),
    *(_edit, _edit, _forge_manifest, _forge_manifest, _forge_file, _forge_file),
)
