"""Tables: written and read back, and what is only like one."""

import numpy as np
import pytest
from form_checks import SIGNED, assert_same, graph_of, tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tvm import relax

from relay_passes.forms.table import Table, emit_table, match_table
from relay_passes.relax_nodes import constant


@settings(max_examples=30, deadline=None)
@given(SIGNED, SIGNED, st.data())
def test_what_is_written_is_read(dtype, out, data):
    x = tensor("x", (2, 5), dtype)
    table = Table(x, data.draw(hnp.arrays(out, (256,))))
    graph = graph_of([x], lambda emit: emit_table(emit, table, "y"))
    assert graph.outputs[0].name == "y"
    assert_same(match_table(graph, graph.outputs[0]), table)


@pytest.mark.parametrize(
    ("size", "dtype", "offset", "reason"),
    [
        (255, "uint8", 0, "something else than 256 entries"),
        (256, "uint8", 1, "first entry belongs to another code"),
        (256, "int8", 0, "first entry belongs to another code"),
        (256, "int8", 127, "first entry belongs to another code"),
    ],
)
def test_near_misses_are_refused(size, dtype, offset, reason):
    x = tensor("x", (2, 5), dtype)

    def write(emit):
        index = emit(relax.op.astype(x, "int32"))
        if offset:
            index = emit(relax.op.add(index, constant(offset, "int32")))
        return emit(relax.op.take(constant(np.zeros(size), "int8"), index, axis=0))

    graph = graph_of([x], write)
    assert reason in match_table(graph, graph.outputs[0])
