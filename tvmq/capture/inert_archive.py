"""Copy an ExportedProgram archive so that torch.export.load runs no code of the file.

torch reads a lot: it executes guards and source made of names, evaluates shapes, looks operators up
in its modules and falls back to free unpickling. So it never sees the file. What a plain exported
network needs is read here, by an exact list of records and the grammar of ``program_grammar``, and
written into a new archive, which torch reads. Whatever else is in the file is refused, or left out
where it can't matter (example inputs, extra files).
"""

from __future__ import annotations

import io
import json
import math
import re
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BaseModel, ValidationError

from targets.errors import InputError
from targets.schema_errors import in_words
from tvmq.capture.inert_pickle import load_tensors
from tvmq.capture.program_grammar import PayloadConfig, PayloadMeta, Program

_Grammar = TypeVar("_Grammar", bound=BaseModel)

_LARGEST_JSON = 2**25
_VIEWS = 2**26
"""Bytes that all tensors of a file may be more than the file: some are views of others."""

_NEW_FORM = re.compile(
    r"(?P<root>[^/\\]+/)(?:"
    r"(?P<program>models/model\.json)"
    r"|(?P<config>data/(?:weights/model_weights|constants/model_constants)_config\.json)"
    r"|(?P<raw>data/(?:weights/weight|constants/tensor)_\d{1,6})"
    r"|(?P<pickle>data/(?:weights|constants)/model\.pt)"
    r"|(?P<fact>archive_format|archive_version|byteorder)"
    r"|(?P<unused>data/sample_inputs/model\.pt|extra/.+|version|\.format_version"
    r"|\.storage_alignment|\.data/(?:version|serialization_id)))"
)
_OLD_FORM = re.compile(
    r"(?P<root>)(?:"
    r"(?P<program>serialized_exported_program\.json)"
    r"|(?P<pickle>serialized_(?:state_dict|constants)\.pt)"
    r"|(?P<fact>version)"
    r"|(?P<unused>serialized_example_inputs\.pt|extra_files/.+))"
)
_FACTS = {
    "archive_format": re.compile(rb"pt2"),
    "archive_version": re.compile(rb"\d{1,4}"),
    "byteorder": re.compile(sys.byteorder.encode()),
    "version": re.compile(rb"\d{1,4}\.\d{1,4}"),
}
_OLD_PROGRAM = "serialized_exported_program.json"
_ROOT = "model/"
_ITEM_SIZES = {
    1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 2, 7: 4, 8: 8, 9: 4, 10: 8, 11: 16, 12: 1, 13: 2, 28: 2,
    29: 1, 30: 1, 31: 1, 32: 1, 33: 1, 34: 4, 35: 8,
}  # fmt: skip
"""Bytes of a number by torch's code for its type."""


def inert_copy(path: Path, archive: zipfile.ZipFile) -> io.BytesIO:
    """An archive for torch.export.load, with all of the network and nothing that runs.

    Args:
        path: the file, for messages.
        archive: the file, opened by ``open_torch_archive``.

    Raises:
        InputError: names the record and the place in it that no plain exported network has.
        UnsupportedError: the network calls something else than operators on tensors.
    """
    old = _OLD_PROGRAM in archive.namelist()
    form, root = (_OLD_FORM, "") if old else (_NEW_FORM, _ROOT)
    copy, roots = io.BytesIO(), set()
    raw: dict[str, int] = {}
    configs: dict[str, PayloadConfig] = {}
    with zipfile.ZipFile(copy, "w") as new:
        for record in archive.infolist():
            match = form.fullmatch(record.filename)
            if match is None:
                raise _refusal(path, record.filename, "no record of a plain exported network")
            roots.add(match["root"])
            kind, name = match.lastgroup, record.filename.removeprefix(match["root"])
            if kind == "unused":
                continue
            content = archive.read(record)
            if kind == "raw":
                raw[name] = len(content)
            elif kind == "program":
                content = _copy_of_program(path, record.filename, content)
            elif kind == "config":
                configs[name] = _parse(path, record.filename, content, PayloadConfig)
                content = _dump(configs[name])
            elif kind == "pickle":
                content = _copy_of_tensors(path, record.filename, content)
            elif not _FACTS[name].fullmatch(content):
                raise _refusal(path, record.filename, f"it says {content[:20]!r}")
            new.writestr(root + name, content)
        if len(roots) > 1:
            raise _refusal(path, archive.namelist()[-1], f"it is in one of {len(roots)} folders")
        if old:
            new.writestr("serialized_example_inputs.pt", b"")
        else:
            new.writestr(f"{root}.data/version", b"6\n")
            new.writestr(f"{root}data/sample_inputs/model.pt", b"")
    _verify_sizes(path, configs, raw)
    copy.seek(0)
    return copy


def _copy_of_program(path: Path, name: str, content: bytes) -> bytes:
    program = _parse(path, name, content, Program)
    program.verify_operators()
    return _dump(program)


def _copy_of_tensors(path: Path, name: str, content: bytes) -> bytes:
    """A pickle of tensors by name, as torch 2.6 to 2.8 store weights and constants."""
    if not content:
        return b""
    try:
        tensors = load_tensors(io.BytesIO(content))
    except Exception as error:  # torch raises whatever its parsers meet
        raise _refusal(path, name, "Python objects") from error
    if not isinstance(tensors, Mapping) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in tensors.items()
    ):
        raise _refusal(path, name, "something else than tensors by name")
    buffer = io.BytesIO()
    torch.save(dict(tensors), buffer)
    return buffer.getvalue()


def _parse(path: Path, name: str, content: bytes, grammar: type[_Grammar]) -> _Grammar:
    if len(content) > _LARGEST_JSON:
        raise _refusal(path, name, f"{len(content) >> 20} MB of text")
    try:
        return grammar.model_validate_json(content)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
        raise _refusal(path, name, in_words(problem)) from error


def _dump(content: BaseModel) -> bytes:
    return json.dumps(content.model_dump(exclude_unset=True)).encode()


def _verify_sizes(path: Path, configs: Mapping[str, PayloadConfig], raw: Mapping[str, int]) -> None:
    """Every tensor lies within its record, and all together are about as large as the file."""
    total = 0
    for config_name, config in configs.items():
        folder = config_name.rpartition("/")[0]
        for tensor_name, payload in config.config.items():
            item, numel, reach = _extent(payload)
            size = raw.get(f"{folder}/{payload.path_name}", -1)
            total += item * numel
            if item == 0 or size < 0 or (numel and item * reach > size):
                raise _refusal(
                    path, config_name, f"{tensor_name} lies beyond the record {payload.path_name}"
                )
    if total > path.stat().st_size + _VIEWS:
        raise _refusal(path, next(iter(configs)), f"tensors of {total >> 20} MB")


def _extent(payload: PayloadMeta) -> tuple[int, int, int]:
    """Bytes of a number, how many there are, and the index behind the last one."""
    meta = payload.tensor_meta
    sizes = [size.as_int for size in meta.sizes]
    strides = [stride.as_int for stride in meta.strides]
    if len(sizes) != len(strides):
        return 0, 0, 0
    last = sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    item = _ITEM_SIZES.get(meta.dtype, 0)
    return item, math.prod(sizes), meta.storage_offset.as_int + last + 1


def _refusal(path: Path, record: str, what: str) -> InputError:
    return InputError(
        f"{path}: record {record[:80]} holds what no plain exported network has: {what}. "
        "torch might run it as code; export the network again without it, or give --trust-pickle "
        "if you trust the file"
    )
