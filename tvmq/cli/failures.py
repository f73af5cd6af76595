"""What the command says when it fails, and the exit code that goes with it.

Errors of ours say it themselves. Readers of files and callers of the user's code turn into such
errors whatever they meet; here is what is left when an exception has passed all of them.
"""

from __future__ import annotations

from targets.causes import cause_of
from targets.errors import InputError, MissingDependencyError, TvmqError


def failure(error: BaseException) -> tuple[str, int]:
    """A line of what went wrong, where and what to do; and the exit code."""
    if isinstance(error, TvmqError):
        return str(error), error.exit_code
    if isinstance(error, ModuleNotFoundError):
        advice = "`tvmq doctor` says what is missing and how to install it."
        return f"{error}. {advice}", MissingDependencyError.exit_code
    if isinstance(error, SystemExit):
        # nobody of ours calls sys.exit, and a code of 0 would say that all is well
        words = "code that this command ran called sys.exit. Leave that out of it."
        return words, InputError.exit_code
    cause = cause_of(error)
    if cause is not None:
        names = [getattr(error, name, None) for name in ("filename", "filename2")]
        where = " -> ".join(str(name) for name in names if name is not None)
        if not where and isinstance(error, OSError) and error.strerror:
            where = error.strerror  # of what, in words, as where no temporary folder can be had
        words = f"{where}: {cause.what}" if where else cause.what
        return f"{words}. {cause.advice}", cause.kind.exit_code
    lines = str(error).strip().splitlines()
    what = f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"
    return f"internal: {what}. This is a fault of tvmq; -vv shows where.", TvmqError.exit_code
