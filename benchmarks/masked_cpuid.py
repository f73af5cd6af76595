"""A copy of a Python package whose native libraries find a processor with AVX2 and no more.

Some libraries choose their kernels by the instruction cpuid alone and have no option. In the copy
each of these is made illegal, and a library that is loaded first answers for it
(``masked_cpuid.c``). For x86-64 Linux, with objdump and a C compiler.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

CPUID, ILLEGAL = b"\x0f\xa2", b"\x0f\x0b"
SOURCE = Path(__file__).with_suffix(".c")


def masked_environment(package: str, folder: Path) -> dict[str, str]:
    """The environment of a process that is to import the copy, which is made in the folder."""
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.origin is not None
    copy = folder / package
    shutil.copytree(Path(found.origin).parent, copy, symlinks=True)
    for library in [*copy.rglob("*.so"), *copy.rglob("*.so.*")]:
        if not library.is_symlink():
            _mask(library)
    answering = folder / "answering.so"
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", SOURCE, "-o", answering], check=True)
    path = os.environ.get("PYTHONPATH", "")
    return {
        "LD_PRELOAD": str(answering),
        "PYTHONPATH": f"{folder}{os.pathsep}{path}",
    }


def _mask(library: Path) -> None:
    """Make each cpuid of a library illegal."""
    listing, headers = (
        subprocess.run([*command, library], capture_output=True, text=True, check=True).stdout
        for command in (["objdump", "-d", "--no-show-raw-insn"], ["readelf", "-lW"])
    )
    segments = [
        tuple(int(number, 16) for number in found.groups())
        for found in re.finditer(r"LOAD\s+(0x\w+) (0x\w+) 0x\w+ (0x\w+)", headers)
    ]
    data = bytearray(library.read_bytes())
    for found in re.finditer(r"^\s*([0-9a-f]+):\s+cpuid\s*$", listing, re.MULTILINE):
        address = int(found[1], 16)
        at = next(
            place + address - begin
            for place, begin, size in segments
            if begin <= address < begin + size
        )
        assert data[at : at + 2] == CPUID
        data[at : at + 2] = ILLEGAL
    library.write_bytes(data)
