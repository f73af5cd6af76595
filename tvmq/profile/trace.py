"""The NPU's run as a Chrome trace: the four units and the bus, a slice per instruction.

Opens in Perfetto (ui.perfetto.dev) and chrome://tracing. Every program is a process; programs run
one behind the other. A unit's slice is the time in which the instruction occupies it; of LD and ST
it is their data on the bus. ``args`` holds the exact cycles and the instruction's fields.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any

from targets.errors import InputError
from targets.npu.machine import isa
from targets.npu.price.layer_costs import PricedProgram
from targets.npu.price.timeline import Run
from tvmq.profile.profile import Profile

BUS = len(isa.UNIT_NAMES)


def to_trace(profile: Profile) -> str:
    """JSON of all events; times are microseconds at the machine's clock.

    Raises:
        InputError: nothing runs on an NPU.
    """
    if profile.spec is None or not profile.programs:
        raise InputError(f"{profile.artifact}: nothing runs on an NPU, so there is no trace.")
    events: list[dict[str, Any]] = []
    clock = profile.spec.clock_hz
    begin = 0
    for process, (name, priced) in enumerate(profile.programs.items()):
        events += _names(process, name)
        for track, slices in enumerate(_tracks(priced)):
            events += (
                {
                    "ph": "X",
                    "pid": process,
                    "tid": track,
                    "name": each["name"],
                    "cat": each["layer"],
                    "ts": _microseconds(begin + each["begin"], clock),
                    "dur": _microseconds(each["end"] - each["begin"], clock),
                    "args": {"layer": each["layer"], **each["args"]},
                }
                for each in _nested(slices)
            )
        begin += priced.timeline.total
    return json.dumps({"displayTimeUnit": "ns", "traceEvents": events}, separators=(",", ":"))


def _names(process: int, program: str) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "pid": process, "name": "process_name", "args": {"name": f"NPU {program}"}}
    for track, name in enumerate((*isa.UNIT_NAMES, "bus")):
        about = {"ph": "M", "pid": process, "tid": track}
        yield {**about, "name": "thread_name", "args": {"name": name}}
        yield {**about, "name": "thread_sort_index", "args": {"sort_index": track}}


def _tracks(priced: PricedProgram) -> list[list[dict[str, Any]]]:
    """Slices of LD, MM, VU, ST and of the bus."""
    tracks: list[list[dict[str, Any]]] = [[] for _ in range(BUS + 1)]
    layers = _layer_names(priced)
    for index, (run, instruction) in enumerate(
        zip(priced.timeline.runs, priced.program.instructions, strict=True)
    ):
        begin = run.work[0] if run.asked >= 0 else run.start
        about = {
            "name": instruction.mnemonic,
            "layer": layers[index],
            "begin": begin,
            "end": max(run.work[1], run.decoded),
            "args": _arguments(index, instruction, run),
        }
        tracks[instruction.unit].append(about)
        if run.bus[0] < run.bus[1]:
            tracks[BUS].append({**about, "begin": run.bus[0], "end": run.bus[1]})
    for begin, end in priced.timeline.fetch:
        fetched = {"name": "fetch", "layer": "instructions", "begin": begin, "end": end}
        tracks[BUS].append({**fetched, "args": {}})
    return tracks


def _layer_names(priced: PricedProgram) -> list[str]:
    names = [""] * len(priced.program.instructions)
    for span in priced.program.layers:
        for begin, end in span.runs:
            names[begin:end] = [span.name] * (end - begin)
    return names


def _arguments(index: int, instruction: isa.Instruction, run: Run) -> dict[str, Any]:
    """Cycles, and the fields that aren't 0; tokens as names of units."""
    arguments: dict[str, Any] = {"index": index, "queued": run.queued, "start": run.start}
    arguments |= {"work": list(run.work), "done": run.done}
    for name in ("pop", "push"):
        units = [
            unit for n, unit in enumerate(isa.UNIT_NAMES) if getattr(instruction, name) >> n & 1
        ]
        if units:
            arguments[name] = " ".join(units)
    own = {field.name: getattr(instruction, field.name) for field in fields(instruction)}
    return arguments | {k: v for k, v in own.items() if v and k not in ("pop", "push")}


def _nested(slices: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Slices of one track by time; one that would cross the end of another begins there instead.

    Only a fill can: LD writes constants while data of an earlier load arrives.
    """
    end = 0
    for each in sorted(slices, key=lambda s: (s["begin"], -s["end"])):
        if each["begin"] < end < each["end"]:
            each = {**each, "begin": end}
        end = max(end, each["end"])
        yield each


def _microseconds(cycles: int, clock_hz: int) -> float:
    return round(cycles * 1e6 / clock_hz, 6)
