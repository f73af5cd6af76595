"""A mode that refuses what a GPU refuses: operators that read tensors of two devices."""

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
