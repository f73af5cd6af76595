"""`tvmq debug`: where an artifact leaves the float network, device by device and layer by layer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from targets.errors import GateError
from tvmq.cli.options import IMAGE_FLAGS, PATH, Whole, images_options, shared_options
from tvmq.cli.terminal import Terminal

if TYPE_CHECKING:  # so that `--help` does not import torch
    from tvmq.run.layer_errors import Errors


@click.command("debug")
@click.argument("artifact", metavar="ART", type=PATH)
@click.option("--data", required=True, metavar="D", help="Images, in one of the forms of eval.")
@click.option(
    "--samples", type=Whole(1), default=32, show_default=True, help="Only the first images."
)
@click.option("--batch", type=Whole(1), default=8, show_default=True, help="Batch size.")
@images_options
@shared_options
@click.pass_obj
def command(
    terminal: Terminal,
    /,
    artifact: Path,
    data: str,
    samples: int,
    batch: int,
    **images: Any,
) -> None:
    """Say where ART leaves the float network: which device, and which layer.

    Each layer's error is measured by itself, on the float network's numbers, and in all, as the
    network runs: signal to noise in dB. A layer that loses more than its bits explain is bad; the
    first one is named, with what to try. Fails (exit code 1) if devices differ.
    """
    from tvmq.artifact.artifact import Artifact
    from tvmq.data.labels import Labelling
    from tvmq.data.preprocessing import Preprocessing
    from tvmq.run.execute import check_preprocessing, open_for
    from tvmq.run.layer_errors import layer_errors

    given = Preprocessing.from_flags(*(images[name] for name in IMAGE_FLAGS))
    loaded = Artifact.load(artifact)
    source = open_for(loaded, data, given, Labelling("ignored"))
    progress = terminal.progress()
    for note in source.notes:
        progress.note(f"note: {note}")
    total = min(samples, source.count or samples)
    with progress.bar("debug") as report:
        batches = (each.inputs for each in source.batches(batch, limit=samples))
        found = layer_errors(loaded, batches, lambda done: report(done, total))
    check_preprocessing(source, given)
    if terminal.json:
        terminal.print_json(_as_json(found))
    else:
        _show(terminal, found)
    for each in found.devices:
        if each.against == "reference" and each.different:
            raise GateError(
                f"{artifact}: {each.device} gives {each.different} of {each.numbers} numbers that "
                f"are not the reference's on {data}. Build it again, and report it if it stays so."
            )


def _as_json(found: Errors) -> dict[str, Any]:
    first = found.first_bad_layer
    return {
        "n": found.images,
        "first_bad_stage": found.first_bad_stage,
        "first_bad_layer": None if first is None else first.name,
        "devices": [
            {
                "device": each.device,
                "against": each.against,
                "numbers": each.numbers,
                "different": each.different,
                "db": _finite(each.db),
            }
            for each in found.devices
        ],
        "layers": [
            {
                "name": each.name,
                "kind": each.kind,
                "layer": each.source,
                "bits": each.bits,
                "own_db": _finite(each.own_db),
                "total_db": _finite(each.total_db),
                "beyond": each.beyond,
                "bad": each.is_bad,
                "advice": each.advice if each.is_bad else "",
            }
            for each in found.layers
        ],
    }


def _finite(decibels: float) -> float | None:
    """None where there is no error, or nothing to compare, for which JSON has no number."""
    return decibels if math.isfinite(decibels) else None


def _show(terminal: Terminal, found: Errors) -> None:
    from tvmq.run.layer_errors import DB_PER_BIT

    headings = ["layer", "kind", "bits", "own dB", "total dB", "beyond %", "", "where in the model"]
    rows = [
        [
            *(each.name, each.kind, str(each.bits), _words(each.own_db), _words(each.total_db)),
            *(f"{100 * each.beyond:.2f}", "bad" if each.is_bad else "", each.source),
        ]
        for each in found.layers
    ]
    numbers = {"bits", "own dB", "total dB", "beyond %"}
    terminal.table(headings, rows, numbers, ("beyond %", "kind"))
    for each in found.devices:
        if each.against == "float":
            ratio = "no floats" if math.isnan(each.db) else f"{_words(each.db)} dB"
            terminal.say(
                f"outputs against float: {ratio}, {each.different} of {each.numbers} numbers "
                "different"
            )
        elif each.different:
            terminal.say(f"{each.device}: {each.different} of {each.numbers} numbers DIFFERENT")
        else:
            terminal.say(f"{each.device} and reference: identical, bit for bit")
    bad = [each for each in found.layers if each.is_bad]
    if not bad:
        terminal.say(f"No layer has less than {DB_PER_BIT:g} dB per bit by itself.")
        return
    first = bad[0]
    terminal.say(
        f"First bad layer: {first.name} ({first.source}), {_words(first.own_db)} dB by itself with "
        f"{first.bits} bits. Try: {first.advice}."
    )
    worst = sorted(bad, key=lambda each: each.own_db / each.bits)[:5]
    terminal.say(f"{len(bad)} bad in all; worst: {', '.join(each.name for each in worst)}")


def _words(decibels: float) -> str:
    return f"{decibels:.1f}" if math.isfinite(decibels) else "exact"
