"""TVM's pipeline with the sizes of a batch computed in order."""

from itertools import permutations

import tvm
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as B

from relay_passes.host_pipeline import OrderSizes, host_pipeline


def sizes(mod: tvm.IRModule, name: str = "shape_func") -> list[int]:
    return [int(store.indices[0]) for store in mod[name].body.seq]


def stores(order, reads=0):
    """A function that stores multiples of one element at places in this order."""
    with IRBuilder() as builder:
        with B.prim_func(s_tir=True):
            B.func_name("shape_func")
            heap = B.arg("H", B.buffer((8,), "int64"))
            for place in order:
                B.buffer_store(heap, heap[reads] * (place + 2), [place])
        return tvm.IRModule({"shape_func": builder.get()})


def test_sizes_are_computed_in_the_order_of_their_places():
    for order in permutations((1, 2, 5)):
        assert sizes(OrderSizes()(stores(order))) == [1, 2, 5]


def test_what_reads_another_size_stays_in_its_place():
    assert sizes(OrderSizes()(stores((5, 2, 1), reads=2))) == [5, 2, 1]


def test_the_pipeline_puts_them_in_order():
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor(("n", 6), "float32")) -> R.Tuple(R.Tensor(("n", 2, 3), "float32")):
            n = T.int64()
            with R.dataflow():
                y = R.add(x, R.const(1, "float32"))
                z = R.reshape(y, R.shape([n, 2, 3]))
                w = R.add(z, R.const(1, "float32"))
                out = (w,)
                R.output(out)
            return out

    mod = host_pipeline()(Module)
    assert sizes(mod) == sorted(sizes(mod))
    assert len(sizes(mod)) > 1
