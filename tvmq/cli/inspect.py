"""`tvmq inspect`: a model before it is built, or an artifact and the IR of its stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from targets.errors import InputError
from tvmq.artifact.description import settings_text
from tvmq.cli.options import PATH, residual_options, residual_settings, shared_options
from tvmq.cli.report import residual_lines
from tvmq.cli.terminal import Terminal

if TYPE_CHECKING:  # so that a model is inspected without what reads artifacts
    from tvmq.artifact.artifact import FloatEntry

HEADINGS = ["layer", "kind", "MACs", "device", "where in the model", "reason"]
PRICES = (
    "Cycles are of one image and estimated; `tvmq profile` of the built artifact gives exact ones. "
    "In parentheses: what a layer on the CPU would take on the NPU if it kept the rule."
)
IN_FLOAT = "`tvmq profile` of the built artifact measures them"
PRICED = ["layer", "kind", "MACs", "device", "cycles", "bound", "where in the model", "reason"]


@click.command("inspect")
@click.argument("subject", metavar="MODEL|ART", type=PATH)
@click.option("--target", default="npu", show_default=True, help="Machine, for a model.")
@click.option("--precision", default="w8a8", show_default=True, help="Bits, for a model.")
@residual_options
@click.option(
    "--model", "model_factory", metavar="MODULE:FACTORY", help="Makes the network of a state dict."
)
@click.option("--trust-pickle", is_flag=True, help="Unpickle MODEL, which runs code in the file.")
@click.option("--input-shapes", metavar="x:1x3x32x32", help="For models that are not exported.")
@click.option(
    "--float-islands",
    is_flag=True,
    help="Let operators that can't be quantized run in float, on the host, in the middle of the "
    "network, too; of a model.",
)
@click.option(
    "--ranges",
    type=PATH,
    metavar="FILE.svg",
    help="Plot the ranges of the weights per channel, batch norms folded, of a model.",
)
@click.option("--stage", metavar="NAME", help="Print the IR of one stage of an artifact.")
@shared_options
@click.pass_obj
def command(terminal: Terminal, /, subject: Path, stage: str | None, **options: Any) -> None:
    """Say what will run where, why and at what price (MODEL), or what an artifact holds (ART)."""
    from tvmq.artifact.artifact import Artifact

    if not subject.is_dir():
        if stage is not None:
            raise InputError(f"{subject}: --stage is for artifacts. Build it first.")
        _inspect_model(terminal, subject, **options)
        return
    if options["ranges"] is not None:
        raise InputError(f"{subject}: --ranges is for model files. Give it the one built from.")
    artifact = Artifact.load(subject)
    if stage is None:
        _inspect_artifact(terminal, artifact)
    else:
        text = artifact.stage_text(stage)
        terminal.print_json({"stage": stage, "text": text}) if terminal.json else terminal.say(text)


def _inspect_model(
    terminal: Terminal,
    model_file: Path,
    target: str,
    precision: str,
    residual_bits: int | None,
    residual_reads: str,
    ranges: Path | None,
    **options: Any,
) -> None:
    from tvmq.capture.capture import capture
    from tvmq.flow import parse_target
    from tvmq.inspection import forecast
    from tvmq.settings import Settings, parse_precision

    how = residual_settings(residual_bits, residual_reads)
    settings = Settings(*parse_precision(precision), **how)
    spec = parse_target(target)
    model = capture(model_file, **options)
    if ranges is not None:
        from tvmq.pages.range_plot import channel_ranges, write_range_plot

        write_range_plot(channel_ranges(model), ranges)

    def layers_with(settings: Settings) -> list[dict[str, Any]]:
        return [asdict(layer) for layer in forecast(model, spec, settings, terminal.progress())]

    layers, residuals = layers_with(settings), None
    if spec is not None and residual_bits:
        bare = layers_with(replace(settings, residual_bits=0))
        cycles, without = (sum(_cycles(each, "npu")) for each in (layers, bare))
        residuals = {**how, "cycles": cycles, "without": without}
    if terminal.json:
        data = {"model": str(model_file), "kind": model.kind, "target": target}
        terminal.print_json({**data, "residuals": residuals, "operators": layers})
        return
    words = settings.precision + (f", residuals {residual_bits} bits" if residual_bits else "")
    terminal.say(f"{model_file}: {model.kind}; forecast for {target}, {words}")
    headings = HEADINGS if spec is None else PRICED
    rows = [_row(layer, priced=spec is not None) for layer in layers]
    terminal.table(headings, rows, right={"MACs", "cycles"})
    _totals(terminal, layers)
    if residuals is not None:
        change = 100 * (residuals["cycles"] / max(residuals["without"], 1) - 1)
        terminal.say(f"residuals of {residual_bits} bits: {change:+.2f} % cycles")
    if spec is not None:
        terminal.say(PRICES)


def _inspect_artifact(terminal: Terminal, artifact: Any) -> None:
    manifest = artifact.manifest
    islands = {island.name: island for island in manifest.float_islands}
    layers: list[dict[str, Any]] = []
    for layer in artifact.layers():
        island = islands.get(layer["name"]) if layer["device"] == "float" else None
        layers += [layer] if island is None else _in_float(island.operators)
    if manifest.float_ends is not None:
        head, tail = map(_in_float, (manifest.float_ends.head, manifest.float_ends.tail))
        layers = [*head, *layers, *tail]
    if terminal.json:
        manifest_json = manifest.model_dump(mode="json")
        terminal.print_json({"manifest": manifest_json, "operators": layers})
        return
    terminal.say(f"{artifact.folder}: {manifest.model['file']} for {manifest.target}")
    terminal.say(
        f"  {settings_text(manifest.settings)}; calibration: {manifest.calibration['source']}; "
        f"bit-exact: {'yes' if manifest.bit_exact else 'NO'}"
    )
    for line in residual_lines(manifest.residuals):
        terminal.say(line)
    for way, tensors in (("in ", manifest.inputs), ("out", manifest.outputs)):
        for info in tensors:
            terminal.say(f"  {way} {info.name}: {info.dtype}[{', '.join(map(str, info.shape))}]")
    terminal.table(HEADINGS, [_row(layer) for layer in layers], right={"MACs"})
    _totals(terminal, layers)
    terminal.say(f"Stages for --stage: {', '.join(artifact.stages())}")


def _in_float(operators: Sequence[FloatEntry]) -> list[dict[str, Any]]:
    return [{**entry.model_dump(), "device": "float", "program": None} for entry in operators]


def _row(layer: dict[str, Any], *, priced: bool = False) -> list[str]:
    start = [layer["name"], layer["kind"], f"{layer['macs']:,}", layer["device"]]
    end = [layer["source"], layer["reason"]]
    if not priced:
        return start + end
    if layer["cycles"] is None:
        return [*start, "", "", *end]
    cycles = f"{layer['cycles']:,}" if layer["device"] == "npu" else f"({layer['cycles']:,})"
    return [*start, cycles, layer["bound"], *end]


def _cycles(layers: list[dict[str, Any]], device: str) -> list[int]:
    """Of those layers of a device that have some."""
    own = [layer.get("cycles") for layer in layers if layer["device"] == device]
    return [cycles for cycles in own if cycles is not None]


def _totals(terminal: Terminal, layers: list[dict[str, Any]]) -> None:
    for device in ("npu", "cpu"):
        own = [layer for layer in layers if layer["device"] == device]
        macs = sum(layer["macs"] for layer in own)
        text = f"{device}: {len(own)} operators, {macs:,} MACs per image"
        if known := _cycles(layers, device):
            cycles = f"{sum(known):,}"
            text += f", {cycles} cycles" if device == "npu" else f", ({cycles}) cycles"
        terminal.say(text)
    if floats := [layer for layer in layers if layer["device"] == "float"]:
        macs = sum(layer["macs"] for layer in floats)
        text = f"float: {len(floats)} operators on the host, {macs:,} MACs per image"
        terminal.say(f"{text}; {IN_FLOAT}")
