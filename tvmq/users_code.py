"""Code of the user: importing it, calling it, and saying where it failed."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from targets.causes import first_line
from targets.errors import InputError, TvmqError

_NOT_THE_USERS = (
    "<",
    *(str(Path(sysconfig.get_path(name))) + os.sep for name in ("stdlib", "purelib", "platlib")),
    *(str(Path(__file__).resolve().parents[1] / name) + os.sep for name in ("tvmq", "targets")),
)
"""How the names of files begin in which nobody looks for a fault of their own."""


@contextlib.contextmanager
def users_code(what: str) -> Iterator[None]:
    """Turn whatever code of the user raises in the block into an InputError.

    That includes ``sys.exit``, which would end the command with a code of the user's.

    Args:
        what: is called, as the message begins.

    Raises:
        InputError: names the exception and the line of the user's that led to it.
    """
    try:
        yield
    except TvmqError:
        raise
    except (Exception, SystemExit) as error:
        text = f": {first_line(error).rstrip('.')}" if str(error).strip() else ""
        raise InputError(
            f"{what} failed with {type(error).__name__}{text}{_place(error)}. Mend it there."
        ) from error


def _place(error: BaseException) -> str:
    """File and line of the innermost call that is neither tvmq's nor of something installed."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}:{error.lineno})"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(_NOT_THE_USERS):
            return f" ({frame.filename}:{frame.lineno})"
    return ""


@contextlib.contextmanager
def working_folder_importable() -> Iterator[None]:
    """Let imports find modules in the working folder, as ``python -m`` does."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the user's code may have changed the list
            sys.path.remove(folder)


def import_object(spec: str, flag: str) -> Any:
    """Import ``package.module:name``, also from the working folder.

    Args:
        spec: the text after the flag.
        flag: the flag, for the message.

    Raises:
        InputError: says which half was not found.
    """
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise InputError(f"{flag} {spec!r} is not of the form package.module:function")
    with working_folder_importable(), users_code(f"{flag} {spec}: importing {module_name}"):
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if not f"{module_name}.".startswith(f"{error.name}."):  # but one that it imports
                raise
            raise InputError(
                f"{flag} {spec}: can't import {module_name} ({error}); run in the folder that "
                "holds it or install it"
            ) from error
        for part in attribute.split("."):
            if not hasattr(found, part):
                raise InputError(
                    f"{flag} {spec}: {module_name} has no {attribute}; name something that is in it"
                )
            found = getattr(found, part)
    return found
