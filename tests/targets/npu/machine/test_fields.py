"""No field of a description is idle: each changes a program, its price, or what is refused."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
from npu_layers import LAYERS
from pydantic import BaseModel, ValidationError

from targets.errors import CapacityError, TimingError
from targets.npu.compiler import compile_layers
from targets.npu.machine import isa
from targets.npu.machine.program import Program
from targets.npu.machine.spec import NpuSpec, load_spec
from targets.npu.price.durations import duration
from targets.npu.price.energy import picojoules
from targets.npu.price.layer_costs import price

MACHINES = {name: load_spec(name) for name in ("e256", "m2048")}
USED = {
    name: LAYERS[name]
    for name in (
        *("square", "residual_with_multipliers", "weights_of_4_bits"),
        *("depthwise_strided_5x5", "add", "lut", "max_pool", "norm", "rows_in_blocks"),
    )
}
FILLS = [isa.Load(fill=1, mem=mem, x_bytes=512) for mem in range(4)]
"""The compiler fills ACT only; the other memories have lines for programs by hand."""
NAMES = {"name", "title", "source"}
"""Fields that say what something is called, or where its numbers come from."""


def fields(spec: BaseModel, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of all fields that hold a value."""
    for name in type(spec).model_fields:
        value = getattr(spec, name)
        if isinstance(value, BaseModel):
            yield from fields(value, (*path, name))
        elif isinstance(value, dict):
            for key, part in value.items():
                yield from fields(part, (*path, name, key))
        else:
            yield (*path, name)


PATHS = [(name, path) for name, spec in MACHINES.items() for path in fields(spec)]


def annotation(spec: BaseModel, path: tuple[str, ...]) -> Any:
    """The declared type of a field."""
    for name in path[:-1]:
        spec = spec[name] if isinstance(spec, dict) else getattr(spec, name)
    return type(spec).model_fields[path[-1]].annotation


def others(spec: NpuSpec, path: tuple[str, ...]) -> Iterator[NpuSpec]:
    """The machine with other values of one field: those that its description allows."""
    content = spec.model_dump()
    part: Any = content
    for name in path[:-1]:
        part = part[name]
    value, kind = part[path[-1]], annotation(spec, path)
    if path == ("energy", "table"):
        candidates: list[Any] = list(spec.energy.tables)
    elif get_origin(kind) is Literal:
        candidates = list(get_args(kind))
    elif isinstance(value, list):
        candidates = [list(x) for n in (1, 2, 3) for x in itertools.combinations((8, 4, 2), n)]
    elif isinstance(value, float):
        candidates = [value + 1.0]
    else:
        candidates = [value * 1000, 1, value // 2, value // 64, value // 512, value + 1, value * 2]
    for candidate in candidates:
        part[path[-1]] = candidate
        if candidate != value:
            try:
                yield NpuSpec.model_validate(content)
            except ValidationError:
                continue


def compiled(name: str, spec: NpuSpec) -> Program | str:
    """A layer's program, or why there is none."""
    layer = USED[name]
    try:
        return compile_layers([layer], layer.inputs, [layer.output], spec)
    except CapacityError as error:
        return str(error)


@functools.cache
def programs(machine: str) -> dict[str, Program]:
    """The layers' programs for the machine as it is."""
    made = {name: compiled(name, MACHINES[machine]) for name in USED}
    return {name: program for name, program in made.items() if isinstance(program, Program)}


@functools.cache
def usual_prices(machine: str) -> list[Any]:
    """What it says of them on their own."""
    return prices(machine, MACHINES[machine])


def prices(machine: str, spec: NpuSpec) -> list[Any]:
    """What tvmq says of those programs on another machine."""
    priced: list[Any] = [duration(fill, spec) for fill in FILLS]
    for program in programs(machine).values():
        costs = price(program, spec)
        tables = [spec.energy.named(), *spec.energy.tables.values()]
        joules = [sum(picojoules(i, spec, t) for i in program.instructions) for t in tables]
        priced += [spec.microseconds(costs.timeline.total), costs.ideal_cycles, joules]
    return priced


def changes(machine: str, spec: NpuSpec) -> bool:
    """Whether the machine differs from the preset in more than its digest."""
    try:
        if prices(machine, spec) != usual_prices(machine):
            return True
    except TimingError:  # the preset's programs do not end there
        return True
    for name, program in programs(machine).items():
        other = compiled(name, spec)
        if isinstance(other, str) or (other.instructions, other.constants) != (
            program.instructions,
            program.constants,
        ):
            return True
    return False


@pytest.mark.parametrize(("machine", "path"), PATHS, ids=[f"{m}-{'.'.join(p)}" for m, p in PATHS])
def test_every_field_changes_something(machine: str, path: tuple[str, ...]) -> None:
    if path[-1] in NAMES:
        return
    kind = annotation(MACHINES[machine], path)
    if get_origin(kind) is Literal and len(get_args(kind)) == 1:
        return  # any other value is refused
    assert any(changes(machine, other) for other in others(MACHINES[machine], path))


def test_only_texts_are_left_out() -> None:
    left_out = {path for _, path in PATHS if path[-1] in NAMES}
    tables = MACHINES["e256"].energy.tables
    sources = {("energy", "tables", table, "source") for table in tables}
    assert left_out == {("name",), ("title",), *sources}
