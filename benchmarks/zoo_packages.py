"""The packages of the zoo, imported beside a torch that they may not have been built for."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from typing import Any
from unittest import mock

import torch


def imported_torchvision() -> Any:
    """torchvision; a build for another torch registers operators that this one doesn't know."""
    register = torch.library.register_fake

    def passing(name: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(name, str) and name.startswith("torchvision::"):
            return lambda function: function
        return register(name, *args, **kwargs)

    torch.library.register_fake = passing
    try:
        import torchvision
    finally:
        torch.library.register_fake = register
    return torchvision


def imported_timm() -> Any:
    """timm, which imports torchvision."""
    imported_torchvision()
    import timm

    return timm


_NOT_FOR_NETWORKS = ("cv2", "requests", "psutil", "polars", "pynvml", "ultralytics_platform")


def imported_ultralytics() -> Any:
    """The networks of ultralytics; what it has for pictures, downloads and training may miss."""
    imported_torchvision()
    if importlib.util.find_spec("ultralytics") is None:
        raise ModuleNotFoundError("No module named 'ultralytics'", name="ultralytics")
    for name in _NOT_FOR_NETWORKS:
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            stub = mock.MagicMock(name=name)
            stub.__spec__, stub.__path__, stub.__version__ = ModuleSpec(name, None), [], "0"
            sys.modules[name] = stub
    from ultralytics.nn import tasks

    return tasks


def imported_transformers() -> Any:
    """transformers, which looks for torchvision."""
    imported_torchvision()
    import transformers

    return transformers
