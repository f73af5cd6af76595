"""Hostile plans, machines and configurations: JSON and TOML without bound, or of wrong types."""

from __future__ import annotations

import base64
import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from attacks.hostile import ODD_VALUES, PAYLOADS, Hostile, nested
from attacks.hostile.data_files import inflating
from attacks.hostile.programs import _at, _places

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib


def kinds() -> Iterator[Hostile]:
    """Every kind of hostile plan, machine and configuration."""
    yield from _plans()
    yield from _texts()
    yield from _machines()


def _plans() -> Iterator[Hostile]:
    def plan(what: str, change: Callable[[Any, random.Random], None]) -> Hostile:
        def make(rng: random.Random, honest: Path, path: Path) -> None:
            tree = json.loads((honest / "plan.json").read_text())
            change(tree, rng)
            path.write_text(json.dumps(tree), errors="replace")

        return Hostile(f"plan: {what}", "plan", make, varied=change in (odd, gone, key))

    def codes(content: Callable[[], bytes] | str) -> Callable[[Any, random.Random], None]:
        def change(tree: Any, rng: random.Random) -> None:
            text = content if isinstance(content, str) else base64.b64encode(content()).decode()
            tree["learned_codes"][rng.choice(sorted(tree["learned_codes"]))] = text

        return change

    def odd(tree: Any, rng: random.Random) -> None:
        place, _ = rng.choice(list(_places(tree)))
        _at(tree, place[:-1])[place[-1]] = copy.copy(rng.choice((*ODD_VALUES, *PAYLOADS)))

    def gone(tree: Any, rng: random.Random) -> None:
        place, _ = rng.choice(list(_places(tree)))
        del _at(tree, place[:-1])[place[-1]]

    def key(tree: Any, rng: random.Random) -> None:
        places = [p for p, _ in _places(tree) if isinstance(_at(tree, p), dict)]
        _at(tree, rng.choice(places))[rng.choice(PAYLOADS)] = rng.choice(ODD_VALUES)

    def many_codes(tree: Any, rng: random.Random) -> None:
        text = base64.b64encode(inflating(2**26)).decode()
        tree["learned_codes"] |= {f"layer_{i}": text for i in range(40)}

    def numbers(tree: Any, rng: random.Random) -> None:
        for entry in tree["layers"].values():
            entry["weight_steps"] = [0.5] * rng.choice((0, 7, 200_000))

    for _ in range(4):
        yield plan("an odd value", odd)
    yield plan("an entry is missing", gone)
    yield plan("an odd key", key)
    yield plan("codes that inflate to 2 GB", codes(lambda: inflating(2**31)))
    yield plan("codes of many layers that inflate", many_codes)
    yield plan("codes that are no base64", codes("*" * 1_000))
    yield plan("codes that are no zlib", codes(lambda: b"x" * 1_000))
    yield plan("codes that are cut", codes(lambda: inflating(2**20)[:50]))
    yield plan("codes and more behind them", codes(lambda: inflating(2**20) + b"more"))
    yield plan("no codes", codes(lambda: b""))
    yield plan("many steps", numbers)


def _texts() -> Iterator[Hostile]:
    """Texts that are no JSON or TOML of a sane size, for each reader of such."""
    contents: dict[str, Callable[[bytes], bytes]] = {
        "deep lists": lambda honest: b"x = " + nested("[", "]", 200_000).encode(),
        "deep lists alone": lambda honest: nested("[", "]", 200_000).encode(),
        "deep objects": lambda honest: nested('{"a":', "}", 200_000, "1").encode(),
        "deep tables": lambda honest: b"x = " + nested("{a=", "}", 50_000, "1").encode(),
        "deep names": lambda honest: b"a" + b".a" * 100_000 + b" = 1\n",
        "a deep section": lambda honest: b"[a" + b".a" * 100_000 + b"]\n",
        "deep in an honest one": lambda honest: honest.replace(
            b'"additions": {}', b'"additions": ' + nested("[", "]", 5_000).encode()
        ),
        "a long number": lambda honest: b"x = " + b"9" * 1_000_000,
        "a long number in an honest one": lambda honest: honest.replace(
            b'"zero_point": ', b'"zero_point": ' + b"9" * 1_000_000
        ),
        "a large file": lambda honest: honest + b"\n" * 100_000_000,
        "many small lists": lambda honest: b"x = [" + b"[]," * 4_000_000 + b"]",
        "many names": lambda honest: b"".join(b"a%d = 1\n" % i for i in range(300_000)),
        "no text": lambda honest: b"\xff\xfe\x00" * 1_000,
        "UTF-16": lambda honest: honest.decode().encode("utf-16"),
        "a byte order mark": lambda honest: b"\xef\xbb\xbf" + honest,
        "NUL": lambda honest: honest + b"\x00",
        "nothing": lambda honest: b"",
        "a number": lambda honest: b"1",
        "null": lambda honest: b"null",
        "half of it": lambda honest: honest[: len(honest) // 2],
        "twice": lambda honest: honest + honest,
        "noise": lambda honest: bytes((i * 7919) % 251 for i in range(5_000)),
        "a message for the terminal": lambda honest: b'"\\u001b[2J" = 1\n' + honest,
    }
    files = {"plan": "plan.json", "machine": "machine.toml", "config": "config.toml"}
    for way, name in files.items():
        for what, content in contents.items():

            def make(
                rng: random.Random,
                honest: Path,
                path: Path,
                content: Callable[[bytes], bytes] = content,
                name: str = name,
            ) -> None:
                path.write_bytes(content((honest / name).read_bytes()))

            yield Hostile(f"{way}: {what}", way, make)


def _machines() -> Iterator[Hostile]:
    """An honest description with one field changed."""
    values = (
        "-1", "0", "1.5", "nan", "inf", "'text'", "true", "[]", "{}", "9" * 40, "1e308",
        "2024-01-01", "[1, 2]", "0x7fffffffffffffff", "''",
    )  # fmt: skip

    def changed(rng: random.Random, honest: Path, path: Path) -> None:
        lines = (honest / "machine.toml").read_text().splitlines()
        fields = [i for i, line in enumerate(lines) if "=" in line and not line.startswith("#")]
        for index in rng.sample(fields, rng.choice((1, 1, 3))):
            lines[index] = f"{lines[index].split('=')[0]}= {rng.choice(values)}"
        path.write_text("\n".join(lines))

    def missing(rng: random.Random, honest: Path, path: Path) -> None:
        lines = (honest / "machine.toml").read_text().splitlines()
        del lines[rng.randrange(len(lines))]
        path.write_text("\n".join(lines))

    def more(rng: random.Random, honest: Path, path: Path) -> None:
        text = (honest / "machine.toml").read_text()
        names = list(tomllib.loads(text))
        path.write_text(f"{rng.choice(names)}_ = 1\n{text}\n[more]\nx = {rng.choice(values)}\n")

    for _ in range(3):
        yield Hostile("machine: a field is odd", "machine", changed, varied=True)
    yield Hostile("machine: a line is missing", "machine", missing, varied=True)
    yield Hostile("machine: a field too many", "machine", more)
