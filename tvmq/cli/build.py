"""`tvmq build`: a trained model in, an artifact out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from targets.errors import InputError
from tvmq.cli.options import (
    IMAGE_FLAGS,
    PATH,
    Real,
    Whole,
    images_options,
    residual_options,
    residual_settings,
    seed_option,
    shared_options,
    tuning_options,
)
from tvmq.cli.terminal import Terminal
from tvmq.reconstruct.methods import METHODS, learning
from tvmq.settings import CALIBRATION_BATCH, Settings, parse_methods, parse_precision

TRAINING = ("iters", "learn_batch", "learn_device")
"""Options that only methods that train have."""

LEARNING = (
    *(*TRAINING, "kappa", "distill_iters"),
    *("product_budget", "product_channels", "product_outputs"),
)
"""Options that only methods that learn have."""

PLANNED = (
    *("calib_data", "calib_samples", "calib_method", "precision", "scales", "granularity"),
    *("first_last_bits", "residual_bits", "residual_reads", "exclude", "method", *LEARNING),
)
"""Options that a plan has answered already."""


@click.command("build")
@click.argument("model_file", metavar="MODEL", type=PATH)
@click.option(
    "--target",
    default="npu",
    show_default=True,
    metavar="npu[:PRESET|:FILE.toml]|cpu",
    help="Machine to build for; npu means npu:e256.",
)
@click.option(
    "--cpu",
    default="native",
    show_default=True,
    metavar="TARGET",
    help="Processor that runs the artifact: native is this one; `tvmq targets` names others.",
)
@click.option("-o", "--output", type=PATH, help="Folder to write [default: ./<model>.tvmq].")
@click.option("--calib-data", metavar="D", help="Calibration data; see `tvmq eval --help`.")
@click.option(
    "--calib-samples",
    type=Whole(1),
    help="Images used [default: 256, or 1024 to learn from; all where there are fewer].",
)
@click.option(
    "--calib-method",
    type=click.Choice(["minmax", "percentile", "mse", "lp"]),
    default="mse",
    show_default=True,
    help="How the range of an activation is chosen.",
)
@click.option(
    "--precision",
    default="w8a8",
    show_default=True,
    help="Bits of weights and activations, each 2 to 8.",
)
@click.option(
    "--scales",
    type=click.Choice(["pot", "free"]),
    default="pot",
    show_default=True,
    help="Power-of-two steps (requantize by shift) or free ones (multiplier and shift).",
)
@click.option(
    "--granularity",
    type=click.Choice(["tensor", "channel"]),
    default="tensor",
    show_default=True,
    help="One weight step per layer or per output channel.",
)
@click.option(
    "--first-last-bits",
    type=Whole(2, 8),
    default=8,
    show_default=True,
    help="At least this many bits for the first and the last layer.",
)
@residual_options
@click.option(
    "--exclude",
    multiple=True,
    metavar="GLOB",
    help="Keep 8-bit weights in layers or modules of this name; may be repeated.",
)
@click.option(
    "--method",
    default="rtn",
    show_default=True,
    metavar="|".join(METHODS),
    help="A comma list. "
    + " ".join(f"{name}: {method.summary}." for name, method in METHODS.items())
    + f" {', '.join(learning())} learn from --calib-data.",
)
@click.option(
    "--iters",
    type=Whole(1),
    default=2000,
    show_default=True,
    help="Training steps per block, for methods that learn; brecq makes a quarter more, for "
    "activation steps alone.",
)
@click.option(
    "--learn-batch",
    type=Whole(1),
    default=32,
    show_default=True,
    help="Images per training step; fewer take less memory.",
)
@click.option(
    "--learn-device",
    default="cpu",
    show_default=True,
    metavar="cpu|cuda|cuda:N",
    help="Where units are trained, for methods that learn; a GPU needs a torch that can use it.",
)
@click.option(
    "--distill-iters",
    type=Whole(1),
    show_default="as --iters",
    metavar="N",
    help="distill: training steps for all blocks together.",
)
@click.option(
    "--kappa",
    type=Real(0, 1),
    default=0.9,
    show_default=True,
    help="rapq: the loss of a block of layers is |error|^p, p at most 1 + kappa, from its last "
    "batch norm.",
)
@click.option(
    "--product-budget",
    type=Real(0.01, 100, percent=True),
    default=1.5,
    show_default=True,
    metavar="PCT",
    help="waps: shifts and additions, at most so many per hundred multiply-adds, and of the NPU's "
    "cycles so many per cent; decides how many input channels of a layer have a factor in common.",
)
@click.option(
    "--product-channels",
    type=Whole(1),
    help="waps: input channels that have a factor in common, instead of a budget.",
)
@click.option(
    "--product-outputs",
    type=Whole(1),
    help="waps: output channels that have their factors in common, best the array's columns "
    "[default: all].",
)
@click.option("--plan", type=PATH, help="An edited plan.json to build from; replaces calibration.")
@click.option(
    "--model",
    "model_factory",
    metavar="MODULE:FACTORY",
    help="Function that makes the network of a state dict.",
)
@click.option(
    "--trust-pickle", is_flag=True, help="Unpickle MODEL, which runs code that is in the file."
)
@click.option(
    "--input-shapes", metavar="x:1x3x32x32", help="For models that are not exported programs."
)
@click.option(
    "--batch",
    type=Whole(1),
    default=CALIBRATION_BATCH,
    show_default=True,
    help="Calibration batch.",
)
@seed_option
@click.option(
    "--float-islands",
    is_flag=True,
    help="Let operators that can't be quantized run in float, on the host, in the middle of the "
    "network, too.",
)
@click.option("--strict", is_flag=True, help="Fail if anything would run on the CPU (exit code 1).")
@click.option(
    "--max-fallback",
    type=Real(0, 100),
    metavar="PCT",
    help="Fail if more than this percentage of operators would run on the CPU (exit code 1).",
)
@tuning_options(default=0)
@images_options
@shared_options
@click.pass_obj
def command(terminal: Terminal, /, model_file: Path, output: Path | None, **options: Any) -> None:
    """Quantize MODEL, compile it for --target and prove that all devices agree bit for bit.

    MODEL is an exported program (.pt2, .pt), a pickled module (--trust-pickle) or a state dict
    (--model). Without --calib-data, ranges come from the network's own batch norms.
    """
    from tvmq.build_request import BuildRequest
    from tvmq.cli.report import build_summary
    from tvmq.data.preprocessing import Preprocessing
    from tvmq.flow import build
    from tvmq.tune.request import all_cores, request_of

    if options["plan"] is not None:
        _refuse_planned()
    weight_bits, activation_bits = parse_precision(options.pop("precision"))
    settings = Settings(
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        scales=options.pop("scales"),
        granularity=options.pop("granularity"),
        first_last_bits=options.pop("first_last_bits"),
        **residual_settings(options.pop("residual_bits"), options.pop("residual_reads")),
        calib_method=options.pop("calib_method"),
        exclude=options.pop("exclude"),
        method=parse_methods(options.pop("method")),
        iterations=options.pop("iters"),
        learn_batch=options.pop("learn_batch"),
        distill_iterations=options.pop("distill_iters") or 0,
        kappa=options.pop("kappa"),
        product_budget=options.pop("product_budget"),
        product_channels=options.pop("product_channels") or 0,
        product_outputs=options.pop("product_outputs") or 0,
    )
    _refuse_unlearned(settings)
    output = output or Path(f"{model_file.stem}.tvmq")
    how = Preprocessing.from_flags(*(options.pop(name) for name in IMAGE_FLAGS))
    trials, folders = options.pop("trials"), options.pop("tuning_records")
    tuning = request_of(output, trials, options["seed"], folders, all_cores())
    request = BuildRequest(
        model_file, output, settings=settings, preprocessing=how, tuning=tuning, **options
    )
    result = build(request, terminal.progress())
    if terminal.json:
        terminal.print_json(result.as_json())
    else:
        for line in build_summary(result):
            terminal.say(line)
    result.check_gates()


def _given(names: Sequence[str]) -> list[str]:
    """The flags of those options that the command line has."""
    context = click.get_current_context()
    return [
        "--" + name.replace("_", "-")
        for name in names
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]


def _refuse_unlearned(settings: Settings) -> None:
    """Raise where an option of learning would change nothing."""
    if not settings.learned_method and (given := _given(LEARNING)):
        raise InputError(
            f"{', '.join(given)}: --method {','.join(settings.method)} learns nothing. Choose one "
            f"of {', '.join(learning())}, or leave {', '.join(given)} out."
        )
    if not settings.trained_method and (given := _given(TRAINING)):
        raise InputError(
            f"{', '.join(given)}: --method {','.join(settings.method)} takes no steps of an "
            f"optimizer. Leave {', '.join(given)} out, or add a method that does, such as qdrop."
        )
    for name, method in METHODS.items():
        if name not in settings.method and (given := _given(method.options)):
            raise InputError(
                f"{', '.join(given)}: only --method {name} has it. Leave it out, or choose {name}."
            )


def _refuse_planned() -> None:
    """Raise where --plan meets an option that would change nothing."""
    given = _given(PLANNED)
    if given:
        raise InputError(
            f"--plan and {', '.join(given)}: a plan already has its ranges, bits and steps. "
            f"Leave {', '.join(given)} out, or edit the plan."
        )
