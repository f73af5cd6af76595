"""The torch operator that stands for one quantization: ``tvmq::fake_quantize``.

    y = step * (clamp(floor(x / step + 1/2) + zero_point, low, high) - zero_point)

It marks, in an exported graph, where a tensor is held in ``low .. high`` codes; torch runs it as
the formula says, ``relay_passes/frontend/import_torch.py`` turns it into ``R.quantize`` followed by
``R.dequantize``. It rounds half **up**, as the integer arithmetic does (``(t + half) >> shift``),
and not half to even as ``torch.round``. Not a training op: it has no gradient.

**Why float64 adds 2**-34 to the half.** With free steps the codes in front of the rounding lie on
the grid ``t / 2**s`` (t an integer, s the shift), where exact ties ``k + 1/2`` occur and must go
up. Steps such as 0.0123 are not exact in binary, so the floating-point sum misses the grid by some
error e, and a tie that comes out as ``k + 1/2 - e`` would go down. With the constant ``c = 1/2 +
2**-34`` and ``|e| <= 2**-35``:

* on a tie or above one, ``t / 2**s >= k - 1/2``, the value floored is at least ``k - 2**-35 +
  2**-34 > k``;
* below one, ``t / 2**s <= k - 1/2 - 2**-s``; for ``s <= 33`` the value floored is at most ``k -
  2**-33 + 2**-34 + 2**-35 < k``.

So floor gives the integer answer exactly. A sum of n products, made of codes and steps that were
rounded once each, has ``|e| <= (n + 5) * 2**-53 * A`` where A is the sum of the absolute products
in units of the output's step: the condition is ``(n + 5) * A <= 2**18`` (n = 576, A = 400:
satisfied; blocked summation, which BLAS uses, divides n by the number of partial sums). Codes that
are clamped are above suspicion: the clamp absorbs any error. With power-of-two steps nothing is
rounded (e = 0), and a grid finer than 2**-33 has M = 1 and ``|t| < 2**31``, so every value is
below 1/4 and goes to 0 with or without the constant.

float32 adds nothing: there a sum is exact only with power-of-two steps and sums below 2**24, and
then so are ties.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from targets.code_range import type_range

HALF = 0.5 + 2.0**-34
"""What float64 adds before the floor; the network's input is quantized with the same number."""

_PIECE = 1 << 14

CODE_DTYPES = ("int8", "uint8")

_library = torch.library.Library("tvmq", "DEF")
_CODES = "Tensor step, int zero_point, int low, int high, int axis, str dtype"
_library.define(f"fake_quantize(Tensor x, {_CODES}) -> Tensor")
_library.define(f"fake_quantize_(Tensor(a!) x, {_CODES}) -> Tensor(a!)")


@torch.library.impl(_library, "fake_quantize", "CompositeExplicitAutograd")  # type: ignore[untyped-decorator]
def fake_quantize(
    x: torch.Tensor,
    step: torch.Tensor,
    zero_point: int,
    low: int,
    high: int,
    axis: int,
    dtype: str,
) -> torch.Tensor:
    """Round a tensor to the values that its codes can hold.

    Args:
        x: float32 or float64, any shape.
        step: float64[1] (``axis`` -1) or float64[K], positive; cast to the dtype of ``x``.
        zero_point: the code of 0.0; in [low, high].
        low: lowest code kept (a ReLU raises it to ``zero_point``).
        high: highest code kept.
        axis: -1 per tensor, or the axis that ``step`` runs along (0: a weight's output channels).
        dtype: "int8" or "uint8", how a code is stored.

    Returns:
        A tensor of the shape and dtype of ``x``.

    Raises:
        ValueError: the dtype can't hold the codes, or ``step`` does not fit the axis.
    """
    result = torch.empty_like(x, memory_format=torch.contiguous_format)
    _quantize_into(result, x, step, zero_point, low, high, axis, dtype)
    return result


@torch.library.impl(_library, "fake_quantize_", "CompositeExplicitAutograd")  # type: ignore[untyped-decorator]
def fake_quantize_in_place(x: torch.Tensor, *codes: Any) -> torch.Tensor:
    """``fake_quantize`` that overwrites its tensor, as graphs are run (``execute_graph.py``)."""
    _quantize_into(x, x, *codes)
    return x


def _quantize_into(
    result: torch.Tensor,
    x: torch.Tensor,
    step: torch.Tensor,
    zero_point: int,
    low: int,
    high: int,
    axis: int,
    dtype: str,
) -> None:
    _check(x, step, low, high, axis, dtype)
    shape = [1] * x.dim()
    if axis >= 0:
        shape[axis] = -1
    scale = step.to(x.dtype).reshape(shape)
    half = HALF if x.dtype == torch.float64 else 0.5
    pieces = [(x, result)]
    if (
        axis < 0 and result.is_contiguous()
    ):  # pieces that stay in the cache from the first of six operations to the last
        scale = scale.reshape(1)
        flat = x.reshape(-1).split(_PIECE), result.reshape(-1).split(_PIECE)
        pieces = list(zip(*flat, strict=True))
    with _one_thread():
        for piece, codes in pieces:
            torch.div(piece, scale, out=codes).add_(half).floor_().add_(zero_point)
            codes.clamp_(low, high).sub_(zero_point).mul_(scale)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch from sharing a piece between threads, whose meeting costs more than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@torch.library.register_fake("tvmq::fake_quantize")  # type: ignore[untyped-decorator]
def _shape_of_result(
    x: torch.Tensor,
    step: torch.Tensor,
    zero_point: int,
    low: int,
    high: int,
    axis: int,
    dtype: str,
) -> torch.Tensor:
    _check(x, step, low, high, axis, dtype)
    return torch.empty_like(x)


def _check(x: torch.Tensor, step: torch.Tensor, low: int, high: int, axis: int, dtype: str) -> None:
    if dtype not in CODE_DTYPES:
        raise ValueError(f"fake_quantize: expected dtype 'int8' or 'uint8', got {dtype!r}.")
    first, last = type_range(dtype)
    if not first <= low <= high <= last:
        raise ValueError(
            f"fake_quantize: codes [{low}, {high}] do not fit {dtype} [{first}, {last}]."
        )
    expected = 1 if axis < 0 else x.shape[axis]
    if step.numel() not in (1, expected):
        raise ValueError(
            f"fake_quantize: expected {expected} steps along axis {axis}, got {step.numel()}."
        )
