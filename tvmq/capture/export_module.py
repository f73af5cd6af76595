"""Make a module from a factory, fill it from a state dict and export it with ``--input-shapes``."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.export import ExportedProgram

from targets.causes import first_line, in_words
from targets.errors import InputError, UnsupportedError
from tvmq.users_code import import_object, users_code

LONGEST_SIZE = 18
"""Digits of a size; torch counts in 64 bits."""

_ONE_SHAPE = r"(?:([A-Za-z_]\w*):)?(?:\[([\d,\s]+)\]|(\d+(?:x\d+)*))"


def parse_input_shapes(text: str) -> dict[str, tuple[int, ...]]:
    """Read ``x:1x3x32x32`` or ``x:[1,3,32,32]``; several are separated by commas or semicolons.

    Returns:
        shape by input name; the name is empty where none was given.

    Raises:
        InputError: if the text has another form, or a size is zero.
    """
    if not re.fullmatch(rf"\s*{_ONE_SHAPE}(?:\s*[,;]\s*{_ONE_SHAPE})*\s*", text):
        raise InputError(f"--input-shapes {text!r} is not of the form x:1x3x32x32 or x:[1,3,32,32]")
    shapes: dict[str, tuple[int, ...]] = {}
    for match in re.finditer(_ONE_SHAPE, text):
        name, listed, crossed = match.groups()
        sizes = re.findall(r"\d+", listed or crossed)
        if max(map(len, sizes), default=0) > LONGEST_SIZE:
            raise InputError(f"--input-shapes {text!r:.80} is beyond any memory")
        shape = tuple(map(int, sizes))
        if 0 in shape:
            raise InputError(f"--input-shapes {text!r} has a size of zero")
        if (name or "") in shapes:
            raise InputError(f"--input-shapes {text!r} gives the same input twice; name each one")
        shapes[name or ""] = shape
    return shapes


def check_shapes_fit(program: ExportedProgram, input_shapes: str) -> None:
    """Check ``--input-shapes`` against a program that has shapes of its own; the batch is free.

    Raises:
        InputError: if a name or a size differs.
    """
    user = set(program.graph_signature.user_inputs)
    own = {n.name: n.meta["val"] for n in program.graph.nodes if n.name in user}
    for name, shape in parse_input_shapes(input_shapes).items():
        value = own.get(name or next(iter(own), ""))
        if value is None:
            raise InputError(f"--input-shapes names {name!r}; the inputs are {', '.join(own)}")
        if tuple(map(str, value.shape[1:])) != tuple(map(str, shape[1:])):
            raise InputError(
                f"--input-shapes gives {name or 'the input'} the shape {list(shape)}, but the file "
                f"was exported for {[str(size) for size in value.shape]}; export it again"
            )


def make_module(spec: str) -> torch.nn.Module:
    """Call the factory of ``--model package.module:factory``.

    Raises:
        InputError: if it can't be imported or called, or returns no module.
    """
    factory = import_object(spec, "--model")
    if isinstance(factory, torch.nn.Module):
        return factory
    with users_code(f"--model {spec}, called without arguments,"):
        module = factory()
    if not isinstance(module, torch.nn.Module):
        raise InputError(
            f"--model {spec} returned a {type(module).__name__}; it must return a torch.nn.Module"
        )
    return module


def load_state_dict(
    path: Path, module: torch.nn.Module, state: Mapping[str, torch.Tensor], spec: str
) -> tuple[str, ...]:
    """Fill the module strictly; returns notes on what was renamed.

    Raises:
        InputError: names the missing, the unexpected and the misshapen keys.
    """
    notes: tuple[str, ...] = ()
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
        notes = ("dropped the prefix 'module.' of DataParallel from all names",)
    own = module.state_dict()
    shapes = [
        f"{name} is {list(state[name].shape)} in the file, {list(own[name].shape)} in the network"
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    problems = [
        f"{title}: {', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
        for title, names in (
            ("missing in the file", [name for name in own if name not in state]),
            ("unknown to the network", [name for name in state if name not in own]),
            ("of another shape", shapes),
        )
        if names
    ]
    if problems:
        raise InputError(f"{path} does not fit --model {spec}: {'; '.join(problems)}")
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as error:  # sparse or quantized tensors, or those without numbers
        words = " ".join(str(error).split())
        raise InputError(f"{path} does not fit --model {spec}: {words[:300]}") from error
    return notes


def export_module(path: Path, module: torch.nn.Module, input_shapes: str | None) -> ExportedProgram:
    """Export a module in evaluation mode with random inputs of the given shapes.

    Raises:
        InputError: if the shapes are missing or don't name the inputs.
        UnsupportedError: if torch.export refuses.
    """
    if input_shapes is None:
        raise InputError(
            f"{path} holds a module, which does not say the shape of its inputs; "
            "give --input-shapes, for instance x:1x3x32x32"
        )
    arguments = _random_inputs(input_shapes)
    parameters = list(inspect.signature(module.forward).parameters)
    unknown = [name for name in arguments if name and name not in parameters]
    if unknown:
        raise InputError(
            f"--input-shapes names {', '.join(unknown)}; "
            f"forward() of {type(module).__name__} takes {', '.join(parameters)}"
        )
    positional = tuple(value for name, value in arguments.items() if not name)
    named = {name: value for name, value in arguments.items() if name}
    in_order = {name: named[name] for name in parameters if name in named}
    if list(in_order) == parameters[: len(in_order)] and not positional:
        positional, in_order = tuple(in_order.values()), {}
    network = type(module).__name__
    with users_code(f"{path}: {network}, called with inputs of {input_shapes},"), torch.no_grad():
        module = module.float().eval()
        module(*positional, **in_order)
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    was_disabled, logger.disabled = logger.disabled, True  # the same text is in the error
    try:
        with torch.no_grad():
            return torch.export.export(module, positional, in_order)
    except (Exception, SystemExit) as error:  # torch.export raises whatever the code meets
        raise UnsupportedError(
            f"{path}: torch.export can't capture {network}, which runs as it is "
            f"({first_line(error)}). Write its forward without what depends on values of tensors."
        ) from error
    finally:
        logger.disabled = was_disabled


def _random_inputs(input_shapes: str) -> dict[str, torch.Tensor]:
    """By name; "" for one without."""
    generator = torch.Generator().manual_seed(0)
    shapes = parse_input_shapes(input_shapes)
    try:
        return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    except (RuntimeError, MemoryError, OverflowError, TypeError) as error:
        # torch takes sizes below 2**63, and says so as a TypeError
        words = in_words(error, "Give smaller sizes.", known="Give smaller sizes.")
        raise InputError(f"--input-shapes {input_shapes}: {words}") from error
