"""Hostile weights: pickles that run code, take memory by a number, or hold something else."""

from __future__ import annotations

import io
import pickle
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from attacks.hostile import CANARY, Hostile
from attacks.hostile.programs import Evil

HEAD = b"\x80\x02"
OPEN = b"c__builtin__\nopen\nX" + len(CANARY).to_bytes(4, "little") + CANARY.encode()
OPEN += b"X\x01\x00\x00\x00w\x86R"
BIG = b"\x8a\x06" + (10**12).to_bytes(6, "little")

PICKLES: dict[str, bytes] = {
    "opens a file": HEAD + OPEN + b".",
    "opens a file as a key": HEAD + b"}" + OPEN + b"K\x01s.",
    "calls system": HEAD + b"cposix\nsystem\nX\x0c\x00\x00\x00touch canary\x85R.",
    "by INST": HEAD + b"(X\x06\x00\x00\x00canaryX\x01\x00\x00\x00wi__builtin__\nopen\n.",
    "by OBJ": HEAD + b"(c__builtin__\nopen\nX\x06\x00\x00\x00canaryX\x01\x00\x00\x00wo.",
    "by STACK_GLOBAL": b"\x80\x04\x8c\x08builtins\x8c\x04open\x93\x8c\x06canary\x8c\x01w\x86R.",
    "by an extension": HEAD + b"\x82\x01.",
    "an attribute of torch": HEAD
    + b"ctorch.serialization\nos.system\nX\x05\x00\x00\x00touch\x85R.",
    "torch.load inside": HEAD + b"ctorch.serialization\nload\nX\x07\x00\x00\x00evil.pt\x85R.",
    "storage from bytes": HEAD + b"ctorch.storage\n_load_from_bytes\nC\x01x\x85R.",
    "a large bytearray": HEAD + b"c__builtin__\nbytearray\n" + BIG + b"\x85R.",
    "a large bytearray of Python 3": HEAD + b"cbuiltins\nbytearray\n" + BIG + b"\x85R.",
    "a large tensor": HEAD + b"ctorch\nFloatTensor\n" + BIG + b"\x85R.",
    "a large new tensor": HEAD + b"ctorch\nTensor\n" + BIG + b"\x85\x81.",
    "a large meta tensor": HEAD
    + b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n(ctorch\nfloat32\n" + BIG + b"\x85"
    + BIG + b"\x85\x89tR.",
    "deep tuples as a key": HEAD + b"}" + b")" + b"\x85" * 2_000_000 + b"K\x01s.",
    "deep tuples by the memo": HEAD + b"}" + b")" + b"q\x00h\x00\x85" * 500_000 + b"K\x01s.",
    "deep lists": HEAD + b"]" * 1_000_000 + b"a" * 999_999 + b".",
    "deep dicts": HEAD + b"}K\x01" * 500_000 + b"Ns" + b"s" * 499_999 + b".",
    "a list in itself": HEAD + b"]q\x00h\x00a.",
    "a dict in itself": HEAD + b"}q\x00X\x01\x00\x00\x00ah\x00s.",
    "a high place in the memo": HEAD + b"}r\xff\xff\xff\xff.",
    "an unknown place in the memo": HEAD + b"h\x07.",
    "marks only": HEAD + b"(" * 1_000_000 + b".",
    "too many steps": HEAD + b"N0" * 5_000_000 + b"N.",
    "a long text that isn't there": HEAD + b"X\xff\xff\xff\x7fabc.",
    "a text that is none": HEAD + b"X\x02\x00\x00\x00\xff\xfe.",
    "an empty stack": HEAD + b"R.",
    "nothing": b"",
    "no end": HEAD + b"}",
    "a protocol of the future": b"\x80\xff}.",
    "a wrong storage": HEAD + b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
    b"X\x03\x00\x00\x00cpu" + BIG + b"tQ.",
    "a storage of no type": HEAD + b"(X\x07\x00\x00\x00storageK\x01K\x01K\x01K\x01tQ.",
    "a storage called elsewhere": HEAD + b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x0c\x00\x00\x00../../secretX\x03\x00\x00\x00cpuK\x04tQ.",
    "a number": HEAD + b"K\x01.",
    "a text": HEAD + b"X\x04\x00\x00\x00text.",
    "a tensor of a type": HEAD + b"ctorch\nfloat32\n.",
    "control characters": HEAD + b"}X\x04\x00\x00\x00\x1b[2JK\x01s.",
}  # fmt: skip


def kinds() -> Iterator[Hostile]:
    """Every kind of hostile state dict."""
    for what, text in PICKLES.items():
        for form in (_zipped, _bare, _old):
            yield _file(f"a pickle in a {form.__name__[1:]} file: {what}", form, text)
    for what, change in _states().items():
        yield _saved(what, change)
    yield from _damaged()


def _zipped(text: bytes) -> bytes:
    """As torch.save has written since version 1.6, with one storage."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in (
            ("data.pkl", text), ("byteorder", b"little"), ("data/0", bytes(16)),
            ("version", b"3\n"),
        ):  # fmt: skip
            archive.writestr(f"state/{name}", content)
    return file.getvalue()


def _bare(text: bytes) -> bytes:
    return text


def _old(text: bytes) -> bytes:
    """As torch.save wrote before."""
    parts = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True})
    head = b"".join(pickle.dumps(part, protocol=2) for part in parts)
    return head + text + pickle.dumps([], protocol=2)


def _file(name: str, form: Callable[[bytes], bytes], text: bytes) -> Hostile:
    def make(rng: random.Random, honest: Path, path: Path) -> None:
        path.write_bytes(form(text))

    return Hostile(name, "state dict", make)


def _states() -> dict[str, Callable[[dict[str, Any]], Any]]:
    weight = "fc.weight"
    one = torch.zeros(1)

    def with_weight(value: Any) -> Callable[[dict[str, Any]], Any]:
        return lambda state: state | {weight: value}

    sparse = torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), one, (4, 8))
    return {
        "an object": with_weight(Evil()),
        "a view of one number": with_weight(one.expand(2**20, 2**20)),
        "a sparse tensor": with_weight(sparse),
        "a large sparse tensor": with_weight(
            torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), one, (2**40, 2**20))
        ),
        "a tensor without numbers": with_weight(torch.empty(4, 8, device="meta")),
        "complex numbers": with_weight(torch.zeros(4, 8, dtype=torch.complex64)),
        "texts": with_weight("0" * 32),
        "not numbers": with_weight(torch.full((4, 8), float("nan"))),
        "quantized numbers": with_weight(
            torch.quantize_per_tensor(torch.zeros(4, 8), 0.1, 0, torch.qint8)
        ),
        "integers": with_weight(torch.zeros(4, 8, dtype=torch.int64)),
        "another shape": with_weight(torch.zeros(8, 4)),
        "no dimension": with_weight(torch.tensor(1.0)),
        "keys that are numbers": lambda state: {i: v for i, v in enumerate(state.values())},
        "a long key": lambda state: state | {"x" * 1_000_000: one},
        "a key for the terminal": lambda state: state | {"\x1b[2J": one},
        "an attribute of the module": lambda state: state | {"__class__.forward": one},
        "state in state": lambda state: {"state_dict": {"state_dict": {"model": state}}},
        "many small tensors": lambda state: {f"x{i}": one for i in range(20_000)},
        "a list": lambda state: list(state.values()),
        "none": lambda state: None,
    }


def _saved(what: str, change: Callable[[dict[str, Any]], Any]) -> Hostile:
    def make(rng: random.Random, honest: Path, path: Path) -> None:
        state = torch.load(honest / "state.pt")
        new = rng.random() < 0.7
        torch.save(change(dict(state)), path, _use_new_zipfile_serialization=new)

    return Hostile(f"a state with {what}", "state dict", make)


def _damaged() -> Iterator[Hostile]:
    def flipped(rng: random.Random, honest: Path, path: Path) -> None:
        data = bytearray((honest / rng.choice(("state.pt", "legacy.pt"))).read_bytes())
        for _ in range(rng.choice((1, 3, 100))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)

    def pickle_flipped(rng: random.Random, honest: Path, path: Path) -> None:
        with zipfile.ZipFile(honest / "state.pt") as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                data = bytearray(old.read(name))
                for _ in range(rng.choice((1, 3)) if name.endswith("data.pkl") else 0):
                    data[rng.randrange(len(data))] = rng.randrange(256)
                new.writestr(name, bytes(data))

    def cut(rng: random.Random, honest: Path, path: Path) -> None:
        data = (honest / rng.choice(("state.pt", "legacy.pt"))).read_bytes()
        path.write_bytes(data[: rng.randrange(len(data))])

    def big_endian(rng: random.Random, honest: Path, path: Path) -> None:
        with zipfile.ZipFile(honest / "state.pt") as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                swap = name.endswith("byteorder")
                new.writestr(name, rng.choice((b"big", b"x" * 99)) if swap else old.read(name))

    def deflated(rng: random.Random, honest: Path, path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
            new.writestr("state/data.pkl", HEAD + b"}.")
            new.writestr("state/data/0", bytes(2**28))

    def noise(rng: random.Random, honest: Path, path: Path) -> None:
        path.write_bytes(
            rng.choice((b"\x80\x02", b"PK\x03\x04", b"", b"\x80")) + rng.randbytes(500)
        )

    for make in (flipped, pickle_flipped, cut, big_endian, deflated, noise):
        name = f"state: {make.__name__.replace('_', ' ')}"
        yield Hostile(name, "state dict", make, varied=make is not deflated)
