"""The one file here that spells TVM's node classes; the next TVM release touches it only.

``Graph`` is a read-only view of ``main``: a straight line of bindings, who computes and who uses
each variable. ``rewrite`` runs a visitor over it and gives a new module; what nothing uses any
more is dropped, names are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import tvm
import tvm_ffi
from tvm import IRModule, relax

from targets.errors import ArithmeticRangeError, TvmqError, UnsupportedError

for _error in (TvmqError, UnsupportedError, ArithmeticRangeError):
    # a pass runs below TVM, which would turn an error that it does not know into a RuntimeError
    tvm_ffi.register_error(_error.__name__, _error)

Expr: TypeAlias = Any  # tvm.ir.RelaxExpr: TVM carries no types that mypy could check
Var: TypeAlias = Any  # relax.Var; hashes and compares by identity of the node
Array: TypeAlias = npt.NDArray[Any]
Emit: TypeAlias = Callable[..., Var]  # emit(expr, name_hint="") -> Var


# Types are compared because nodes come by the million and ``isinstance`` runs Python code of TVM.
_VARS = (relax.DataflowVar, relax.Var)


def is_var(expr: Expr) -> bool:
    """Whether the expression is a variable."""
    return type(expr) in _VARS


def is_constant(expr: Expr) -> bool:
    """Whether the expression is a tensor constant."""
    return type(expr) is tvm.ir.expr.GenericConst


def is_tuple(expr: Expr) -> bool:
    """Whether the expression is a tuple written out."""
    return type(expr) is relax.Tuple


def is_scalar(expr: Expr) -> bool:
    """Whether the expression is a constant without axes."""
    return is_constant(expr) and len(expr.ty.shape.values) == 0


def array_of(constant: Expr) -> Array:
    """The numbers of a tensor constant."""
    return np.asarray(constant.value.numpy())


def constant(values: npt.ArrayLike, dtype: str) -> Expr:
    """A tensor constant; the dtype is explicit because ``relax.const`` narrows int64 to int32."""
    return relax.const(np.array(values, dtype=dtype, order="C"), dtype)


def op_of(expr: Expr) -> str:
    """Name of the called operator without its ``relax.``; "" for anything else than a call."""
    if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op):
        return str(expr.op.name).removeprefix("relax.")
    return ""


def called_function(expr: Expr) -> str:
    """Name of the called function of the module; "" for anything else than a call of one."""
    if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.GlobalVar):
        return str(expr.op.name_hint)
    return ""


def picked_from(expr: Expr) -> tuple[Var, int] | None:
    """The tuple, and the place in it, that an expression is the item of; or None."""
    if type(expr) is relax.TupleGetItem:
        return expr.tuple_value, int(expr.index)
    return None


def dtype_of(expr: Expr) -> str:
    """Element type of a tensor."""
    return str(expr.ty.dtype)


def shape_of(expr: Expr) -> tuple[Any, ...]:
    """Dimensions of a tensor: int where static, a symbolic expression for the batch."""
    return tuple(_dimension(d) for d in expr.ty.shape.values)


def is_float(expr: Expr) -> bool:
    """Whether it is a tensor of floating-point numbers."""
    return isinstance(expr.ty, relax.TensorType) and dtype_of(expr).startswith("float")


def is_codes(expr: Expr) -> bool:
    """Whether it is a tensor of 8-bit codes."""
    return isinstance(expr.ty, relax.TensorType) and dtype_of(expr) in ("int8", "uint8")


def ints(values: Expr) -> tuple[int, ...]:
    """Python integers of an attribute array, a tuple of constants or a shape."""
    fields: Any = getattr(values, "fields", getattr(values, "values", values))
    return tuple(int(getattr(v, "value", v)) for v in fields)


def pair(values: Expr) -> tuple[int, int]:
    """Two Python integers, one per axis of an image."""
    first, second = ints(values)
    return first, second


def number(value: Expr) -> float:
    """Python number of a scalar argument."""
    return float(value.value)


class Graph:
    """The bindings of ``main`` as a graph.

    Attributes:
        function: the Relax function.
        params: its parameters.
        bindings: (variable, value) in order.
        outputs: the expressions returned, a tuple's fields if it returns a tuple.
    """

    def __init__(self, mod: IRModule) -> None:
        self.function = mod["main"]
        self.params: tuple[Var, ...] = tuple(self.function.params)
        body = self.function.body
        self.bindings: list[tuple[Var, Expr]] = [
            (binding.var, binding.value) for block in body.blocks for binding in block.bindings[:]
        ]
        self._value = dict(self.bindings)
        result = self.value(body.body)
        self.outputs: tuple[Expr, ...] = tuple(result.fields) if is_tuple(result) else (body.body,)
        self._returned = {output for output in self.outputs if is_var(output)}
        self._users: dict[Var, list[Var]] = {}
        for var, value in self.bindings:
            for arg in variables_in(value):
                self._users.setdefault(arg, []).append(var)

    def value(self, expr: Expr) -> Expr:
        """What a variable is bound to; parameters and other expressions stand for themselves."""
        return self._value.get(expr, expr) if is_var(expr) else expr

    def users(self, var: Var) -> list[Var]:
        """Variables whose value reads ``var``; the returned tuple counts as one."""
        return self._users.get(var, [])

    def is_output(self, var: Var) -> bool:
        """Whether the function returns it."""
        return var in self._returned

    def match(self, expr: Expr, *ops: str) -> Expr | None:
        """The call behind ``expr`` if its operator is one of ``ops``."""
        value = self.value(expr)
        return value if op_of(value) in ops else None


def variables_in(value: Expr) -> list[Var]:
    """Variables that a call or a tuple reads, in order."""
    return [tensor for tensor in tensors_in(value) if is_var(tensor)]


def tensors_in(value: Expr) -> list[Expr]:
    """Variables and constants that a call reads, in order; the fields of a tuple argument too."""
    if is_var(value) or is_constant(value):
        return [value]
    if type(value) is relax.TupleGetItem:
        return [value.tuple_value]
    if type(value) not in (relax.Call, relax.Tuple):
        return []
    fields = value.args if type(value) is relax.Call else value.fields
    tensors = []
    for field in fields[:]:  # [:] is far quicker
        if is_var(field) or is_constant(field):
            tensors.append(field)
        elif type(field) is relax.Tuple:
            tensors += tensors_in(field)
    return tensors


class Rewriter:
    """What a visitor works with: the old graph, and the means to emit new bindings."""

    def __init__(self, graph: Graph, builder: relax.BlockBuilder) -> None:
        self.graph = graph
        self._builder = builder
        self._new: dict[Var, Expr] = {}

    def emit(self, expr: Expr, name: str = "") -> Var:
        """Bind an expression; a variable is returned as it is."""
        return expr if is_var(expr) else self._builder.emit(expr, name_hint=name)

    def get(self, expr: Expr) -> Expr:
        """The new expression for one of the old graph."""
        if is_var(expr):
            return self._new.get(expr, expr)
        return relax.Tuple([self.get(f) for f in expr.fields[:]]) if is_tuple(expr) else expr

    def copy(self, value: Expr) -> Expr:
        """The same call or tuple on the new arguments."""
        if isinstance(value, relax.Call):
            args = [self.get(arg) for arg in value.args[:]]
            return relax.Call(value.op, args, value.attrs, value.ty_args)
        return self.get(value)

    def keep(self, var: Var, value: Expr) -> None:
        """Bind the old variable to the old value, on the new arguments.

        Where these have the types of the old ones, so has the result: TVM needn't infer it, and
        what reads the variable need not be rebuilt at all.
        """
        new = value
        if any(arg in self._new for arg in variables_in(value)):
            args = [self.get(arg) for arg in value.args[:]]
            if not all(map(_same_type, args, value.args[:])):
                self.replace(var, self.emit(self.copy(value), var.name))
                return
            new = relax.Call(value.op, args, value.attrs, value.ty_args, ret_ty=value.ty)
        name = self._builder.get_unique_name(var.name)
        if name != var.name or not isinstance(var, relax.DataflowVar):
            self.replace(var, relax.DataflowVar(name, var.ty))
        self._builder.emit_normalized(relax.VarBinding(self.get(var), new))

    def replace(self, var: Var, new: Expr) -> None:
        """From here on, read ``new`` where the old graph reads ``var``."""
        self._new[var] = new


def _same_type(a: Expr, b: Expr) -> bool:
    return a is b or bool(tvm_ffi.structural_equal(a.ty, b.ty))


Visit: TypeAlias = Callable[[Rewriter, Var, Expr], Expr | None]


def rewrite(
    mod: IRModule,
    visit: Visit,
    *,
    finish: Callable[[Rewriter, Expr, Expr], Expr] | None = None,
) -> IRModule:
    """Build ``main`` anew, binding by binding; the given module stays as it was.

    Args:
        mod: a module with a function ``main`` of straight-line bindings.
        visit: gets (rewriter, old variable, old value); returns the new value (a variable if it was
            bound already, a constant to read in its place), or None to keep the binding.
        finish: gets (rewriter, old output, new output), returns what is returned in its place.

    Returns:
        A new module whose ``main`` returns a tuple.
    """
    graph = Graph(mod)
    builder = relax.BlockBuilder()
    rewriter = Rewriter(graph, builder)
    with builder.function("main", list(graph.params)):
        with builder.dataflow():
            for var, value in graph.bindings:
                if is_tuple(value):
                    rewriter.replace(var, rewriter.get(value))  # only the returned tuple is bound
                    continue
                new = visit(rewriter, var, value)
                if new is None and isinstance(value, relax.Call):
                    rewriter.keep(var, value)
                    continue
                new = rewriter.copy(value) if new is None else new
                rewriter.replace(var, new if is_constant(new) else rewriter.emit(new, var.name))
            outputs = [rewriter.get(output) for output in graph.outputs]
            if finish is not None:
                outputs = [
                    finish(rewriter, old, new)
                    for old, new in zip(graph.outputs, outputs, strict=True)
                ]
            result = builder.emit_output(relax.Tuple(outputs))
        builder.emit_func_output(result)
    function = builder.get()["main"]
    if graph.function.attrs is not None:
        function = function.with_attrs(dict(graph.function.attrs.items()))
    new_mod = mod.clone()
    new_mod["main"] = _without_dead_code(function)
    return new_mod


def _without_dead_code(function: Expr) -> Expr:
    """The function without the bindings that nothing reads; linear, as TVM's pass is not."""
    (block,) = function.body.blocks
    live, kept = set(variables_in(function.body.body)), []
    for binding in reversed(block.bindings[:]):
        if binding.var in live:
            live.update(variables_in(binding.value))
            kept.append(binding)
    block = relax.DataflowBlock(kept[::-1])
    body = relax.BlockBuilder().normalize(relax.SeqExpr([block], function.body.body))
    return relax.Function(
        function.params, body, function.ret_ty, function.is_pure, function.attrs, function.span
    )


def _dimension(value: Expr) -> Any:
    return int(value) if isinstance(value, tvm.tirx.IntImm) else value
