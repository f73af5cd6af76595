"""Hostile files of every kind that tvmq reads: models, data, plans, machines, checkpoints.

Each is made from an honest one by a rule of a grammar (`attacks/hostile`): code in every place
where torch evaluates, executes or looks up what a file says; values of the wrong type; sizes,
depths and numbers without bound; records that readers disagree about. tvmq holds if loading ends
well or with an error of its own, within a few seconds and 1 GB, and no code of the file ran.
"""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Iterator
from pathlib import Path

from attacks import Attempt
from attacks.hostile import CANARY, Hostile, data_files, programs, settings_files, state_dicts, ways
from attacks.victim import Victims

CODES = {2, 4}


def kinds() -> list[Hostile]:
    """All kinds of hostile files, in order."""
    grammars = (programs, state_dicts, data_files, settings_files)
    return list(itertools.chain.from_iterable(grammar.kinds() for grammar in grammars))


def attempts(count: int, seed: int, room: Path) -> Iterator[Attempt]:
    """Load ``count`` files: honest ones, one of each kind, then more of the varied ones."""
    honest, work = room / "honest", room / "work"
    honest.mkdir()
    work.mkdir()
    ways.make_honest(honest)
    rng = random.Random(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        every = kinds()
    varied = [kind for kind in every if kind.varied]
    chosen = every[:count] + rng.choices(varied, k=max(0, count - len(every)))
    with Victims(ways.make_loads, honest, work) as victims:
        for way, name in ways.HONEST:  # a loader that refuses everything would not do
            said = victims.load(way, honest / name)
            yield Attempt(f"honest {name}", "" if said == "accepted" else said)
        for number, kind in enumerate(chosen):
            path = work / f"{number}{ways.SUFFIXES[kind.way]}"
            with warnings.catch_warnings():  # that files are odd is what they are for
                warnings.simplefilter("ignore")
                kind.make(random.Random(f"{seed} {number}"), honest, path)
            said = victims.load(kind.way, path)
            broke = "" if _held(said) else said
            if (work / CANARY).exists():
                broke = f"code of the file ran ({said})"
                (work / CANARY).unlink()
            path.unlink(missing_ok=True)
            yield Attempt(f"{kind.way} {kind.name} (number {number}, seed {seed})", broke)


def _held(said: str) -> bool:
    return said == "accepted" or any(said.startswith(f"refused {code}: ") for code in CODES)
