"""Where the scratchpads of a layer lie."""

from __future__ import annotations

import pytest

from targets.npu.emit.codegen import Block, Scratchpads


@pytest.mark.parametrize(("of", "begin"), [(192, 64), (128, 64), (127, 0)])
def test_a_layer_lies_behind_the_one_before_where_it_fits(of: int, begin: int) -> None:
    """To the last byte; else over it, from the beginning."""
    scratchpads = Scratchpads()
    scratchpads.take([Block(0, 64, of)])
    scratchpads.take([Block(0, 64, of)])
    assert scratchpads.taken == [Block(begin, 64, of)]
