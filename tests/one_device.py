"""A mode that refuses what a GPU refuses: operators that read tensors of two devices."""

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class OneDevice(TorchDispatchMode):
    """Refuses operators that read tensors of two devices, as a GPU does."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = (
            x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and x.dim()
        )
        devices = {x.device.type for x in tensors}
        assert len(devices) < 2 or func is torch.ops.aten.copy_.default, f"{func} on {devices}"
        return func(*args, **(kwargs or {}))


@contextmanager
def nowhere():
    """What trains on "meta", the device without numbers, which is always there, does all of it.

    What comes back has no numbers, which is found out behind the last iteration.
    """
    with (
        pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor") as found,
        OneDevice(),
    ):
        yield
    error = found.value
    while error is not None:
        assert isinstance(error, NotImplementedError)  # nothing else was wrong before
        error = error.__context__
