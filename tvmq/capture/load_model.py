"""Recognise a model file and turn it into an ExportedProgram; each wrong file has its own message.

Unpickling runs code, so nothing here unpickles freely without ``trust_pickle``. That includes
ExportedProgram archives, which torch itself would unpickle, execute and evaluate in part: it gets
an ``inert_copy`` of them.
"""

from __future__ import annotations

import io
import logging
import pickle
import re
import threading
import typing
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from targets.causes import first_line
from targets.errors import InputError, UnsupportedError
from targets.reading import check_is_file, reading
from tvmq.capture.export_module import (
    check_shapes_fit,
    export_module,
    load_state_dict,
    make_module,
)
from tvmq.capture.inert_archive import inert_copy
from tvmq.capture.inert_pickle import load_tensors
from tvmq.capture.operators_without_rule import QUANTIZED_ALREADY, QUANTIZING
from tvmq.capture.torch_archive import is_archive, open_archive, truncated, verify_stored
from tvmq.users_code import users_code, working_folder_importable

_EXPORT_IT = 'save it with torch.export.save(torch.export.export(model.eval(), (x,)), "model.pt2")'
_TRUST = "--trust-pickle (runs code of the file: only for files you trust)"

_OF_A_SCRIPT = re.compile(r"attribute '(\w+)' on <module '(?:\w+\.)?__main__'")
"""How pickle says that a class is looked for in the script that is running."""

_SCHEMA = "torch._export.serde.schema"
_patching = threading.Lock()


@dataclass(frozen=True)
class LoadedProgram:
    """An exported program, what its file was, and what was changed on the way."""

    program: ExportedProgram
    kind: str
    notes: tuple[str, ...] = ()


def load_model(
    path: str | Path,
    *,
    model_factory: str | None = None,
    trust_pickle: bool = False,
    input_shapes: str | None = None,
) -> LoadedProgram:
    """Read an ExportedProgram archive, a pickled module or a state dict.

    Args:
        path: the file.
        model_factory: ``package.module:factory`` that returns the module of a state dict.
        trust_pickle: unpickle freely; the file can run code.
        input_shapes: ``x:1x3x32x32``, needed for modules and state dicts.

    Raises:
        InputError: says what the file is, or what is missing to use it.
        UnsupportedError: if torch.export can't capture the module.
    """
    path = Path(path)
    with reading(path, "a model", f"To get one, {_EXPORT_IT}."):
        source = _program_in(path, model_factory, trust_pickle)
    if source is None:
        return _load_pickle(path, model_factory, trust_pickle, input_shapes)
    program = _load_program(path, source)
    if input_shapes is not None:
        check_shapes_fit(program, input_shapes)
    return LoadedProgram(program, "ExportedProgram archive")


def _program_in(path: Path, model_factory: str | None, trust_pickle: bool) -> io.BytesIO | None:
    """An ExportedProgram archive for torch to read; None for a pickle, which needs unpickling."""
    check_is_file(path, "Give a .pt2 or .pt model.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is an empty file; was it written to the end?")
    if not is_archive(path):
        _refuse_other_formats(path)
        return None
    with open_archive(path) as archive:
        kind = _kind_of_archive(path, archive)
        verify_stored(path, archive)
        if kind == "pickle":
            return None
        if model_factory is not None:
            raise InputError(
                f"{path} is an ExportedProgram archive, which has its own graph: leave out --model"
            )
        return io.BytesIO(path.read_bytes()) if trust_pickle else inert_copy(path, archive)


def _refuse_other_formats(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(16)
    if head[:4] == b"PK\x03\x04":
        raise truncated(path)
    formats = [
        (path.suffix == ".onnx", "an ONNX model"),
        (head[4:8] == b"TFL3", "a TensorFlow Lite model"),
        (head[:4] == b"\x89HDF", "an HDF5 (Keras) file"),
        (head[8:10] == b'{"', "a safetensors file"),
    ]
    for found, name in formats:
        if found:
            raise InputError(
                f"{path} is {name}, tvmq reads PyTorch models; load it in PyTorch and {_EXPORT_IT}"
            )
    # Every pickle since protocol 2 starts with this byte; older torch.save wrote bare pickles.
    if head[:1] != b"\x80":
        raise InputError(
            f"{path} is not a PyTorch file (neither an archive nor a pickle); {_EXPORT_IT}"
        )


def _kind_of_archive(path: Path, archive: zipfile.ZipFile) -> str:
    names = ["/" + name for name in archive.namelist()]
    if any("/data/aotinductor/" in name for name in names):
        raise InputError(
            f"{path} is a package compiled by AOTInductor, without a graph; {_EXPORT_IT}"
        )
    if any(name.endswith("/serialized_exported_program.json") for name in names):
        return "program"
    if any(name.endswith(".json") and "/models/" in name for name in names):
        return "program"
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise InputError(
            f"{path} is a TorchScript archive (torch.jit.save), which has no ATen graph; "
            f"go back to the module and {_EXPORT_IT}"
        )
    if any(name.endswith("/data.pkl") for name in names):
        return "pickle"
    if names and all(name.endswith(".npy") for name in names):
        raise InputError(f"{path} is a NumPy .npz of arrays, not a model; was it meant as data?")
    raise InputError(f"{path} is a zip archive but not one of PyTorch; {_EXPORT_IT}")


def _load_program(path: Path, source: io.BytesIO) -> ExportedProgram:
    try:
        # torch warns about its own tree specs and forms, and logs what it raises.
        with warnings.catch_warnings(), _quiet("torch.export"), _known_type_hints():
            warnings.simplefilter("ignore")
            return torch.export.load(source)
    except Exception as error:  # torch raises whatever its parsers meet
        content = source.getvalue()
        if any(name.encode() in content for name in QUANTIZING):
            raise UnsupportedError(f"{path}: {QUANTIZED_ALREADY}") from error
        raise InputError(
            f"{path} looks like an ExportedProgram archive, but torch {torch.__version__} can't "
            f"read it ({first_line(error)}). Export it again with this version."
        ) from error


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _known_type_hints() -> Iterator[None]:
    """Let torch work out the fields of its records once, not for every node of a program.

    It is a third of the time that it takes to read a program of some hundred layers. Only the few
    classes of its schema are asked for, always in the same namespace.
    """
    original = typing.get_type_hints
    known: dict[Any, dict[str, Any]] = {}

    def hints(cls: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        if getattr(cls, "__module__", "") != _SCHEMA:
            return original(cls, *arguments, **options)
        if cls not in known:
            known[cls] = original(cls, *arguments, **options)
        return known[cls]

    with _patching:
        typing.get_type_hints = hints  # type: ignore[assignment]  # torch asks in this form only
        try:
            yield
        finally:
            typing.get_type_hints = original


def _load_pickle(
    path: Path, model_factory: str | None, trust_pickle: bool, input_shapes: str | None
) -> LoadedProgram:
    content = _unpickle_freely(path) if trust_pickle else _unpickle_safely(path)
    if isinstance(content, ExportedProgram):
        return LoadedProgram(content, "pickled ExportedProgram")
    if isinstance(content, torch.nn.Module):
        if model_factory is not None:
            raise InputError(f"{path} is a pickled module, not a state dict: leave out --model")
        return LoadedProgram(export_module(path, content, input_shapes), "pickled module")
    state, notes = _find_state_dict(path, content)
    if model_factory is None:
        first = ", ".join(list(state)[:3])
        raise InputError(
            f"{path} is a state dict of {len(state)} tensors ({first}, …) without a network; "
            "say which with --model package.module:factory"
        )
    module = make_module(model_factory)
    notes += load_state_dict(path, module, state, model_factory)
    return LoadedProgram(export_module(path, module, input_shapes), "state dict", notes)


def _unpickle_safely(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return load_tensors(file)
    except pickle.UnpicklingError as error:
        needs = _globals_of(path)
        if not needs:
            raise InputError(
                f"{path} can't be read ({first_line(error)}); it is corrupt or no torch file"
            ) from error
        raise InputError(
            f"{path} is a pickle of Python objects ({', '.join(needs[:3])}), such as a whole "
            f"module; give {_TRUST}, or {_EXPORT_IT}"
        ) from error
    except Exception as error:  # torch raises whatever its parsers meet
        raise InputError(f"{path} is a corrupt or no torch file ({first_line(error)})") from error


def _globals_of(path: Path) -> list[str]:
    try:
        return list(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # legacy pickles have no such listing; the caller has a message of its own
        return ["objects torch does not name"] if _is_torch_pickle(path) else []


def _is_torch_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        # torch.save before 1.6 starts with this number, pickled.
        return b"l\xfc\x9cF\xf9 j\xa8P\x19" in file.read(64)


def _unpickle_freely(path: Path) -> Any:
    with working_folder_importable(), users_code(f"{path}: unpickling it"):
        try:
            return torch.load(path, map_location="cpu", weights_only=False)
        except (AttributeError, ModuleNotFoundError) as error:
            if found := _OF_A_SCRIPT.search(str(error)):
                raise InputError(
                    f"{path} was pickled by the script that defines {found[1]}, which only that "
                    f"script can unpickle. Let it save model.state_dict() and give --model "
                    f"script:{found[1]}, or {_EXPORT_IT}"
                ) from error
            raise InputError(
                f"{path} needs Python code that is not there ({first_line(error)}); "
                "run in the folder that holds the source of the network"
            ) from error


def _find_state_dict(path: Path, content: Any) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    if not isinstance(content, Mapping):
        raise InputError(
            f"{path} holds a {type(content).__name__}, not a model or a state dict; {_EXPORT_IT}"
        )
    for key in ("", "state_dict", "model_state_dict", "model"):
        state = content.get(key) if key else content
        if isinstance(state, Mapping) and _is_state_dict(state):
            note = (f"took the state dict under the key {key!r}",) if key else ()
            return dict(state), note
    entries = ", ".join(
        f"{key}: {type(value).__name__}" for key, value in list(content.items())[:4]
    )
    raise InputError(
        f"{path} is a dict but no state dict ({entries or 'empty'}); "
        "save the weights with torch.save(model.state_dict(), …)"
    )


def _is_state_dict(value: Mapping[Any, Any]) -> bool:
    return (
        len(value) > 0
        and all(isinstance(name, str) for name in value)
        and all(isinstance(tensor, torch.Tensor) for tensor in value.values())
    )
