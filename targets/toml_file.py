"""Read TOML that a person wrote: small, and not deep."""

from __future__ import annotations

import sys
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LARGEST = 2**16
"""Characters; the largest machine takes a tenth. Parsing takes time by the square of names."""


def parse_toml(text: str) -> dict[str, Any]:
    """The contents of a TOML file.

    Raises:
        ValueError: it is no TOML, or longer than a person would write.
        RecursionError: it is nested too deeply.
    """
    if len(text) > LARGEST:
        raise ValueError(f"it has {len(text):,} characters, at most {LARGEST:,} are read")
    return tomllib.loads(text)
