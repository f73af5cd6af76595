"""What the tests of all forms share: write one into a function, compare two, change one's Relax."""

from dataclasses import fields, is_dataclass

import numpy as np
from hypothesis import strategies as st
from tvm import relax

from relay_passes.relax_nodes import Graph, is_var
from tvmq.run.reference import run_reference

SIGNED = st.booleans().map(lambda signed: "int8" if signed else "uint8")


def tensor(name, shape, dtype):
    return relax.Var(name, relax.TensorType(shape, dtype))


def module_of(params, write):
    """A function that returns what ``write(emit)`` binds."""
    builder = relax.BlockBuilder()

    def emit(expr, name=""):
        return expr if is_var(expr) else builder.emit(expr, name_hint=name)

    with builder.function("main", list(params)):
        with builder.dataflow():
            out = builder.emit_output(relax.Tuple([write(emit)]))
        builder.emit_func_output(out)
    return builder.get()


def graph_of(params, write):
    """The graph of that function."""
    return Graph(module_of(params, write))


def run(params, write, *arrays):
    """What that function computes, by the reference."""
    inputs = {param.name: array for param, array in zip(params, arrays, strict=True)}
    return run_reference(module_of(params, write), inputs)[0]


def assert_same(found, written):
    """Equal field by field; a reason instead of a form is shown."""
    assert not isinstance(found, str), found
    assert type(found) is type(written)
    for field in fields(written):
        a, b = getattr(found, field.name), getattr(written, field.name)
        if isinstance(b, np.ndarray):
            np.testing.assert_array_equal(a, b, err_msg=field.name)
        elif is_dataclass(b) and not isinstance(b, type):
            assert_same(a, b)
        else:
            assert a == b, field.name


def written(view, runs, array):
    """What runs write of an array; nothing twice, and everything."""
    out, times = np.zeros(view, array.dtype), np.zeros(view, int)
    for each in runs:
        axes = zip(each.strides, each.size, strict=True)
        steps = np.meshgrid(*(stride * np.arange(count) for stride, count in axes), indexing="ij")
        box = tuple(slice(a, a + n) for a, n in zip(each.at, each.size, strict=True))
        out[box] = array.reshape(-1)[each.first + sum(steps)]
        times[box] += 1
    assert (times == 1).all()
    return out
