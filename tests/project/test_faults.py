"""The list of faults that can be planted is true of the code."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_text_stands_exactly_once():
    command = [sys.executable, ROOT / "scripts" / "plant_faults", "--list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert listed.returncode == 0, listed.stderr
