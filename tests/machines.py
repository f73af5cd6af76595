"""Variants of a machine: the description with some fields replaced, checked like any other."""

from __future__ import annotations

from typing import Any

from targets.npu.machine.spec import NpuSpec


def varied(spec: NpuSpec, part: str = "", **fields: Any) -> NpuSpec:
    """``varied(spec, "sram.acc", line=32)``; without a part, fields of the machine itself."""
    content = spec.model_dump()
    target = content
    for name in part.split(".") if part else ():
        target = target[name]
    unknown = set(fields) - set(target)
    assert not unknown, unknown
    target.update(fields)
    return NpuSpec.model_validate(content)
