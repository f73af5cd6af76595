"""`tvmq targets`: the machines and processors that a model can be built for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tvmq.cli.options import shared_options
from tvmq.cli.terminal import Terminal

if TYPE_CHECKING:
    from targets.npu.machine.spec import NpuSpec


@click.command("targets")
@click.argument("machine", metavar="[MACHINE]...", nargs=-1)
@shared_options
@click.pass_obj
def command(terminal: Terminal, machine: tuple[str, ...]) -> None:
    """List the machines, or those that are named: presets, or your own TOML files.

    A file is checked; to build for it: --target npu:path/to/mine.toml. Where none is named, the
    processors follow that `tvmq build --cpu` takes.
    """
    from targets.npu.machine.spec import load_spec, presets

    names = [name.removeprefix("npu:") for name in machine] or presets()
    machines = [load_spec(name) for name in names]
    rows = [_row(name, spec) for name, spec in zip(names, machines, strict=True)]
    if terminal.json:
        described = zip(rows, machines, strict=True)
        targets = [{**row, "description": spec.model_dump()} for row, spec in described]
        shown: dict[str, Any] = {"targets": targets}
        terminal.print_json(shown if machine else shown | {"cpu": _processors()})
        return
    # One machine per column: a description is longer than machines are many.
    headings = ["", *(str(row["target"]) for row in rows)]
    facts = [fact for fact in rows[0] if fact != "target"]
    cells = [[fact, *(str(row[fact]) for row in rows)] for fact in facts]
    terminal.table(headings, cells, right=set())
    if not machine:
        processors = _processors()
        words = [[_in_words(value) for value in row.values()] for row in processors]
        terminal.table(list(processors[0]), words, right=set())


def _processors() -> list[dict[str, Any]]:
    """What ``--cpu`` takes, fastest first by architecture."""
    from targets.cpu.host import features_needed, runs_here
    from targets.cpu.instruction_sets import NAMED

    return [
        {
            "--cpu": each.name,
            "also": list(each.aliases),
            "instructions": each.title,
            "architecture": each.architecture,
            "needs": list(features_needed(each.target)),
            "on this machine": runs_here(each.target),
        }
        for each in NAMED
    ]


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) if isinstance(value, list) else str(value)


def _row(name: str, spec: NpuSpec) -> dict[str, Any]:
    """What a description says and what follows from it; rates are peaks."""
    array, dma, vu = spec.array, spec.dma, spec.vu
    peak, giga = spec.peak_macs_per_cycle, spec.clock_hz / 1e9
    rates = [f"{bits} bit {peak * 8 // bits}" for bits in array.precisions]
    buffers = "2 weight buffers" if array.weight_buffers == 2 else "1 weight buffer"
    return {
        "target": f"npu:{name}",
        "machine": spec.title,
        "MACs per cycle": peak,
        "MACs per cycle by width": ", ".join(rates),
        "clock MHz": spec.clock_hz // 10**6,
        "TOPS at 8 bit": round(2 * peak * giga / 1000, 3),
        "array": f"{array.rows} x {array.cols} {array.kind}, {buffers}",
        "depthwise": array.dw,
        "outputs per cycle by shift, multiplier": f"{vu.shift_lanes}, {vu.mult_lanes}",
        "added, pooled, looked up per cycle": f"{vu.elt_lanes}, {vu.pool_lanes}, {vu.lut_lanes}",
        "bits of a root or reciprocal per cycle": vu.root_bits,
        "activation kB": spec.sram.act.bytes // 1024,
        "weight kB": spec.sram.wgt.bytes // 1024,
        "accumulator kB": spec.sram.acc.bytes // 1024,
        "parameter kB": spec.sram.par.bytes // 1024,
        "DRAM bytes per cycle": dma.bytes_per_cycle,
        "DRAM GB/s": round(dma.bytes_per_cycle * giga, 3),
        "MACs per DRAM byte at balance": float(f"{peak / dma.bytes_per_cycle:.3g}"),
        "DRAM burst bytes": dma.burst,
        "DRAM latencies": f"{dma.read_latency} to read, {dma.write_latency} to write",
        "decode cycles": spec.issue.decode,
        "energy tables": ", ".join(spec.energy.tables),
    }
