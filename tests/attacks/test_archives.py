"""The grammar of hostile files has enough kinds, and the same seed makes the same files."""

import random

import numpy as np

from attacks.archives import kinds
from attacks.hostile import ways


def test_there_are_many_kinds():
    every = kinds()
    assert len({kind.name for kind in every}) > 600
    assert {kind.way for kind in every} == ways.SUFFIXES.keys()


def test_a_seed_decides_what_is_made(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.zeros((6, 3, 8, 8), np.float32), labels=np.arange(6))
    for kind in (kind for kind in kinds() if kind.varied and kind.way == "data"):
        made = []
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            kind.make(random.Random(seed), tmp_path, tmp_path / name)
            made.append((tmp_path / name).read_bytes())
        assert made[0] == made[1], kind.name
