"""Convolutions: GEMM or DWC, and REQ. Dense layers and average pooling are convolutions, too.

What a tiling is, which there are, what they cost and the loops of one: ``targets/npu/convolution``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from functools import partial

from targets.arithmetic import INT32_MAX, MAX_FRACTION
from targets.errors import CapacityError
from targets.layers import Conv2d, Factor, Value, Weights
from targets.npu.convolution.geometry import ConvGeometry
from targets.npu.convolution.loop_nest import schedule_convolution
from targets.npu.convolution.tile_cost import ConvTiling, estimate, price_of
from targets.npu.convolution.tiling import no_tiling_fits, tilings
from targets.npu.convolution.tiling_space import misfit, tiling_space
from targets.npu.kinds.cost import Cost
from targets.npu.kinds.kind import Kind, Padding, Rule, broken_requantization, wide
from targets.npu.machine.spec import NpuSpec
from targets.npu.schedule.job import Job
from targets.npu.schedule.scheduled import Scheduled


class Convolution(Kind[Conv2d, ConvTiling]):
    """A choice is a tiling."""

    makes_near = True

    def __init__(self) -> None:
        # By geometry: networks repeat their layers.
        self._fastest: dict[Hashable, ConvTiling] = {}
        self._prices: defaultdict[Hashable, dict[ConvTiling, int]] = defaultdict(dict)
        self._costs: defaultdict[Hashable, dict[ConvTiling, Cost]] = defaultdict(dict)

    def broken_rules(self, layer: Conv2d, spec: NpuSpec) -> Iterator[tuple[Rule, str]]:
        """All that is about products, sums and their requantization."""
        yield from wide(layer.inputs)
        if isinstance(layer.right, Factor):
            yield from _no_weights(layer, layer.right)
        if 8 not in spec.array.precisions:
            yield Rule.PRECISION, f"array.precisions is {spec.array.precisions}"
        fraction = layer.requantize.fraction if layer.requantize else 0
        worst = layer.max_sum << fraction
        scaled = layer.right.factors if isinstance(layer.right, Weights) else None
        if scaled is not None and fraction + scaled.fraction > MAX_FRACTION:
            yield Rule.SHIFTS, f"{fraction + scaled.fraction} fraction bits, of factors some"
        if worst > INT32_MAX:
            yield Rule.SUMS, f"a sum can reach {worst}"
        if layer.requantize is not None:
            yield from broken_requantization(layer.requantize, borders=True)

    def choices(self, job: Job[Conv2d]) -> Iterator[ConvTiling]:
        """Tilings of few sizes, large blocks and tall stripes first."""
        return tilings(ConvGeometry(job))

    def too_large(self, job: Job[Conv2d]) -> str:
        """Not even one row of output with one tile's weights fits."""
        return no_tiling_fits(ConvGeometry(job))

    def choose(self, job: Job[Conv2d]) -> ConvTiling:
        """The tiling with the fewest estimated cycles that do not pass under the layer before.

        What it leaves the vector unit counts, too.
        """
        g = ConvGeometry(job)
        best = self._fastest.get(g.key)
        if best is None:
            best = min(tilings(g), key=partial(self._price, g), default=None)
            if best is None:
                raise CapacityError(no_tiling_fits(g))
            self._fastest[g.key] = best
        return best

    def space(self, job: Job[Conv2d]) -> list[ConvTiling]:
        """All even cuts that fit."""
        return tiling_space(ConvGeometry(job))

    def form(self, job: Job[Conv2d]) -> Hashable:
        """Of its geometry."""
        return ConvGeometry(job).key

    def misfit(self, job: Job[Conv2d], choice: ConvTiling) -> str:
        """A size that is none of the layer's, or a memory that is too small."""
        if not isinstance(choice, ConvTiling):
            return f"{job.layer.name}: {choice} is no tiling"
        return misfit(ConvGeometry(job), choice)

    def price(self, job: Job[Conv2d], choice: ConvTiling) -> int:
        """What ``choose`` compares."""
        return self._price(ConvGeometry(job), choice)

    def _price(self, g: ConvGeometry, choice: ConvTiling) -> int:
        """The same, whatever else lies in ACT."""
        known = self._prices[g.costs_key]
        if (price := known.get(choice)) is None:
            price = known[choice] = price_of(g, choice)
        return price

    def cost(self, job: Job[Conv2d], choice: ConvTiling) -> Cost:
        """What made the compiler choose."""
        g = ConvGeometry(job)
        known = self._costs[g.costs_key]
        if (cost := known.get(choice)) is None:
            cost = known[choice] = estimate(g, choice)
        return cost

    def schedule(self, job: Job[Conv2d], choice: ConvTiling) -> Scheduled:
        """``npu.gemm`` or ``npu.dwconv``, and ``npu.requantize``."""
        return schedule_convolution(job, choice)

    def bytewise(self, layer: Conv2d, bits: Mapping[str, int]) -> Iterable[str]:
        """Whole pixels, and groups, in whole bytes; a residual is as wide as the output."""
        values = [*layer.inputs, layer.output]
        ragged = [v.name for v in values if v.shape[2] * bits[v.name] % 8]
        if isinstance(layer.right, Factor):
            ragged.append(layer.right.value.name)  # the array's weights are bytes
        residual = layer.requantize.residual if layer.requantize else None
        if residual is not None and bits[residual.value.name] != bits[layer.output.name]:
            ragged += [residual.value.name, layer.output.name]
        if layer.groups > 1 and not layer.depthwise:
            ragged += [v.name for v in values if v.shape[2] // layer.groups * bits[v.name] % 8]
        if isinstance(layer.right, Weights) and layer.right.factors is not None:
            channels = layer.right.factors.channels  # a pass of the array begins with a whole byte
            ragged += [layer.input.name] if channels * bits[layer.input.name] % 8 else []
        return ragged

    def padding(self, layer: Conv2d, read: Value, bits: int) -> Padding | None:
        """Zero points around its input, nothing around a residual; weights come from DRAM."""
        if isinstance(layer.right, Factor) and read.name == layer.right.value.name:
            return None
        if read.name != layer.input.name:
            return Padding()
        return Padding(layer.padding, layer.input_zero_point)


def _no_weights(layer: Conv2d, right: Factor) -> Iterator[tuple[Rule, str]]:
    """Why a tensor can't be loaded as weights: they are signed, and nothing is subtracted."""
    if right.value.dtype != "int8":
        yield Rule.WEIGHTS, f"'{right.value.name}' is {right.value.dtype}"
    for name, zero in (
        (right.value.name, right.zero_point),
        (layer.input.name, layer.input_zero_point),
    ):
        if zero:
            yield Rule.WEIGHTS, f"the zero point of '{name}' is {zero}"
