"""Operators on tokens that ATen has no single one for: products and softmax by heads, constants.

Tokens are (N, T, C), T vectors per image; C channels are h heads of C / h each, head by head.
Written so, and not as matrices (N, h, T, d), attention needs no transposition:

    matmul_rows     scores[n, t, (h, u)] = sum_d x[n, t, (h, d)] * y[n, u, (h, d)]     Q K^T
    matmul_columns  y[n, t, (h, d)]      = sum_u x[n, t, (h, u)] * y[n, u, (h, d)]     A V
    softmax         over u of x[n, t, (h, u)]
    rms_norm        x[n, t, c] / root of the mean over c of x[n, t, c]^2, * gamma[c]
    constant        a parameter of the model that is a tensor of every image: a class token

An image in windows has the tokens of each window one after the other. All run in torch with
gradients.
"""

from __future__ import annotations

import torch

_library = torch.library.Library("tvmq", "FRAGMENT")
_library.define("matmul_rows(Tensor x, Tensor y, int heads, float factor, int windows) -> Tensor")
_library.define(
    "matmul_columns(Tensor x, Tensor y, int heads, float factor, int windows) -> Tensor"
)
_library.define("softmax(Tensor x, int heads) -> Tensor")
_library.define("rms_norm(Tensor x, Tensor gamma, float eps) -> Tensor")
_library.define("constant(Tensor like, Tensor value) -> Tensor")


@torch.library.impl(_library, "matmul_rows", "CompositeImplicitAutograd")  # type: ignore[untyped-decorator]
def matmul_rows(
    x: torch.Tensor, y: torch.Tensor, heads: int, factor: float, windows: int
) -> torch.Tensor:
    """Products of the rows of two tensors, window by window.

    Args:
        x: (N, W * T, C).
        y: (N, W * U, C).
        heads: divides C.
        factor: of each sum.
        windows: W; the tokens of one meet those of the same only.

    Returns:
        (N, W * T, heads * U).
    """
    left, right = (_by_head(z, heads, windows) for z in (x, y))
    return _by_token(torch.matmul(left, right.transpose(-1, -2)), factor)


@torch.library.impl(_library, "matmul_columns", "CompositeImplicitAutograd")  # type: ignore[untyped-decorator]
def matmul_columns(
    x: torch.Tensor, y: torch.Tensor, heads: int, factor: float, windows: int
) -> torch.Tensor:
    """Rows of ``y``, summed with the weights that a row of ``x`` holds for each head.

    Args:
        x: (N, W * T, heads * U).
        y: (N, W * U, C).
        heads: divides C.
        factor: of each sum.
        windows: W; the tokens of one meet those of the same only.

    Returns:
        (N, W * T, C).
    """
    left, right = (_by_head(z, heads, windows) for z in (x, y))
    return _by_token(torch.matmul(left, right), factor)


@torch.library.impl(_library, "softmax", "CompositeImplicitAutograd")  # type: ignore[untyped-decorator]
def softmax(x: torch.Tensor, heads: int) -> torch.Tensor:
    """Softmax over the last axis of (..., heads * U), of each head by itself."""
    return x.unflatten(-1, (heads, -1)).softmax(-1).flatten(-2)


@torch.library.impl(_library, "rms_norm", "CompositeImplicitAutograd")  # type: ignore[untyped-decorator]
def rms_norm(x: torch.Tensor, gamma: torch.Tensor, eps: float) -> torch.Tensor:
    """(..., C) divided by the root of the mean square over C, which ``eps`` is added to."""
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * gamma


@torch.library.impl(_library, "constant", "CompositeImplicitAutograd")  # type: ignore[untyped-decorator]
def constant(like: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """``value`` (1, ...) for each image of ``like`` (N, ...)."""
    return value.to(like.dtype).expand(like.shape[0], *value.shape[1:])


def _by_head(x: torch.Tensor, heads: int, windows: int) -> torch.Tensor:
    """(N, W * T, C) as (N, W, h, T, C / h)."""
    return x.unflatten(1, (windows, -1)).unflatten(-1, (heads, -1)).transpose(2, 3)


def _by_token(x: torch.Tensor, factor: float) -> torch.Tensor:
    """(N, W, h, T, d) as (N, W * T, h * d)."""
    tokens = x.transpose(2, 3).flatten(3).flatten(1, 2)
    return tokens if factor == 1.0 else tokens * factor
