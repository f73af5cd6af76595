"""Hostile data: .npz files that declare more than they hold, inflate, or hold objects."""

from __future__ import annotations

import io
import json
import pickle
import random
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attacks.hostile import CANARY, ODD_VALUES, PAYLOADS, Hostile, nested
from attacks.hostile.programs import Evil

Members = dict[str, bytes]


def header(text: str, version: tuple[int, int] = (1, 0)) -> bytes:
    """The beginning of an .npy file that says ``text``."""
    data = text.encode("latin1", errors="replace") + b"\n"
    size = len(data).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + size + data


def describe(shape: str, descr: str = "'<f4'", fortran: str = "False") -> str:
    """The text of a header."""
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"


SHAPES = (
    "(1000000000000,)", "(6, 3, 1000000, 1000000)", "(6, -3, 8, 8)", "(-1, 3, 8, 8)", "()", "(0,)",
    "(6.5, 3)", "None", "'6'", "(True, 3, 8, 8)", f"({10**30}, 3, 8, 8)", f"(6, {10**400})",
    "(6, 3, 8, 8, 0)", "(0, 3, 8, 8)", f"({'1, ' * 100}6)", f"({'9' * 5_000},)", "[6, 3, 8, 8]",
    "(6, 3, 8, 8", f"open('{CANARY}','w')", f"({nested('(', ')', 90, '6')}, 3, 8, 8)",
)  # fmt: skip
TYPES = (
    "'|O'", "'<U1000000000'", "'|V100000000'", "'|S0'", "'<c16'", "'<M8[ns]'", "'|b1'", "'>f4'",
    "'<f16'", "[('a', '<f4'), ('b', '|O')]", "[('a', '<f4', (100000, 100000))]", "None", "'f4, f4'",
    "'no type'", f"open('{CANARY}','w')",
    "{'names': ['a'], 'formats': ['f4'], 'offsets': [99999999999]}",
)  # fmt: skip


def kinds() -> Iterator[Hostile]:
    """Every kind of hostile data file, and of the files of learned units."""
    for shape in SHAPES:
        for name in ("x", "labels"):
            yield _member(f"{name} of shape {shape[:30]}", name, header(describe(shape)))
    for descr in TYPES:
        for name in ("x", "labels"):
            text = describe("(6, 3, 8, 8)" if name == "x" else "(6,)", descr)
            yield _member(f"{name} of type {descr[:30]}", name, header(text) + bytes(5_000))
    for what, content in _contents().items():
        for name in ("x", "labels"):
            yield _member(f"{name}: {what}", name, content)
    yield from _archives()
    yield from _images()
    yield from _labels()
    yield from _units()


def _contents() -> dict[str, bytes]:
    x = describe("(6, 3, 8, 8)")
    return {
        "nothing": b"",
        "no array": b"x" * 100,
        "a pickle": pickle.dumps(Evil()),
        "objects": header(describe("(6,)", "'|O'")) + pickle.dumps(Evil()),
        "half": header(x) + bytes(1_000),
        "a long header": header(x + " " * 60_000) + bytes(5_000),
        "a very long header": header(x + " " * 20_000_000, (2, 0)) + bytes(5_000),
        "a deep header": header("{" + nested("[", "]", 10_000) + "}", (2, 0)),
        "a header of sums": header("+".join("1" * 20_000), (2, 0)),
        "a header longer than the file": b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{",
        "version 3": header(x, (3, 0)) + bytes(5_000),
        "version 9": header(x, (9, 9)) + bytes(5_000),
        "column by column": header(describe("(6, 3, 8, 8)", fortran="True")) + bytes(5_000),
        "order by code": header(describe("(6,)", fortran=f"open('{CANARY}','w')")),
        "more entries": header(x.replace("{", "{'x': 1, ")) + bytes(5_000),
        "not numbers": header(x) + b"\xff" * 4_608,
        "negative labels": header(describe("(6,)", "'<i8'")) + b"\xff" * 48,
        "large labels": header(describe("(6,)", "'<u8'")) + b"\xfe" * 48,
    }


def _write(path: Path, members: list[tuple[str, bytes]], deflate: bool = False) -> None:
    how = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, content in members:
            archive.writestr(name, content)


def _write_long(path: Path, name: str, start: bytes, megabytes: int) -> None:
    """A file of one deflated member."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(name, "w", force_zip64=True) as member,
    ):
        member.write(start)
        for _ in range(megabytes):
            member.write(bytes(2**20))


def _honest(honest: Path) -> Members:
    with zipfile.ZipFile(honest / "data.npz") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _member(what: str, name: str, content: bytes) -> Hostile:
    def make(rng: random.Random, honest: Path, path: Path) -> None:
        members = _honest(honest) | {f"{name}.npy": content}
        _write(path, list(members.items()), deflate=rng.random() < 0.5)

    return Hostile(what, "data", make)


def _archives() -> Iterator[Hostile]:  # noqa: C901 - a list of rules
    def zeros(rng: random.Random, honest: Path, path: Path) -> None:
        """Rows without end that take nothing: honest, but never to be held at once."""
        count = 2_000_000
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            with archive.open("x.npy", "w", force_zip64=True) as member:
                member.write(header(describe(f"({count}, 3, 8, 8)")))
                for _ in range(600):
                    member.write(bytes(2**20))
            labels = np.zeros(count, np.int64)
            file = io.BytesIO()
            np.save(file, labels)
            archive.writestr("labels.npy", file.getvalue())

    def labels_bomb(rng: random.Random, honest: Path, path: Path) -> None:
        count = 2**27 // 8 * 20
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, shape, item in (
                ("x", f"({count}, 3, 8, 8)", 0),
                ("labels", f"({count},)", 8),
            ):
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    member.write(header(describe(shape, "'<i8'" if item else "'<f4'")))
                    for _ in range(count * item >> 20):
                        member.write(bytes(2**20))

    def header_bomb(rng: random.Random, honest: Path, path: Path) -> None:
        start = b"\x93NUMPY\x02\x00" + (2**30).to_bytes(4, "little")
        _write_long(path, "x.npy", start, 1024)

    def unknown_bomb(rng: random.Random, honest: Path, path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in _honest(honest).items():
                archive.writestr(name, content)
            with archive.open("more.npy", "w", force_zip64=True) as member:
                for _ in range(1024):
                    member.write(bytes(2**20))

    def many(rng: random.Random, honest: Path, path: Path) -> None:
        small = header(describe("(1,)")) + bytes(4)
        _write(path, [*_honest(honest).items(), *((f"a{i}.npy", small) for i in range(20_000))])

    def twice(rng: random.Random, honest: Path, path: Path) -> None:
        members = list(_honest(honest).items())
        _write(path, [*members, (members[0][0], header(describe("(7, 3, 8, 8)")))])

    def names(rng: random.Random, honest: Path, path: Path) -> None:
        odd = rng.choice(("../x.npy", "x", "X.npy", "x.npy/", "x.npy.npy", "\x1b[2J.npy", "labels"))
        content = header(describe("(6, 3, 8, 8)")) + bytes(4_608)
        _write(path, [(odd, content), *(list(_honest(honest).items())[1:])])

    def flipped(rng: random.Random, honest: Path, path: Path) -> None:
        data = bytearray((honest / "data.npz").read_bytes())
        for _ in range(rng.choice((1, 10, 100))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)

    def cut(rng: random.Random, honest: Path, path: Path) -> None:
        data = (honest / "data.npz").read_bytes()
        path.write_bytes(data[: rng.randrange(len(data))])

    def another(rng: random.Random, honest: Path, path: Path) -> None:
        others = ("plain.pt2", "state.pt", "plan.json", "legacy.pt", "machine.toml")
        path.write_bytes((honest / rng.choice(others)).read_bytes())

    def compressed_otherwise(rng: random.Random, honest: Path, path: Path) -> None:
        how = rng.choice((zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
        with zipfile.ZipFile(path, "w", how) as archive:
            for name, content in _honest(honest).items():
                archive.writestr(name, content)
            archive.writestr("more.npy", bytes(2**26))

    for make in (
        zeros, labels_bomb, header_bomb, unknown_bomb, many, twice, names, flipped, cut, another,
        compressed_otherwise,
    ):  # fmt: skip
        name, varied = make.__name__.replace("_", " "), make in (flipped, cut, names)
        yield Hostile(f"data: {name}", "data", make, varied)


def _images() -> Iterator[Hostile]:
    formats = ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM")

    def damaged(rng: random.Random, honest: Path, path: Path) -> None:
        file = io.BytesIO()
        Image.new("RGB", (40, 30), (200, 3, 7)).save(file, rng.choice(formats))
        data = bytearray(file.getvalue())
        for _ in range(rng.choice((1, 3, 10))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.choice((len(data), rng.randrange(len(data))))])

    def postscript(rng: random.Random, honest: Path, path: Path) -> None:
        path.write_bytes(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"
            b"(canary) (w) file closefile\nshowpage\n%%EOF\n"
        )

    def of_size(
        width: int, height: int, mode: str = "1"
    ) -> Callable[[random.Random, Path, Path], None]:
        def make(rng: random.Random, honest: Path, path: Path) -> None:
            Image.new(mode, (width, height)).save(path, "PNG")

        return make

    yield Hostile("image: damaged", "images", damaged, varied=True)
    yield Hostile("image: PostScript", "images", postscript)
    yield Hostile("image: 16 bits", "images", of_size(15_000, 11_000, "I;16"))
    for width, height in ((60_000, 60_000), (15_000, 11_000), (1, 60_000), (60_000, 1)):
        yield Hostile(f"image: {width} x {height}", "images", of_size(width, height))


def _labels() -> Iterator[Hostile]:
    """Tables of labels, and lists of classes, for a folder that holds a/a.png."""
    contents = {
        "nothing": b"",
        "a pickle": pickle.dumps(Evil()),
        "zeros": bytes(5_000),
        "no text": bytes(range(256)) * 9,
        "a long line": b"a" * 2**27,
        "many lines": b"a/a.png,1\n" * 2**20,
        "many classes": b"".join(b"%d\n" % number for number in range(2**20)),
        "many columns": b"a/a.png,1" + b"," * 2**20,
        "an open quote": b'file,label\n"a/a.png,1\n' * 1_000,
        "a huge number": b"a/a.png," + b"9" * 2**20,
        "another number": "a/a.png,\u0661".encode(),
        "another folder": b"../../../etc/passwd,1\na/../a/a.png,1\n/etc/passwd,1\n",
        "other lines": b"a/a.png,1\ra/a.png,2\r",
        "heading twice": b"file,label,file,label\na/a.png\n",
    }
    for what, content in contents.items():
        for way in ("labels", "classes"):
            yield Hostile(f"{way}: {what}", way, _written(content))
    for payload in PAYLOADS:
        text = payload.encode("utf-8", "surrogatepass")
        yield Hostile(f"labels: {payload[:30]!r}", "labels", _written(b"a/a.png," + text))
        yield Hostile(f"labels of {payload[:30]!r}", "labels", _written(text + b",1"))
        yield Hostile(f"classes: {payload[:30]!r}", "classes", _written(b"a\n" + text))


def _written(content: bytes) -> Callable[[random.Random, Path, Path], None]:
    def make(rng: random.Random, honest: Path, path: Path) -> None:
        path.write_bytes(content)

    return make


def _units() -> Iterator[Hostile]:
    def unit(what: str, change: Callable[[random.Random, dict[str, Any]], None]) -> Hostile:
        def make(rng: random.Random, honest: Path, path: Path) -> None:
            with np.load(honest / "units" / "unit_0.npz") as file:
                arrays: dict[str, Any] = {name: file[name] for name in file.files}
            change(rng, arrays)
            np.savez(path, **arrays)

        return Hostile(f"unit: {what}", "checkpoint", make)

    def facts(
        change: Callable[[random.Random, Any], Any],
    ) -> Callable[[random.Random, dict[str, Any]], None]:
        def spoil(rng: random.Random, arrays: dict[str, Any]) -> None:
            found = json.loads(str(arrays["facts"]))
            changed = change(rng, found)
            arrays["facts"] = np.array(changed if isinstance(changed, str) else json.dumps(changed))

        return spoil

    def odd_field(rng: random.Random, found: Any) -> Any:
        found["result"][rng.choice(sorted(found["result"]))] = rng.choice(ODD_VALUES)
        return found

    def missing(rng: random.Random, found: Any) -> Any:
        del found["result"][rng.choice(sorted(found["result"]))]
        return found

    def array(name: str, value: Any) -> Callable[[random.Random, dict[str, Any]], None]:
        return lambda rng, arrays: arrays.__setitem__(name, value)

    yield unit("an odd fact", facts(odd_field))
    yield unit("a fact is missing", facts(missing))
    yield unit("deep facts", facts(lambda rng, found: nested("[", "]", 100_000)))
    yield unit("no facts", lambda rng, arrays: arrays.pop("facts") and None)
    yield unit("facts are a list", facts(lambda rng, found: [found]))
    yield unit("facts are text", facts(lambda rng, found: "hello"))
    yield unit("no result", facts(lambda rng, found: {"job": found["job"]}))
    yield unit("an array of one name", array("x", np.zeros(3)))
    yield unit("an array of four names", array("a/b/c/d", np.zeros(3)))
    yield unit("an array of texts", array("nearest/conv2d_weight/steps", np.array("text")))
    yield unit("an array of objects", array("nearest/conv2d_weight/steps", np.array([Evil()])))
    yield unit("another shape", array("nearest/conv2d_weight/codes", np.zeros((3, 3), np.int8)))
    yield unit("another type", array("nearest/conv2d_weight/codes", np.zeros(8, np.complex64)))

    def damaged(rng: random.Random, honest: Path, path: Path) -> None:
        data = bytearray((honest / "units" / "unit_0.npz").read_bytes())
        for _ in range(rng.choice((1, 10))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data[: rng.choice((len(data), rng.randrange(len(data))))])

    def inflated(rng: random.Random, honest: Path, path: Path) -> None:
        _write_long(path, "facts.npy", header(describe(f"({2**30},)", "'|u1'")), 1024)

    yield Hostile("unit: damaged", "checkpoint", damaged, varied=True)
    yield Hostile("unit: inflated", "checkpoint", inflated)


def inflating(size: int) -> bytes:
    """Few bytes that zlib inflates to ``size`` zeros."""
    deflate = zlib.compressobj(9)
    parts = [deflate.compress(bytes(2**20)) for _ in range(size >> 20)]
    return b"".join([*parts, deflate.flush()])
