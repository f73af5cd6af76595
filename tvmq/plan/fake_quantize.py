"""The torch operator that stands for one quantization: ``tvmq::fake_quantize``.

    y = step * (clamp(floor(x / step + addend) + zero_point, low, high) - zero_point)

It marks, in an annotated graph, where a tensor is held in ``low .. high`` codes; torch runs it as
the formula says, ``relay_passes/frontend/import_torch.py`` turns it into ``R.quantize`` followed by
``R.dequantize``. The addend is 1/2 to round half **up**, as the integer arithmetic does (``(t +
half) >> shift``), and not half to even as ``torch.round``; it is 0 for the floor, and with borders
that of the number's level. In float64 it is 2**-34 more, so that the codes are those of the
integers (``targets/rounding.py`` shows why). Not a training op: it has no gradient.

float32 adds no more than 1/2 or 0: there a sum is exact only with power-of-two steps and sums below
2**24, and then so are ties.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from targets.code_range import type_range
from targets.rounding import ADDENDS, SLACK, Rounding, RoundingMode, check_executed
from tvmq.regions import channel_axis

_PIECE = 1 << 14

CODE_DTYPES = ("int8", "uint8")

_library = torch.library.Library("tvmq", "DEF")
_CODES = "Tensor step, int zero_point, int low, int high, int axis, str dtype, str rounding"
_BORDERS = "Tensor? borders=None, int first=0"
_library.define(f"fake_quantize(Tensor x, {_CODES}, {_BORDERS}) -> Tensor")
_library.define(f"fake_quantize_(Tensor(a!) x, {_CODES}, {_BORDERS}) -> Tensor(a!)")


@torch.library.impl(_library, "fake_quantize", "CompositeExplicitAutograd")  # type: ignore[untyped-decorator]
def fake_quantize(
    x: torch.Tensor,
    step: torch.Tensor,
    zero_point: int,
    low: int,
    high: int,
    axis: int,
    dtype: str,
    rounding: str,
    borders: torch.Tensor | None = None,
    first: int = 0,
    out: torch.Tensor | None = None,
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
        rounding: name of a ``RoundingMode``.
        borders: with BORDER, uint8[1 or K, levels]; K channels along axis 1 of images, otherwise
            along the last one.
        first: the code that the borders begin at.
        out: is written and returned, if given; it may be ``x``.

    Returns:
        A tensor of the shape and dtype of ``x``.

    Raises:
        ValueError: the dtype can't hold the codes, or ``step`` does not fit the axis.
        UnsupportedError: real numbers can't be rounded so.
    """
    _check(x, step, low, high, axis, dtype)
    if out is None:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
    shape = [1] * x.dim()
    if axis >= 0:
        shape[axis] = -1
    scale = step.to(x.dtype).reshape(shape)
    if borders is not None:
        return _by_borders(x, scale, (zero_point, low, high), borders, first, out)
    by = Rounding(RoundingMode[rounding])
    check_executed(by, "fake_quantize", "real numbers")
    raised = ADDENDS[by]
    if x.dtype != torch.float64:
        raised -= SLACK
    pieces = [(x, out)]
    if axis < 0 and out.is_contiguous():
        # pieces that stay in the cache from the first of six operations to the last
        scale = scale.reshape(1)
        flat = x.reshape(-1).split(_PIECE), out.reshape(-1).split(_PIECE)
        pieces = list(zip(*flat, strict=True))
    with _one_thread():
        for piece, codes in pieces:
            torch.div(piece, scale, out=codes).add_(raised).floor_().add_(zero_point)
            codes.clamp_(low, high).sub_(zero_point).mul_(scale)
    return out


def _by_borders(
    x: torch.Tensor,
    scale: torch.Tensor,
    codes: tuple[int, int, int],
    borders: torch.Tensor,
    first: int,
    out: torch.Tensor,
) -> torch.Tensor:
    """The same with the addend of each number's level."""
    zero_point, low, high = codes
    slack = SLACK if x.dtype == torch.float64 else 0.0
    levels = borders.shape[1]
    addends = (1.0 - borders.to(torch.float64) / 256 + slack).to(x.dtype).reshape(-1)
    u = x / scale
    level = torch.floor(u + slack).add_(zero_point - first).clamp_(0, levels - 1).to(torch.int64)
    if len(borders) > 1:
        row = torch.arange(0, len(borders) * levels, levels, device=x.device)
        level += row.reshape([-1 if i == channel_axis(x.dim()) else 1 for i in range(x.dim())])
    whole = u.add_(addends[level]).floor_().add_(zero_point).clamp_(low, high)
    return out.copy_(whole.sub_(zero_point).mul_(scale))


@torch.library.impl(_library, "fake_quantize_", "CompositeExplicitAutograd")  # type: ignore[untyped-decorator]
def fake_quantize_in_place(x: torch.Tensor, *codes: Any) -> torch.Tensor:
    """``fake_quantize`` that overwrites its tensor, as graphs are run (``execute_graph.py``)."""
    return fake_quantize(x, *codes, out=x)


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
def _shape_of_result(x: torch.Tensor, *codes: Any) -> torch.Tensor:
    step, _, low, high, axis, dtype = codes[:6]
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
