"""Files of the zoo's networks, as a user would have them: an exported program and data."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import torch

DIGITS = Path(__file__).resolve().parents[1] / "examples" / "digits"


def save(name: str, folder: Path) -> Path:
    """Export a network of the zoo into a folder."""
    path = folder / f"{name}.pt2"
    torch.export.save(models.export(models.ZOO[name]()), path)
    return path


def save_inputs(name: str, folder: Path, count: int = 8) -> Path:
    """An .npz keyed by input name, with labels."""
    generator = np.random.default_rng(0)
    shape = models.ZOO[name]()[1].shape[1:]
    x = generator.standard_normal((count, *shape)).astype(np.float32)
    path = folder / f"{name}.npz"
    np.savez(path, x=x, input=x, labels=np.arange(count) % 4)
    return path
