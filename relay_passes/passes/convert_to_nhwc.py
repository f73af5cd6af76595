"""Hold images as N H W C from the input's codes on, and kernels as O H W I.

Every tensor of rank 4 is transposed by (0, 2, 3, 1), constants too: that takes NCHW to NHWC, OIHW
to OHWI and a step [K, 1, 1, 1] to itself. Operators that name axes are renamed; a reshape between
an image and another rank goes through NCHW unless H = W = 1, so elements keep torch's order. The
network's input stays NCHW until it is quantized (a transposed byte costs a quarter of a transposed
float), its output is transposed back.

Relax has ConvertLayout for this, which refuses integer convolutions.

Needs: SinkDequantize. Leaves: convolution, pooling in NHWC; no tensor of rank 4 in another layout
but the input before and the output after the integers.
"""

from __future__ import annotations

import tvm
from tvm import IRModule, relax

from relay_passes.relax_nodes import (
    Expr,
    Rewriter,
    Var,
    array_of,
    constant,
    ints,
    is_codes,
    is_constant,
    op_of,
    rewrite,
    shape_of,
    tensors_in,
    variables_in,
)

TO_NHWC = (0, 2, 3, 1)
TO_NCHW = (0, 3, 1, 2)


@tvm.transform.module_pass(opt_level=0, name="ConvertToNhwc")
class ConvertToNhwc:
    """Hold images as N H W C from the input's codes on, and kernels as O H W I."""

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        """Return a new module; ``mod`` is left as it was."""
        layout = _Layout()
        return rewrite(mod, layout.visit, finish=layout.finish)


class _Layout:
    """Remembers which old variables are held transposed."""

    def __init__(self) -> None:
        self._transposed: set[Var] = set()

    def visit(self, rewriter: Rewriter, var: Var, value: Expr) -> Expr | None:
        op = op_of(value)
        inputs = variables_in(value)
        if len(shape_of(var)) == 4:
            images = [arg for arg in inputs if len(shape_of(arg)) == 4]
            if images and not self._transposed.intersection(images) and not _places(op):
                return self._input_side(rewriter, var, value)
            self._transposed.add(var)
        build = _BUILD.get(op)
        if build is not None:
            return build(rewriter, value, [self._image(rewriter, arg) for arg in tensors_in(value)])
        return relax.Call(
            value.op,
            [self._image(rewriter, arg) for arg in value.args],
            value.attrs,
            value.ty_args,
        )

    def finish(self, rewriter: Rewriter, old: Expr, new: Expr) -> Expr:
        if old not in self._transposed:
            return new
        return rewriter.emit(relax.op.permute_dims(new, TO_NCHW), f"{old.name}_nchw")

    def _input_side(self, rewriter: Rewriter, var: Var, value: Expr) -> Expr | None:
        """Elementwise operators on the network's input; its codes are transposed."""
        if not is_codes(var):
            return None
        self._transposed.add(var)
        codes = rewriter.emit(rewriter.copy(value), f"{var.name}_nchw")
        return relax.op.permute_dims(codes, TO_NHWC)

    def _image(self, rewriter: Rewriter, arg: Expr) -> Expr:
        """The new argument, transposed if it is of rank 4 and isn't yet."""
        new = rewriter.get(arg)
        if is_constant(arg) and len(shape_of(arg)) == 4:
            return constant(array_of(arg).transpose(TO_NHWC), str(array_of(arg).dtype))
        if arg in self._transposed or is_constant(arg) or not hasattr(arg.ty, "shape"):
            return new
        if len(shape_of(arg)) == 4:
            return rewriter.emit(relax.op.permute_dims(new, TO_NHWC), f"{arg.name}_nhwc")
        return new


def _places(op: str) -> bool:
    """Whether the operator depends on the axes' places, so that its input can't stay NCHW."""
    return op in _BUILD


def _conv2d(_: Rewriter, call: Expr, args: list[Expr]) -> Expr:
    attrs = call.attrs
    return relax.op.nn.conv2d(
        *args,
        strides=ints(attrs.strides),
        padding=ints(attrs.padding),
        dilation=ints(attrs.dilation),
        groups=int(attrs.groups),
        data_layout="NHWC",
        kernel_layout="OHWI",
    )


def _max_pool2d(_: Rewriter, call: Expr, args: list[Expr]) -> Expr:
    attrs = call.attrs
    geometry = [ints(v) for v in (attrs.pool_size, attrs.strides, attrs.padding, attrs.dilation)]
    return relax.op.nn.max_pool2d(args[0], *geometry, layout="NHWC")


def _pad(_: Rewriter, call: Expr, args: list[Expr]) -> Expr:
    widths = ints(call.attrs.pad_width)
    if len(widths) == 8:
        pairs = [widths[2 * axis : 2 * axis + 2] for axis in TO_NHWC]
        widths = tuple(width for pair in pairs for width in pair)
    return relax.op.nn.pad(args[0], widths, "constant", float(call.attrs.pad_value))


def _concat(_: Rewriter, call: Expr, args: list[Expr]) -> Expr:
    return relax.op.concat(args, _axis(int(call.attrs.axis), args[0]))


def _strided_slice(_: Rewriter, call: Expr, args: list[Expr]) -> Expr:
    axes, begin, end, step = (ints(arg) for arg in call.args[1:5])
    axes = tuple(_axis(axis, args[0]) for axis in axes)
    return relax.op.strided_slice(args[0], axes, begin, end, step)


def _axis(axis: int, x: Expr) -> int:
    """Where an axis of the old layout lies in the new one."""
    return TO_NHWC.index(axis) if len(shape_of(x)) == 4 else axis


def _permute_dims(_: Rewriter, call: Expr, args: list[Expr]) -> Expr:
    axes = None if call.attrs.axes is None else ints(call.attrs.axes)
    if axes is not None and len(axes) == 4:
        axes = tuple(TO_NCHW[axes[axis]] for axis in TO_NHWC)
    return relax.op.permute_dims(args[0], axes)


def _reshape(rewriter: Rewriter, call: Expr, args: list[Expr]) -> Expr:
    x, wanted = args[0], list(call.args[1].values)
    if len(shape_of(x)) == 4 and shape_of(x)[1:3] != (1, 1):
        x = rewriter.emit(relax.op.permute_dims(x, TO_NCHW), f"{call.args[0].name}_nchw")
    if len(wanted) != 4:
        return relax.op.reshape(x, wanted)
    if ints(wanted[2:]) == (1, 1):
        return relax.op.reshape(x, [wanted[axis] for axis in TO_NHWC])
    image = rewriter.emit(relax.op.reshape(x, wanted), f"{call.args[0].name}_nchw")
    return relax.op.permute_dims(image, TO_NHWC)


def _broadcast_to(_: Rewriter, call: Expr, args: list[Expr]) -> Expr:
    wanted = list(call.args[1].values)
    return relax.op.broadcast_to(
        args[0], [wanted[axis] for axis in TO_NHWC] if len(wanted) == 4 else wanted
    )


_BUILD = {
    "nn.conv2d": _conv2d,
    "nn.max_pool2d": _max_pool2d,
    "nn.pad": _pad,
    "concat": _concat,
    "strided_slice": _strided_slice,
    "permute_dims": _permute_dims,
    "reshape": _reshape,
    "broadcast_to": _broadcast_to,
}
