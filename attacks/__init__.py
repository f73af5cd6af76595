"""Attempts to break tvmq, for `scripts/attack`: a file per kind of attack, and what they share.

A kind is a function ``attempts(count, seed, room)`` that makes ``count`` attempts, the same for the
same seed, with the folder ``room`` to itself, and yields an ``Attempt`` for each.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Attempt:
    """One attempt.

    Attributes:
        name: what was tried, so that a reader can try it again.
        broke: what went wrong; empty where tvmq held.
    """

    name: str
    broke: str = ""
