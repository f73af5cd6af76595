"""`tvmq targets`: the machines that a model can be built for."""

from __future__ import annotations

from typing import Any

import click

from tvmq.cli.options import shared_options
from tvmq.cli.terminal import Terminal


@click.command("targets")
@shared_options
@click.pass_obj
def command(terminal: Terminal) -> None:
    """List the machines; your own is a TOML file: --target npu:path/to/mine.toml."""
    rows = _rows()
    if terminal.json:
        terminal.print_json({"targets": rows})
    else:
        headings = list(rows[0])
        cells = [[str(row[heading]) for heading in headings] for row in rows]
        terminal.table(headings, cells, right=set(headings[2:]))


def _rows() -> list[dict[str, Any]]:
    """One row per preset."""
    from targets.npu.spec import load_spec, presets

    rows: list[dict[str, Any]] = []
    for name in presets():
        spec = load_spec(name)
        rows.append(
            {
                "target": f"npu:{name}",
                "machine": spec.title,
                "MACs per cycle": spec.peak_macs_per_cycle,
                "clock MHz": spec.clock_hz // 10**6,
                "activation kB": spec.sram.act.bytes // 1024,
                "weight kB": spec.sram.wgt.bytes // 1024,
                "accumulator kB": spec.sram.acc.bytes // 1024,
                "DRAM bytes per cycle": spec.dma.bytes_per_cycle,
            }
        )
    return rows
