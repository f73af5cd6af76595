"""What a command sets for its own process."""

import os
import subprocess
import sys

PROGRAM = """
import os, sys
assert "torch" not in sys.modules
from tvmq.cli import main
main(["targets", "-q"])
print(os.environ.get("GOMP_SPINCOUNT"))
"""


def _spins(**environment):
    kept = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=kept | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_idle_threads_sleep_soon_unless_the_user_says_otherwise():
    assert _spins() == "20000"
    assert _spins(GOMP_SPINCOUNT="7") == "7"
    assert _spins(OMP_WAIT_POLICY="ACTIVE") == "None"
