"""Which operators of torch are functions of one tensor, element by element, and their tables.

A quantized tensor has at most 256 codes, so whatever such a function computes is a table of 256
numbers, which torch itself works out. No operator needs to be known by name for that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from relay_passes.relax_nodes import Array
from targets.code_range import code_range
from targets.errors import UnsupportedError

aten = torch.ops.aten

_UNTAGGED = frozenset({aten.hardswish.default, aten.log_sigmoid.default})
"""What torch doesn't mark as such."""


def is_pointwise(target: Any) -> bool:
    """Whether an ATen operator maps each element of its first argument, its only tensor."""
    schema = getattr(target, "_schema", None)
    if schema is None or schema.is_mutable or len(schema.returns) != 1:
        return False
    if torch.Tag.nondeterministic_seeded in target.tags:
        return False
    tensors = ["Tensor" in str(argument.type) for argument in schema.arguments]
    marked = torch.Tag.pointwise in target.tags or target in _UNTAGGED
    return marked and tensors.count(True) == 1 and tensors[0]


def table_of(node: fx.Node, step: float, zero_point: int, low: int, high: int, dtype: str) -> Array:
    """What a function gives for each code of the tensor that it reads.

    Args:
        node: a call of a pointwise operator.
        step: of the codes.
        zero_point: likewise.
        low: the lowest code that occurs.
        high: the highest.
        dtype: "uint8" or "int8".

    Returns:
        float64[256], in ascending order of the codes.

    Raises:
        UnsupportedError: the function is not defined for a code that occurs.
    """
    first, last = code_range(8, dtype == "int8")
    codes = np.arange(first, last + 1)
    reals = torch.from_numpy((codes - zero_point) * step)
    values: Array = node.target(reals, *node.args[1:], **node.kwargs).double().numpy()
    undefined = np.isnan(values) & (low <= codes) & (codes <= high)
    if undefined.any():
        x = float(reals[int(undefined.argmax())])
        raise UnsupportedError(
            f"{node.name}: {node.target} of {x:.6g} is no number, and the tensor that it reads is "
            "quantized to steps that include it. Clamp the tensor before it.",
            node=node.name,
        )
    return np.nan_to_num(values)
