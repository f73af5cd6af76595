"""Hold the modelled NPU against SCALE-Sim, Vela and ZigZag: docs/validation.md and its figure.

Run it with ``python -m benchmarks.validation``: it prints the tables and compares with the frozen
cycles. With ``--write`` it freezes them anew, and writes the page and the figure.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import anchors, scalesim
from benchmarks.validation_figure import draw
from targets.errors import TvmqError
from targets.npu.machine.spec import load_spec
from targets.npu.price.layer_costs import PricedProgram

PAGE = Path(__file__).resolve().parents[1] / "docs" / "validation.md"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def main() -> int:
    """Returns the exit code: 1 where cycles differ from the frozen ones and nothing was written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="freeze the cycles anew")
    write = parser.parse_args().write
    layers = anchors.read_anchors()
    priced = {
        (layer.name, setting.name): anchors.price_anchor(layer, setting)
        for layer in layers
        for setting in anchors.SETTINGS
    }
    cycles = {key: each.timeline.total for key, each in priced.items()}
    tables = "\n".join([*scalesim_table(), "", *anchor_table(layers, priced), "", *golden(cycles)])
    if write:
        anchors.write_golden(cycles)
        text = PAGE.read_text()
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        PAGE.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}")
        draw(layers, cycles, PAGE.with_suffix(".svg"))
        return 0
    print(tables)
    frozen = anchors.read_golden()
    changed = {key for key in cycles if cycles[key] != frozen.get(key)}
    for layer, setting in sorted(changed):
        was, now = frozen.get((layer, setting)), cycles[layer, setting]
        print(f"{layer}, {setting}: {was} frozen, {now} now", file=sys.stderr)
    return 1 if changed else 0


def scalesim_table() -> Iterator[str]:
    """Cycles of SCALE-Sim's weight-stationary rows, one column per array; all of them are ours."""
    spec = load_spec("conformance_scalesim")
    cases = [case for case in scalesim.read_cases() if case.dataflow == "ws"]
    arrays = list(dict.fromkeys((case.rows, case.cols) for case in cases))
    wrong = [case for case in cases if scalesim.run(case, spec).cycles != case.cycles]
    found = {(case.layer, case.rows, case.cols): case.cycles for case in cases}
    yield f"{len(cases) - len(wrong)} of {len(cases)} rows are equal to SCALE-Sim's cycles."
    yield ""
    yield "| product (M, N, K) |" + "".join(f" {rows} x {cols} |" for rows, cols in arrays)
    yield "| --- |" + " ---: |" * len(arrays)
    for layer, m, n, k in dict.fromkeys((c.layer, c.m, c.n, c.k) for c in cases):
        cells = "".join(f" {found[layer, rows, cols]:,} |" for rows, cols in arrays)
        yield f"| {layer} ({m}, {n}, {k}) |{cells}"


def anchor_table(
    layers: list[anchors.Anchor], priced: dict[tuple[str, str], PricedProgram]
) -> Iterator[str]:
    """Ours over theirs, with the reason of every difference."""
    for tool, setting in (("Vela", anchors.VELA), ("ZigZag", anchors.ZIGZAG)):
        yield f"{tool}, against {setting.name}:"
        yield ""
        yield f"| layer | MAC bound | ours | bound by | {tool} | ours / {tool} | band | reason |"
        yield "| --- | ---: | ---: | --- | ---: | ---: | --- | --- |"
        for layer in layers:
            theirs = getattr(layer, tool.lower())
            if not theirs:
                continue
            ours = priced[layer.name, setting.name]
            percent = getattr(layer, f"{tool.lower()}_percent")
            ratio = ours.timeline.total / theirs
            within = abs(ratio - 1) * 100 <= percent
            band = f"{percent} %{'' if within else ', **missed**'}" if percent else ""
            yield (
                f"| {layer.name} | {-(-ours.layers[0].macs // 256):,} | {ours.timeline.total:,} "
                f"| {ours.layers[0].bound} | {theirs:,} | {ratio:.2f} | {band} "
                f"| {getattr(layer, f'{tool.lower()}_reason')} |"
            )
        yield ""


def golden(cycles: dict[tuple[str, str], int]) -> Iterator[str]:
    """All cycles that are frozen."""
    settings = list(dict.fromkeys(setting for _, setting in cycles))
    yield "Cycles of all settings (tests/data/golden_cycles.csv):"
    yield ""
    yield "| layer |" + "".join(f" {setting} |" for setting in settings)
    yield "| --- |" + " ---: |" * len(settings)
    for layer in dict.fromkeys(layer for layer, _ in cycles):
        cells = "".join(f" {cycles[layer, setting]:,} |" for setting in settings)
        yield f"| {layer} |{cells}"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except TvmqError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
