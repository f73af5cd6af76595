"""The command `tvmq`: one file per verb, and here what they have in common: errors and exit codes.

A verb parses, calls one function of the library and prints. torch and TVM take seconds to import,
so the files of the verbs import them inside their functions and `tvmq --help` is quick.
"""

from __future__ import annotations

import io
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from types import FrameType

import click

from tvmq import __version__
from tvmq.cli.failures import failure
from tvmq.cli.process import prepare
from tvmq.cli.terminal import Terminal

VERBS = ("build", "run", "eval", "profile", "inspect", "disasm", "targets", "doctor")

INTERRUPTED = 130


class Verbs(click.Group):
    """Imports the file of a verb when it is asked for."""

    def list_commands(self, _: click.Context) -> list[str]:
        """In the order in which they are used."""
        return list(VERBS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The verb's ``command``, or None so that click says that there is no such verb."""
        if name not in VERBS:
            return None
        command: click.Command = import_module(f"tvmq.cli.{name}").command
        return command


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tvmq")
def cli() -> None:
    """Quantize a PyTorch model to integers and run it, bit for bit, on a modelled NPU."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's own).

    Returns:
        The exit code: 0, or as ``targets/errors.py`` says, 130 when interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    terminal = Terminal()
    prepare()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name need not be of the terminal's letters
            stream.reconfigure(errors="backslashreplace")
    if not sys.warnoptions:  # torch warns about itself; nothing that a user can do
        warnings.simplefilter("ignore")
    if arguments is None:  # let an interrupted build clean up after itself
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _interrupt)
    try:
        code = cli.main(words, prog_name="tvmq", standalone_mode=False, obj=terminal)
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 2
    except click.ClickException as error:
        return _usage(error, terminal)
    except (KeyboardInterrupt, click.Abort):
        command = shlex.join(["tvmq", *words])
        terminal.error(f"interrupted; nothing was half-written. To do it again: {command}")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        return 0
    except (Exception, SystemExit) as error:
        return _failed(error, terminal)


def _usage(error: click.ClickException, terminal: Terminal) -> int:
    context = getattr(error, "ctx", None)
    hint = f" See `{context.command_path} --help`." if context is not None else ""
    terminal.error(error.format_message() + hint)
    return 2


def _failed(error: BaseException, terminal: Terminal) -> int:
    if terminal.verbosity > 1:
        terminal.stderr.print("".join(traceback.format_exception(error)), markup=False)
    words, code = failure(error)
    terminal.error(words)
    return code


def _interrupt(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt
