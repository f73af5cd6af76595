"""What a command sets for its own process."""

import os
import subprocess
import sys

PROGRAM = """
import os, sys
assert "torch" not in sys.modules
from tvmq.cli import main
main(["targets", "-q"])
print(os.environ.get("OMP_WAIT_POLICY"))
"""


def _policy(**environment):
    kept = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=kept | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_idle_threads_sleep_unless_the_user_says_otherwise():
    assert _policy() == "PASSIVE"
    assert _policy(OMP_WAIT_POLICY="ACTIVE") == "ACTIVE"
