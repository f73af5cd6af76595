"""From an annotated ExportedProgram to float64 Relax with quantize and dequantize written out.

TVM's ``from_exported_program`` walks the graph; the converters of the few operators that an
annotated graph may hold are ours, because TVM's decompose them (adaptive pooling), fix float32 as
the type of a matmul, know nothing of quantization, and drop the names. Here a variable is named
after the torch node that it carries; the codes of node ``relu`` are ``relu_codes``.

The graph must be float64 (``module.double()``), since only there it is exact; ``main`` takes
float32 inputs all the same, and returns a tuple of float32 outputs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import fx
from tvm import IRModule, relax
from tvm.relax.frontend.torch import from_exported_program

from relay_passes.forms.quantization import Dequantize, Quantize, emit_dequantize, emit_quantize
from relay_passes.frontend.torch_operators import CONVERTERS, Converter, Importer, arguments, pair
from relay_passes.relax_nodes import (
    Array,
    Expr,
    Rewriter,
    Var,
    constant,
    dtype_of,
    new_var,
    rewrite,
    shape_of,
)
from targets.errors import UnsupportedError
from targets.rounding import Rounding, RoundingMode


def import_torch(program: torch.export.ExportedProgram) -> IRModule:
    """Import an annotated program.

    Args:
        program: float64 graph with ``tvmq::fake_quantize`` nodes, symbolic batch.

    Returns:
        A module whose ``main`` takes float32 tensors (N, ...) and returns a tuple of such.

    Raises:
        UnsupportedError: an operator has no converter (all of them are named), or a parameter is
            not float64.
    """
    _check(program)
    mod = from_exported_program(
        program, custom_convert_map=_converters(program), run_ep_decomposition=False
    )
    return _with_float32_interface(mod)


def _check(program: torch.export.ExportedProgram) -> None:
    known = _converters(program)
    missing = {
        f"{node.target} at '{node.name}'"
        for node in program.graph.nodes
        if node.op == "call_function" and node.target.__name__ not in known
    }
    if missing:
        raise UnsupportedError(
            f"Import: no converter for {', '.join(sorted(missing))}. "
            "Rewrite the model without these operators."
        )
    for name, tensor in _tensors(program).items():
        if tensor.is_floating_point() and tensor.dtype != torch.float64:
            raise UnsupportedError(
                f"Import: expected '{name}' in float64, got {tensor.dtype}. "
                "Convert the annotated module with .double() before exporting it."
            )


def _with_float32_interface(mod: IRModule) -> IRModule:
    params = list(mod["main"].params)
    narrow = [new_var(p.name, p, "float32") if dtype_of(p) == "float64" else p for p in params]

    def start(rewriter: Rewriter) -> None:
        for old, new in zip(params, narrow, strict=True):
            if dtype_of(old) == "float64":
                rewriter.replace(old, rewriter.emit(relax.op.astype(new, "float64")))

    def finish(rewriter: Rewriter, _old: Expr, new: Expr) -> Expr:
        return rewriter.emit(relax.op.astype(new, "float32"))

    return rewrite(mod, lambda *_: None, params=narrow, start=start, finish=finish)


def _tensors(program: torch.export.ExportedProgram) -> dict[str, torch.Tensor]:
    """Parameters, buffers and lifted constants by the name of their placeholder."""
    stored = {**dict(program.named_parameters()), **dict(program.named_buffers())}
    stored |= {k: v for k, v in program.constants.items() if isinstance(v, torch.Tensor)}
    return {
        spec.arg.name: stored[spec.target]
        for spec in program.graph_signature.input_specs
        if spec.target in stored
    }


def _converters(program: torch.export.ExportedProgram) -> dict[str, Converter]:
    arrays = {k: v.detach().cpu().numpy() for k, v in _tensors(program).items()}

    def array(node: fx.Node | None) -> Array | None:
        return None if node is None else arrays[node.name]

    def operand(node: fx.Node, importer: Importer) -> Expr:
        stored = arrays.get(node.name)
        return importer.env[node] if stored is None else constant(stored, str(stored.dtype))

    def fake_quantize(node: fx.Node, importer: Importer) -> Var:
        source, step_node, zero_point, low, high, axis, dtype, mode = node.args
        emit = importer.block_builder.emit
        x = operand(source, importer)
        step = np.asarray(array(step_node), np.float64)
        if axis >= 0:
            step = step.reshape([-1 if i == axis else 1 for i in range(len(shape_of(x)))])
        else:
            step = step.reshape(())
        rounding = Rounding(RoundingMode[mode])
        quantize = Quantize(x, step, zero_point, low, high, dtype, rounding)
        codes = emit_quantize(emit, quantize, f"{source.name}_codes")
        return emit_dequantize(emit, Dequantize(codes, step, zero_point), node.name)

    def conv2d(node: fx.Node, importer: Importer) -> Var:
        x, weight, bias, stride, padding, dilation, groups = arguments(
            node, None, None, None, (1, 1), (0, 0), (1, 1), 1
        )
        pad_y, pad_x = pair(padding)
        result = relax.op.nn.conv2d(
            operand(x, importer),
            operand(weight, importer),
            strides=pair(stride),
            padding=[pad_y, pad_x, pad_y, pad_x],
            dilation=pair(dilation),
            groups=groups,
        )
        offset = array(bias)
        return _with_bias(
            node, importer, result, None if offset is None else offset.reshape(1, -1, 1, 1)
        )

    def linear(node: fx.Node, importer: Importer) -> Var:
        x, weight, bias = arguments(node, None, None, None)
        transposed = importer.block_builder.emit(relax.op.permute_dims(operand(weight, importer)))
        result = relax.op.matmul(operand(x, importer), transposed)
        return _with_bias(node, importer, result, array(bias))

    return {
        "fake_quantize.default": fake_quantize,
        "conv2d.default": conv2d,
        "linear.default": linear,
        **CONVERTERS,
    }


def _with_bias(node: fx.Node, importer: Importer, product: Expr, bias: Array | None) -> Var:
    emit = importer.block_builder.emit
    if bias is None:
        return emit(product, name_hint=node.name)
    return emit(relax.op.add(emit(product), constant(bias, "float64")), name_hint=node.name)
