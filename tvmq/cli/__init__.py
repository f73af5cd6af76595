"""The command `tvmq`: one file per verb, and here what they have in common: errors and exit codes.

A verb parses, calls one function of the library and prints. torch and TVM take seconds to import,
so the files of the verbs import them inside their functions and `tvmq --help` is quick.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

import click

from targets import interrupts
from targets.disk_space import explained
from targets.errors import TvmqError
from tvmq import __version__
from tvmq.cli.failures import failure
from tvmq.cli.process import check_working_folder, prepare
from tvmq.cli.terminal import Terminal

VERBS = (
    "build",
    "run",
    "eval",
    "profile",
    "tune",
    "inspect",
    "debug",
    "disasm",
    "targets",
    "doctor",
)


class Verbs(click.Group):
    """Imports the file of a verb when it is asked for."""

    def list_commands(self, _: click.Context) -> list[str]:
        """In the order in which they are used."""
        return list(VERBS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The verb's ``command``; None where there is none so near that it must be meant."""
        if name not in VERBS:
            for near in get_close_matches(name, VERBS, 1):
                raise click.UsageError(f"No such command {name!r}. Did you mean {near}?", context)
            return None
        command: click.Command = import_module(f"tvmq.cli.{name}").command
        return command

    def invoke(self, context: click.Context) -> object:
        """Run the verb; click would make a SystemExit of a reader that has gone."""
        try:
            return super().invoke(context)
        except BrokenPipeError:
            _close_stdout()
            return 0


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
    if arguments is None:
        interrupts.heed()
    try:
        code = _run(words, terminal, alone=arguments is None)
        interrupts.check()  # the exception was swallowed, and the job done before it was noticed
        return code
    except BaseException as error:
        if interrupts.came() or isinstance(error, (KeyboardInterrupt, click.Abort)):
            return _interrupted(words, terminal)
        raise
    finally:
        if arguments is None:
            interrupts.ignore()


def _run(words: list[str], terminal: Terminal, *, alone: bool) -> int:
    """Run a command line; interrupts go through.

    Args:
        words: of it.
        terminal: gets what it says.
        alone: the process does nothing else.
    """
    prepare(alone=alone)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name need not be of the terminal's letters
            stream.reconfigure(errors="backslashreplace")
    if not sys.warnoptions:  # torch warns about itself; nothing that a user can do
        warnings.simplefilter("ignore")
    try:
        check_working_folder()
        code = cli.main(words, prog_name="tvmq", standalone_mode=False, obj=terminal)
        sys.stdout.flush()  # a full disk is to be found here, not when the process has its code
        return code if isinstance(code, int) else 0
    except (Exception, SystemExit) as error:
        interrupts.check()  # whatever it says: an interrupt becomes many things on its way up
        return _failed(error, terminal)


def _interrupted(words: list[str], terminal: Terminal) -> int:
    with contextlib.suppress(OSError):  # the terminal may have gone, which was the signal
        terminal.stderr.show_cursor()
        command = shlex.join(["tvmq", *words])
        terminal.error(f"interrupted; nothing was half-written. To do it again: {command}")
    return interrupts.EXIT_CODE


def _close_stdout() -> None:
    """Throw away what could not be written, before Python tries again at the end and complains."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _usage(error: click.ClickException, terminal: Terminal) -> int:
    context = getattr(error, "ctx", None)
    hint = f" See `{context.command_path} --help`." if context is not None else ""
    message = error.format_message()
    terminal.error((message if message.endswith((".", "?", ")")) else f"{message}.") + hint)
    return 2


def _failed(error: BaseException, terminal: Terminal) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message())
        return 2
    if isinstance(error, click.Abort):
        raise error
    if isinstance(error, click.ClickException):
        return _usage(error, terminal)
    if isinstance(error, BrokenPipeError):  # the reader of our output, such as `head`, has gone
        _close_stdout()
        return 0
    if not isinstance(error, TvmqError) and (full := explained(error)):
        _close_stdout()
        error = full
    if terminal.verbosity > 1:
        terminal.stderr.print("".join(traceback.format_exception(error)), markup=False)
    words, code = failure(error)
    terminal.error(words)
    return code
