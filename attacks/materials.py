"""What a room for command lines holds: good files of every kind, and bad ones of every kind."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

ROOT = Path(__file__).resolve().parents[1]

CODE = '''
import sys

import numpy as np
import torch
from torch import nn


class Net(nn.Module):
    """Two convolutions and a classifier of 1 x 8 x 8 images."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 8, 3, stride=2)
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        return self.last(torch.relu(self.second(x)).mean((2, 3)))


class Two(nn.Module):
    """Two inputs."""

    def __init__(self):
        super().__init__()
        self.net, self.dense = Net(), nn.Linear(3, 4)

    def forward(self, x, y):
        return self.net(x) + self.dense(y)


class Raises(nn.Module):
    """Can be made, but not called."""

    def forward(self, x):
        return {}["x"]


class Leaves(nn.Module):
    """Ends the process."""

    def forward(self, x):
        sys.exit(0)


def broken():
    raise OSError(28, "No space left on device")


def leaves():
    sys.exit(0)


def text():
    return "no module"


def _rng():
    return np.random.default_rng(0)


def floats():
    for _ in range(3):
        yield _rng().standard_normal((4, 1, 8, 8)).astype(np.float32), np.arange(4)


def images():
    yield _rng().integers(0, 256, (8, 8, 8, 1), np.uint8), np.arange(8) % 4


def nothing():
    return iter(())


def empty():
    yield np.zeros((0, 1, 8, 8), np.float32)


def wrong():
    yield [["a"], object(), None]


def ragged():
    yield {"x": [[1.0], [1.0, 2.0]]}


def infinite():
    yield np.full((2, 1, 8, 8), np.inf, np.float32)


def later():
    yield np.zeros((2, 1, 8, 8), np.float32)
    raise MemoryError


LIST = [np.zeros((2, 1, 8, 8), np.float32)]
NUMBER = 3
'''

FUNCTIONS = (
    *("floats", "images", "nothing", "empty", "wrong", "ragged", "infinite", "later", "leaves"),
    *("broken", "LIST", "NUMBER", "absent"),
)


def make_room(room: Path) -> None:
    """Fill a folder; the artifact in it is built by the caller."""
    (room / "code_of_mine.py").write_text(CODE)
    sys.path.insert(0, str(room))
    try:
        code = __import__("code_of_mine")
    finally:
        sys.path.remove(str(room))
    torch.manual_seed(0)
    _models(room, code.Net().eval(), code.Two().eval(), code)
    _arrays(room)
    _images(room)
    _texts(room)
    (room / "empty").write_bytes(b"")
    (room / "noise").write_bytes(np.random.default_rng(1).bytes(4096))
    (room / "empty_folder").mkdir()
    (room / "mine").mkdir()
    (room / "mine" / "thesis.txt").write_text("years of work")
    (room / "notes.txt").write_text("mine")
    (room / "loop").symlink_to("loop")
    (room / "dangling").symlink_to("nothing_there")


def damage(room: Path, artifact: Path) -> None:
    """Put what belongs to an artifact beside it: its plan, a damaged copy, truncated files."""
    plan = (artifact / "plan.json").read_text()
    (room / "plan.json").write_text(plan)
    (room / "plan_half.json").write_text(plan[: len(plan) // 2])
    for name, old, new in (
        ("nan", '"zero_point": 0', '"zero_point": NaN'),
        ("huge", '"weight_bits": 8', '"weight_bits": ' + "9" * 400),
        ("text", '"settings": {', '"settings": 3, "more": {'),
        ("step", '"step": "2^', '"step": "2^99'),
    ):
        (room / f"plan_{name}.json").write_text(plan.replace(old, new))
    entries = json.loads(plan)
    entries["settings"]["kappa"] = float("nan")
    (room / "plan_kappa.json").write_text(json.dumps(entries))
    shutil.copytree(artifact, room / "damaged.tvmq")
    (room / "damaged.tvmq" / "model.so").write_bytes(b"\x7fELF")


def devices(room: Path) -> None:
    """Devices of the room's own, so that nothing can happen to those of the machine."""
    for name, minor in (("dev_null", 3), ("dev_zero", 5), ("dev_full", 7)):
        try:
            os.mknod(room / name, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
        except PermissionError:
            return


def _models(room: Path, net: nn.Module, two: nn.Module, code: object) -> None:
    batch = {0: torch.export.Dim("batch")}
    example, numbers = torch.randn(2, 1, 8, 8), torch.randn(2, 3)
    one = torch.export.export(net, (example,), dynamic_shapes=(batch,))
    both = torch.export.export(two, (example, numbers), dynamic_shapes=(batch, batch))
    torch.export.save(one, room / "model.pt2")
    torch.export.save(both, room / "two.pt2")
    torch.save(net, room / "module.pt")
    torch.save(net.state_dict(), room / "state.pt")
    torch.save({"epoch": 3, "state_dict": net.state_dict()}, room / "checkpoint.pt")
    torch.save([1, "x"], room / "list.pt")
    torch.save({"a": 1}, room / "dict.pt")
    for name in ("Raises", "Leaves"):
        torch.save(getattr(code, name)(), room / f"{name.lower()}.pt")
    data = (room / "model.pt2").read_bytes()
    (room / "half.pt2").write_bytes(data[: len(data) // 2])
    (room / "flipped.pt2").write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
    (room / "m\u00f6del \u2603.pt2").write_bytes(data)
    (room / "new\nline.pt2").write_bytes(data[:100])
    (room / os.fsdecode(b"\xff\xfe.pt2")).write_bytes(data)


def _arrays(room: Path) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (12, 8, 8, 1), np.uint8), np.arange(12) % 4
    floats = rng.standard_normal((12, 1, 8, 8)).astype(np.float32)
    numbers = np.ones((12, 3), np.float32)
    sets = {
        "images": {"images": images, "labels": labels},
        "named_images": {"x": images, "labels": labels},
        "floats": {"x": floats, "labels": labels},
        "float_images": {"images": floats, "labels": labels},
        "both": {"x": floats, "y": numbers, "labels": labels},
        "image_and_numbers": {"x": images, "y": numbers, "labels": labels},
        "nan": {"x": np.full_like(floats, np.nan), "labels": labels},
        "huge": {"x": np.full_like(floats, 3e38), "labels": labels},
        "one_huge": {"x": np.where(floats == floats[3, 0, 0, 0], 3e38, floats), "labels": labels},
        "beyond": {"x": floats.astype(np.float64) * 1e300},
        "tiny": {"x": np.full_like(floats, 1e-45), "labels": labels},
        "zero": {"x": np.zeros_like(floats), "labels": labels},
        "half": {"x": floats.astype(np.float16), "labels": labels.astype(np.int8)},
        "big_endian": {"x": floats.astype(">f4"), "labels": labels.astype(">i8")},
        "complex": {"x": floats.astype(np.complex64)},
        "objects": {"x": np.array([{}, None], object)},
        "strings": {"x": np.array(["a", "b"]), "labels": np.array(["a", "b"])},
        "scalar": {"x": np.float32(3)},
        "none": {"x": floats[:0], "labels": labels[:0]},
        "channels_last": {"x": floats.transpose(0, 2, 3, 1), "labels": labels},
        "other_size": {"images": images[:, :5], "labels": labels},
        "five_channels": {"images": np.repeat(images, 5, axis=3)},
        "bad_labels": {"x": floats, "labels": labels + 9},
        "float_labels": {"x": floats, "labels": labels * np.nan},
        "short_labels": {"x": floats, "labels": labels[:3]},
        "no_keys": {},
    }
    for name, arrays in sets.items():
        np.savez(room / f"{name}.npz", **arrays)
    np.savez_compressed(room / "compressed.npz", **sets["floats"])
    for name in ("floats", "compressed"):
        data = bytearray((room / f"{name}.npz").read_bytes())
        (room / f"{name}_half.npz").write_bytes(data[: len(data) // 2])
        data[200] ^= 255
        (room / f"{name}_flipped.npz").write_bytes(data)
    np.save(room / "array.npy", floats)


def _images(room: Path) -> None:
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        for folder in ("pictures", "bad_pictures"):
            (room / folder / label).mkdir(parents=True)
            for index in range(2):
                image = Image.fromarray(rng.integers(0, 256, (9, 12), np.uint8))
                image.save(room / folder / label / f"{index}.png")
    (room / "bad_pictures" / "b" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n no image")


def _texts(room: Path) -> None:
    machine = (ROOT / "targets/npu/specs/e256.toml").read_text()
    for name, old, new in (
        ("nan", "burst = 64", "burst = nan"),
        ("text", "[array]", "[array"),
        ("float", "rows = ", "rows = 1e"),
        ("huge", "clock_hz = ", "clock_hz = " + "9" * 5000),
        ("missing", "[dma]", "[dna]"),
    ):
        (room / f"machine_{name}.toml").write_text(machine.replace(old, new, 1))
    (room / "deep.toml").write_text("a = " + "[" * 50_000 + "]" * 50_000)
    (room / "deep.json").write_text("[" * 200_000 + "]" * 200_000)
    (room / "latin.toml").write_bytes("title = 'caf\u00e9'".encode("latin-1"))
    (room / "numbers.toml").write_text("min-top1 = nan\n[build]\nkappa = inf\nmax-fallback = nan\n")
    (room / "kinds.toml").write_text("strict = 'no'\n[build]\niters = 2.5\nseed = true\n")
    (room / "nul.toml").write_text('output = "a\\u0000b"\noutputs = "a\\u0000b"\n')
    (room / "good.toml").write_text("verbose = 1\n[build]\nseed = 3\n")
