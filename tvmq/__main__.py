"""`python -m tvmq` is the command `tvmq`."""

import sys

from tvmq.cli import main

if __name__ == "__main__":
    sys.exit(main())
