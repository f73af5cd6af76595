"""Where units are trained: on the CPU, or on a GPU that torch sees.

Only the training loop runs there. Everything that is measured, kept and handed on is worked out on
the CPU, so that a unit is judged by the same arithmetic wherever it was trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from targets.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn


def learn_device(name: str) -> torch.device:
    """The device of a ``--learn-device``.

    Raises:
        InputError: there is no such device, or torch can't use it.
    """
    import torch

    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise InputError(f"--learn-device {name}: give cpu, cuda, or cuda:N for the N-th GPU.")
    if kind == "cpu":
        return torch.device("cpu")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= found:
        there = f"{found} of them" if found else "none"
        why = "" if torch.backends.cuda.is_built() else "; this torch is built without CUDA"
        raise InputError(
            f"--learn-device {name}: torch sees {there}{why}. Give --learn-device cpu, or install "
            "a torch and a driver that can use the GPU."
        )
    return torch.device(name)


@contextmanager
def trained_on(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Have a module on a device meanwhile, with convolutions that give the same numbers again."""
    import torch

    module.to(device)
    try:
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ):
            yield
    finally:
        module.to("cpu")
