"""Names of Relax operators by what they do to codes: the one vocabulary of passes and forms."""

from __future__ import annotations

RESHAPES = ("reshape", "permute_dims")
"""The same elements under other axes."""

MOVES = (*RESHAPES, "strided_slice", "nn.pad", "concat")
"""Elements of the operands at other places; a padding adds one value."""

KEEPS_CODES = (*MOVES, "nn.max_pool2d")
"""Works on codes as on the numbers they stand for."""

PRODUCTS = ("nn.conv2d", "matmul")
"""Sums of products with a weight."""
