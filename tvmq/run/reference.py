"""The NumPy interpreter of the integer Relax module: the definition that every backend must equal.

One small function per operator. Sums of products go through floating-point BLAS only where that is
exact: every partial sum of integers below 2**24 (2**53) is a float32 (float64), so any order of
summation gives the integer; the bound is computed from the weights and the data at hand. Where it
does not hold, integers are multiplied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from tvm import IRModule, relax

from relay_passes.relax_nodes import (
    Expr,
    Graph,
    array_of,
    called_function,
    dtype_of,
    ints,
    is_constant,
    is_tuple,
    is_var,
    number,
    op_of,
    picked_from,
    variables_in,
)
from targets.errors import InputError, UnsupportedError
from targets.sum_bounds import CodeRange, bound_products, bound_sums

Array = npt.NDArray[Any]

_PATCH_BYTES = 64 << 20
"""Patches of a convolution are gathered for as many images at a time as fit in this."""


Islands: TypeAlias = Callable[[Sequence[Array], str], list[Array]]
"""Runs a float island: what it reads, its name, what it makes."""

Through: TypeAlias = Callable[[str, Array], Array]
"""Sees a tensor, or another in its place: its variable's name, what was computed, what is read."""


def run_reference(
    mod: IRModule,
    inputs: Mapping[str, Array],
    through: Through | None = None,
    islands: Islands | None = None,
) -> list[Array]:
    """Run ``main`` of an integer module.

    Args:
        mod: what ``relay_passes.pipeline.lower_to_integer`` gives.
        inputs: float32 (N, ...) by parameter name.
        through: if given, called with the variable's name of every tensor and what was computed;
            what it returns is what is read of it.
        islands: runs the float islands of the network, for which there is no definition here.

    Returns:
        The outputs, float32 (N, ...), in order.

    Raises:
        InputError: an input is missing or has another shape or type.
        UnsupportedError: an operator that integer modules do not consist of.
    """
    graph = Graph(mod)
    env: dict[Expr, Array] = {param: _input(param, inputs) for param in graph.params}
    images = len(env[graph.params[0]])
    made: dict[Expr, list[Array]] = {}
    last_use = {v: i for i, (_, value) in enumerate(graph.bindings) for v in variables_in(value)}
    for index, (var, value) in enumerate(graph.bindings):
        if is_tuple(value):
            continue
        if name := called_function(value):
            made[var] = _run_island(name, [env[arg] for arg in value.args], islands)
            continue
        if (picked := picked_from(value)) is not None:
            env[var] = made[picked[0]][picked[1]]
            continue
        result = _evaluate(value, env, images)
        if str(result.dtype) != dtype_of(var):
            raise UnsupportedError(
                f"{var.name}: expected {dtype_of(var)}, got {result.dtype}. Build it again."
            )
        env[var] = result if through is None else through(var.name, result)
        for source in variables_in(value):
            if last_use[source] == index and not graph.is_output(source):
                env.pop(source, None)
    return [env[output] for output in graph.outputs]


def _run_island(name: str, read: list[Array], islands: Islands | None) -> list[Array]:
    if islands is None:
        raise UnsupportedError(
            f"Reference: {name} runs in float, by the code of a library. Give one that has it."
        )
    return islands(read, name)


def _input(param: Expr, inputs: Mapping[str, Array]) -> Array:
    if param.name not in inputs:
        raise InputError(f"Input '{param.name}': missing. Given: {sorted(inputs)}.")
    array = np.asarray(inputs[param.name])
    shape = tuple(param.ty.shape.values)
    fixed = [int(d) for d in shape[1:]]
    if array.ndim != len(shape) or list(array.shape[1:]) != fixed:
        raise InputError(f"Input '{param.name}': expected (N, {fixed}), got {array.shape}.")
    if str(array.dtype) != dtype_of(param):
        raise InputError(f"Input '{param.name}': expected {dtype_of(param)}, got {array.dtype}.")
    return array


def _evaluate(call: Expr, env: Mapping[Expr, Array], images: int) -> Array:
    operator = _OPERATORS.get(op_of(call))
    if operator is None:
        raise UnsupportedError(
            f"Reference: no operator '{op_of(call)}' in an integer module. Build the artifact "
            "again with this version."
        )
    return operator(call, *[_operand(arg, env, images) for arg in call.args])


def _operand(arg: Expr, env: Mapping[Expr, Array], images: int) -> Any:
    """An array for a tensor, a list for a tuple of tensors, the expression itself for the rest.

    A shape is of as many images as there are.
    """
    if is_var(arg):
        return env[arg]
    if is_constant(arg):
        return array_of(arg)
    if is_tuple(arg) and any(is_var(f) or is_constant(f) for f in arg.fields):
        return [_operand(field, env, images) for field in arg.fields]
    if isinstance(arg, relax.ShapeExpr):
        return [images, *(int(size) for size in arg.values[1:])]
    return arg


def _astype(call: Expr, x: Array) -> Array:
    return x.astype(dtype_of(call))


def _clip(_: Expr, x: Array, low: Expr, high: Expr) -> Array:
    least, most = (x.dtype.type(number(bound)) for bound in (low, high))
    return np.clip(x, least, most)


def _permute_dims(call: Expr, x: Array) -> Array:
    return np.ascontiguousarray(x.transpose(ints(call.attrs.axes)))


def _reshape(_: Expr, x: Array, shape: list[int]) -> Array:
    return x.reshape(shape)


def _strided_slice(_: Expr, x: Array, axes: Expr, begin: Expr, end: Expr, strides: Expr) -> Array:
    box = [slice(None)] * x.ndim
    for axis, first, last, step in zip(*map(ints, (axes, begin, end, strides)), strict=True):
        box[axis] = slice(first, last, step)
    return x[tuple(box)]


def _pad(call: Expr, x: Array) -> Array:
    widths = np.reshape(ints(call.attrs.pad_width), (-1, 2))
    return np.pad(x, widths, constant_values=x.dtype.type(float(call.attrs.pad_value)))


def _concat(call: Expr, tensors: list[Array]) -> Array:
    return np.concatenate(tensors, int(call.attrs.axis))


def _take(_: Expr, table: Array, index: Array) -> Array:
    return table[index]


def _max(call: Expr, x: Array) -> Array:
    return x.max(axis=ints(call.attrs.axis), keepdims=bool(call.attrs.keepdims))


def _sum(call: Expr, x: Array) -> Array:
    return x.sum(axis=ints(call.attrs.axis), keepdims=bool(call.attrs.keepdims), dtype=x.dtype)


def _max_pool2d(call: Expr, x: Array) -> Array:
    taps = _taps(call, ints(call.attrs.pool_size), x)
    result = np.ascontiguousarray(taps[0])
    for tap in taps[1:]:
        np.maximum(result, tap, out=result)
    return result


def _matmul(_: Expr, x: Array, y: Array) -> Array:
    """Integers [..., T, C] times weights [C, K], or times [..., C, K] each; int32 sums."""
    if y.ndim == 2:
        return _sums(x, y.T)
    left, right = (CodeRange(int(z.min(initial=0)), int(z.max(initial=0))) for z in (x, y))
    return _product(x, y, bound_products(left, right, x.shape[-1], np.zeros(1, np.int64)).reach)


def _conv2d(call: Expr, x: Array, weight: Array) -> Array:
    """N H W C times O H W I, no padding (the codes are padded before); int32 sums."""
    groups = int(call.attrs.groups)
    K, R, S, C = weight.shape
    if groups > 1 and C == 1 and groups == K:
        return _depthwise(_taps(call, (R, S), x), weight.reshape(K, R * S))
    _, OH, OW, _ = (int(d) if i else 0 for i, d in enumerate(call.ty.shape.values))
    images = max(1, _PATCH_BYTES // (OH * OW * R * S * C * groups * 4))
    result = np.empty((len(x), OH, OW, K), np.int32)
    for first in range(0, len(x), images):
        taps = _taps(call, (R, S), x[first : first + images])
        for g in range(groups):
            rows = slice(g * K // groups, (g + 1) * K // groups)
            patches = np.stack([tap[..., g * C : (g + 1) * C] for tap in taps], axis=3)
            flat = patches.reshape(*patches.shape[:3], R * S * C)
            filters = weight[rows].reshape(-1, R * S * C)
            result[first : first + images, ..., rows] = _sums(flat, filters)
    return result


def _taps(call: Expr, kernel: tuple[int, ...], x: Array) -> list[Array]:
    """For each place of the window, what it sees: R * S views (N, OH, OW, C)."""
    sy, sx = ints(call.attrs.strides)
    dy, dx = ints(call.attrs.dilation)
    OH, OW = (int(d) for d in call.ty.shape.values[1:3])
    return [
        x[:, r * dy : r * dy + (OH - 1) * sy + 1 : sy, s * dx : s * dx + (OW - 1) * sx + 1 : sx]
        for r in range(kernel[0])
        for s in range(kernel[1])
    ]


def _depthwise(taps: list[Array], weight: Array) -> Array:
    """One channel at a time, int32 throughout: R * S products can't overflow it unproved."""
    result = np.zeros(taps[0].shape, np.int32)
    for tap, row in zip(taps, weight.T.astype(np.int32), strict=True):
        result += tap.astype(np.int32) * row
    return result


def _sums(x: Array, weight: Array) -> Array:
    """x[..., C] times weight[K, C], exactly, as int32."""
    low, high = int(x.min(initial=0)), int(x.max(initial=0))
    bound = bound_sums(weight, np.zeros(len(weight), np.int64), low, high).reach
    return _product(x, weight.T, bound)


def _product(x: Array, y: Array, bound: int) -> Array:
    """The matrix product of integers, as int32; no partial sum of it is larger than ``bound``."""
    for limit, dtype in ((2**24, np.float32), (2**53, np.float64)):
        if bound < limit:
            return (x.astype(dtype) @ y.astype(dtype)).astype(np.int32)
    return (x.astype(np.int64) @ y.astype(np.int64)).astype(np.int32)


_OPERATORS: dict[str, Callable[..., Array]] = {
    "astype": _astype,
    "add": lambda _, a, b: a + b,
    "subtract": lambda _, a, b: a - b,
    "multiply": lambda _, a, b: a * b,
    "divide": lambda _, a, b: a / b,
    "floor": lambda _, x: np.floor(x),
    "clip": _clip,
    "left_shift": lambda _, x, n: x << n,
    "right_shift": lambda _, x, n: x >> n,
    "bitwise_and": lambda _, x, n: x & n,
    "max": _max,
    "sum": _sum,
    "greater_equal": lambda _, a, b: a >= b,
    "floor_divide": lambda _, a, b: a // b,
    "sqrt": lambda _, x: np.sqrt(x),
    "broadcast_to": lambda _, x, shape: np.broadcast_to(x, shape),
    "permute_dims": _permute_dims,
    "reshape": _reshape,
    "strided_slice": _strided_slice,
    "concat": _concat,
    "take": _take,
    "nn.pad": _pad,
    "nn.conv2d": _conv2d,
    "nn.max_pool2d": _max_pool2d,
    "matmul": _matmul,
}
