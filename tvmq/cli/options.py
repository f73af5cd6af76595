"""Options that several verbs share, as decorators: `--json -v -q --no-color --config` and devices.

The shared options are not passed to the verb's function: they set fields of the ``Terminal`` that
is the context's ``obj``. A ``--config`` file gives defaults, which the command line overrides:

    calib-data = "calib.npz"     # for every verb that has the option
    [build]
    precision = "w8a8"           # for `tvmq build` alone
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from targets.errors import InputError
from targets.reading import read_text, reading, what_is
from targets.toml_file import parse_toml
from tvmq.settings import CHOICES, MOST

Function = TypeVar("Function", bound=Callable[..., Any])

DEVICES = ("npu", "cpu", "reference", "float")
IMAGE_FLAGS = ("mean", "std", "resize", "crop")


class Whole(click.IntRange):
    """A whole number; not 2.5, which a TOML file can hold and ``int`` would cut."""

    def __init__(self, least: int, most: int = MOST) -> None:
        super().__init__(least, most)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Of a string, or of a number in a configuration."""
        if isinstance(value, float):
            self.fail(f"{value!r} is not a whole number.", param, ctx)
        number: int = super().convert(value, param, ctx)
        return number


class Real(click.FloatRange):
    """A number between two others; NaN, which is neither below nor above a bound, is none.

    Where it is a ``percent`` it may have a % behind it.
    """

    def __init__(self, least: float, most: float, *, percent: bool = False) -> None:
        super().__init__(least, most)
        self.percent = percent

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Of a string, or of a number in a configuration."""
        if self.percent and isinstance(value, str):
            value = value.removesuffix("%")
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


class FilePath(click.Path):
    """A path that the system can look up, whether something stands there or not."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Of a string."""
        if not value:
            self.fail("an empty path names nothing.", param, ctx)
        try:
            what_is(value)
        except InputError as error:
            self.fail(str(error), param, ctx)
        return super().convert(value, param, ctx)


PATH = FilePath()


def shared_options(function: Function) -> Function:
    """Add `--config --json -v -q --no-color`."""
    options = [
        click.option(
            "--config",
            type=PATH,
            callback=_read_config,
            is_eager=True,
            expose_value=False,
            metavar="FILE",
            help="TOML file with defaults for these options.",
        ),
        _terminal_option("--json", field="json", text="Machine output on stdout."),
        _terminal_option(
            "-v",
            "--verbose",
            field="verbosity",
            count=True,
            text="More on stderr; -vv adds tracebacks.",
        ),
        _terminal_option("-q", "--quiet", field="quiet", text="Only errors on stderr."),
        _terminal_option(
            "--no-color",
            field="plain",
            text="Plain text; so does the environment variable NO_COLOR.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def device_option(default: str | None = None) -> Callable[[Function], Function]:
    """Add `--device`."""
    return click.option(
        "--device",
        type=click.Choice(DEVICES),
        default=default,
        help="Where to run; npu is the simulated machine, reference the NumPy interpreter "
        "[default: npu if the artifact has one].",
    )


def images_options(function: Function) -> Function:
    """Add `--mean --std --resize --crop`; the values come as ``IMAGE_FLAGS`` names them."""
    options = [
        click.option("--mean", metavar="M,M,M", help="Mean of each channel, of pixels in 0..1."),
        click.option("--std", metavar="S,S,S", help="Standard deviation of each channel."),
        click.option("--resize", type=Whole(1), help="Shorter side of the image."),
        click.option("--crop", type=Whole(1), help="Side of the square in its middle."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


seed_option = click.option(
    "--seed",
    type=Whole(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="For everything random.",
)


def residual_options(function: Function) -> Function:
    """Add `--residual-bits --residual-reads`."""
    options = [
        click.option(
            "--residual-bits",
            type=Whole(3, 8),
            help="Bits of what residual additions add and make, more than other activations have "
            "[default: as all activations].",
        ),
        click.option(
            "--residual-reads",
            type=click.Choice(CHOICES["residual_reads"]),
            default="rounded",
            show_default=True,
            help="Whether convolutions read a copy of a residual that is rounded to the bits of "
            "activations, or all of its bits.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def residual_settings(bits: int | None, reads: str) -> dict[str, Any]:
    """What these options say, as fields of the settings.

    Raises:
        InputError: residuals are read in some way, and have no bits of their own.
    """
    if bits is None and reads != "rounded":
        raise InputError(
            f"--residual-reads {reads}: residuals have as many bits as all activations. Give "
            "--residual-bits, or leave it out."
        )
    return {"residual_bits": bits or 0, "residual_reads": reads}


def tuning_options(default: int) -> Callable[[Function], Function]:
    """Add `--trials --tuning-records`; with ``default`` trials."""

    def add(function: Function) -> Function:
        options = [
            click.option(
                "--trials",
                type=Whole(0),
                default=default,
                show_default=True,
                help="Trials of other schedules, of all programs or kernels together; what is kept "
                "is never slower.",
            ),
            click.option(
                "--tuning-records",
                type=PATH,
                multiple=True,
                metavar="DIR",
                help="Folder of records of trials; may be repeated. All are read, the first one "
                "gets new trials [default: OUTPUT.tuning].",
            ),
        ]
        for option in reversed(options):
            function = option(function)
        return function

    return add


def _terminal_option(
    *names: str, field: str, text: str, count: bool = False
) -> Callable[[Function], Function]:
    """A flag that sets a field of the Terminal, or counts in it."""

    def store(context: click.Context, _: click.Parameter, value: Any) -> None:
        if value:
            setattr(context.obj, field, value)

    return click.option(
        *names, callback=store, expose_value=False, is_flag=not count, count=count, help=text
    )


def _read_config(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    advice = "Give a TOML file with defaults for options."
    text = read_text(path, "a configuration", advice)
    with reading(path, "TOML", advice):
        data = parse_toml(text)
    verb = str(context.info_name)
    _check_config(path, data, context)
    known = _options(context.command)
    chosen = {key: value for key, value in data.items() if not isinstance(value, dict)}
    context.default_map = {
        str(known[key].name): value
        for key, value in {**chosen, **data.get(verb, {})}.items()
        if key in known
    }


def _check_config(path: Path, data: dict[str, Any], context: click.Context) -> None:
    """Raise where a key is no option, of the verb of its section or, outside of one, of any."""
    group = context.find_root().command
    assert isinstance(group, click.Group)
    verbs = {name: group.get_command(context, name) for name in group.list_commands(context)}
    options = {name: _options(verb) for name, verb in verbs.items() if verb is not None}
    for key, value in data.items():
        if not isinstance(value, dict):
            found = [known[key] for known in options.values() if key in known]
            if not found:
                raise click.BadParameter(f"{path}: {key!r} is no option of any verb")
            _check_value(f"{path}: {key!r}", found[0], value)
            continue
        if key not in options:
            raise click.BadParameter(
                f"{path}: [{key}] is no verb; sections are {', '.join(options)}"
            )
        for name, entry in value.items():
            if name not in options[key]:
                raise click.BadParameter(
                    f"{path}: [{key}] has {name!r}, which is no option of `tvmq {key}`"
                )
            _check_value(f"{path}: [{key}] {name!r}", options[key][name], entry)


def _check_value(where: str, option: click.Option, value: Any) -> None:
    """Raise where click would take a value for something else: true for 1, a date for a word."""
    if option.is_flag:
        fits, wanted = isinstance(value, bool), "true or false"
    elif option.multiple:
        fits = isinstance(value, list) and all(isinstance(item, str) for item in value)
        wanted = "a list of strings"
    else:
        fits = isinstance(value, str | int | float) and not isinstance(value, bool)
        wanted = "a string or a number"
    if not fits:
        raise click.BadParameter(f"{where} is {reprlib.repr(value)}; give {wanted}")


def _options(verb: click.Command) -> dict[str, click.Option]:
    """By the option as typed, without dashes."""
    return {
        word.lstrip("-"): option
        for option in verb.params
        if isinstance(option, click.Option)
        for word in option.opts
    }
