"""The process of the command `tvmq`, and of `python -m tvmq`.

What a signal means is settled before anything that takes time to import.
"""

from __future__ import annotations

import sys

from targets import interrupts


def main() -> int:
    """Run the process's command line.

    Returns:
        The exit code, as ``tvmq.cli.main`` says.
    """
    interrupts.heed()
    try:
        from tvmq.cli import main as run

        return run()
    except BaseException:
        if not interrupts.came():
            raise
        # before there was anything that says so in colour
        print("error: interrupted; nothing was half-written.", file=sys.stderr)
        return interrupts.EXIT_CODE


if __name__ == "__main__":
    sys.exit(main())
