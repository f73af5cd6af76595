"""NameValues: codes are called as the torch node whose value they are."""

from golden import check, codes
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.passes.name_values import NameValues
from relay_passes.relax_nodes import Graph


def test_codes_take_the_name_of_the_node_unless_it_is_taken():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 300), "uint8")) -> R.Tuple(R.Tensor((2, 300), "uint8")):
            with R.dataflow():
                x_codes = R.add(x, R.const(1, "uint8"))
                relu_codes = R.add(x_codes, R.const(2, "uint8"))
                conv_sums = R.add(relu_codes, R.const(3, "uint8"))
                conv_codes = R.add(conv_sums, R.const(4, "uint8"))
                out = (conv_codes,)
                R.output(out)
            return out

    check(NameValues, Before, Before, codes("uint8", 2, 300))
    names = [var.name for var, _ in Graph(NameValues()(Before)).bindings]
    assert names[:-1] == ["x_codes", "relu", "conv_sums", "conv"]
