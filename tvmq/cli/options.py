"""Options that several verbs share, as decorators: `--json -v -q --no-color --config` and devices.

The shared options are not passed to the verb's function: they set fields of the ``Terminal`` that
is the context's ``obj``. A ``--config`` file gives defaults, which the command line overrides:

    calib-data = "calib.npz"     # for every verb that has the option
    [build]
    precision = "w8a8"           # for `tvmq build` alone
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from targets.toml_file import parse_toml

Function = TypeVar("Function", bound=Callable[..., Any])

DEVICES = ("npu", "cpu", "reference", "float")
PATH = click.Path(path_type=Path)
IMAGE_FLAGS = ("mean", "std", "resize", "crop")


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
        click.option("--resize", type=click.IntRange(1), help="Shorter side of the image."),
        click.option("--crop", type=click.IntRange(1), help="Side of the square in its middle."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


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
    try:
        data = parse_toml(path.read_text())
    except OSError as error:
        raise click.BadParameter(f"{path}: can't be read ({error.strerror})") from error
    except ValueError as error:
        raise click.BadParameter(f"{path}: not TOML ({error})") from error
    verb = str(context.info_name)
    _check_config(path, data, context)
    known = _options(context.command)
    chosen = {key: value for key, value in data.items() if not isinstance(value, dict)}
    context.default_map = {
        known[key]: value for key, value in {**chosen, **data.get(verb, {})}.items() if key in known
    }


def _check_config(path: Path, data: dict[str, Any], context: click.Context) -> None:
    """Raise where a key is no option, of the verb of its section or, outside of one, of any."""
    group = context.find_root().command
    assert isinstance(group, click.Group)
    verbs = {name: group.get_command(context, name) for name in group.list_commands(context)}
    options = {name: _options(verb) for name, verb in verbs.items() if verb is not None}
    for key, value in data.items():
        if not isinstance(value, dict):
            if not any(key in known for known in options.values()):
                raise click.BadParameter(f"{path}: {key!r} is no option of any verb")
        elif key not in options:
            raise click.BadParameter(
                f"{path}: [{key}] is no verb; sections are {', '.join(options)}"
            )
        else:
            unknown = sorted(set(value) - set(options[key]))
            if unknown:
                raise click.BadParameter(
                    f"{path}: [{key}] has {unknown[0]!r}, which is no option of `tvmq {key}`"
                )


def _options(verb: click.Command) -> dict[str, str]:
    """Option as typed, without dashes -> name of its parameter."""
    return {
        word.lstrip("-"): str(option.name)
        for option in verb.params
        if isinstance(option, click.Option)
        for word in option.opts
    }
