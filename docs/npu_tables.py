"""Write the tables of docs/npu.md from the code that they describe.

    python docs/npu_tables.py

The page holds them between ``<!-- NAME -->`` and ``<!-- end -->``; the rest of it is written by
hand. A test compares the page with what this file says.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from targets.npu.kinds.kind import Rule
from targets.npu.machine import isa
from targets.npu.machine.legality import rules
from targets.npu.machine.spec import load_spec, presets

PAGE = Path(__file__).with_name("npu.md")
BLOCK = re.compile(r"<!-- (?P<name>[a-z]+) -->\n.*?<!-- end -->", re.DOTALL)
ATTRIBUTE = re.compile(r"^ {4}(\w+): (.*?)(?=^ {4}\w+: |\Z)", re.MULTILINE | re.DOTALL)


def description() -> Iterator[str]:
    """Every field of a machine description, with the values of the presets."""
    machines = [load_spec(name) for name in presets()]
    yield f"| field | {' | '.join(f'`{name}`' for name in presets())} | meaning |"
    yield "|---" * (2 + len(machines)) + "|"
    yield from _fields("", machines)


def _fields(prefix: str, parts: list[Any]) -> Iterator[str]:
    meanings = _attributes(type(parts[0]))
    for name in type(parts[0]).model_fields:
        values = [getattr(part, name) for part in parts]
        if isinstance(values[0], BaseModel):
            yield from _fields(f"{prefix}{name}.", values)
            continue
        if isinstance(values[0], dict):
            values = [", ".join(value) for value in values]
        shown = [f"{value:,}" if isinstance(value, int) else str(value) for value in values]
        yield f"| `{prefix}{name}` | {' | '.join(shown)} | {meanings[name]} |"


def energy() -> Iterator[str]:
    """Every energy table of the presets, in picojoules."""
    tables = {
        name: t for spec in map(load_spec, presets()) for name, t in spec.energy.tables.items()
    }
    yield f"| picojoules | {' | '.join(tables)} | of |"
    yield "|---" * (2 + len(tables)) + "|"
    yield from _fields("", list(tables.values()))


def _attributes(part: type[BaseModel]) -> dict[str, str]:
    """The meanings in the section "Attributes" of a docstring."""
    _, _, section = (inspect.getdoc(part) or "").partition("Attributes:\n")
    return {name: " ".join(text.split()) for name, text in ATTRIBUTE.findall(section)}


def instructions() -> Iterator[str]:
    """Opcode, unit and first sentence of each instruction."""
    yield "| opcode | instruction | unit | does |"
    yield "|---|---|---|---|"
    for kind in isa.KINDS:
        text = (inspect.getdoc(kind) or "").splitlines()[0].partition(": ")[2]
        unit = "any" if kind is isa.Nop else isa.UNIT_NAMES[kind.unit]
        yield f"| 0x{kind.opcode:02x} | {kind.mnemonic} | {unit} | {_cell(text)} |"


def encoding() -> Iterator[str]:
    """Fields of each instruction, and what traps."""
    spec = load_spec("e256")
    for kind in isa.KINDS:
        yield f"#### {kind.mnemonic}"
        yield ""
        _, _, rest = (inspect.getdoc(kind) or "").partition("\n\n")
        if rest:
            yield rest.replace("``", "`")
            yield ""
        defaults = kind()
        own = [entry for entry in kind.layout() if entry[0] not in ("pop", "push")]
        if own:
            yield "| bits | field | default |"
            yield "|---|---|---|"
        for name, first, width in own:
            bits = f"{first}" if width == 1 else f"{first + width - 1}:{first}"
            yield f"| {bits} | `{name}` | {getattr(defaults, name)} |"
        reasons = dict.fromkeys(reason for reason, _ in rules(kind, defaults, spec, [0] * 4))
        checked = [reason for reason in reasons if "itself" not in reason]
        if checked:
            yield ""
            yield f"Checked: {'; '.join(checked)}."
        yield ""


def constraints() -> Iterator[str]:
    """The sentences that a layer on the CPU is given as its reason."""
    for rule in Rule:
        yield f"- {rule.value}"


TABLES: dict[str, Callable[[], Iterator[str]]] = {
    function.__name__: function
    for function in (description, instructions, encoding, constraints, energy)
}


def filled(page: str) -> str:
    """The page with all its tables written anew."""

    def table(match: re.Match[str]) -> str:
        lines = "\n".join(TABLES[match["name"]]()).rstrip()
        return f"<!-- {match['name']} -->\n\n{lines}\n\n<!-- end -->"

    return BLOCK.sub(table, page)


def _cell(text: str) -> str:
    return text.replace("``", "`").replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
