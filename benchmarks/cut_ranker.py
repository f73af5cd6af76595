"""A search whose cuts are chosen by a learned model: gradient boosted trees, of XGBoost.

They learn from trials, of this search and of others, how many cycles a cut takes beside its
estimate. What they are told is the cut, the layer, where its tensors lie, the machine and the
estimate. Cuts of a layer are tried by predicted cycles, and some at random. It learns again before
each batch.

    pip install '.[bench]'
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import xgboost

from targets.layers import Conv2d
from targets.npu.convolution.tile_cost import ConvTiling
from targets.npu.kinds.table import KINDS, Planned, kind_of
from targets.npu.trials import Trials
from tvmq.tune.processes import Processes
from tvmq.tune.search import BATCH, Cut, Found, Known, Mix, Search
from tvmq.tune.workers import Workers

TREES = {"max_depth": 5, "eta": 0.15, "nthread": 1, "objective": "reg:squarederror", "seed": 0}
ROUNDS = 40
BEFORE_ROUNDS = 150
"""Of trees that learn from other searches."""
FEWEST = 2 * BATCH
"""Trials of cuts that are learned from; as long as there are fewer, the estimate ranks."""
AT_RANDOM = 2
"""Of a task's later batches."""


class Examples(NamedTuple):
    """Cuts that were timed.

    Attributes:
        features: float32[n, features].
        residuals: float32[n], the logarithm of cycles by estimated cycles.
    """

    features: np.ndarray
    residuals: np.ndarray


class Ranker:
    """Predicts the residual of a cut's estimate."""

    def __init__(self, before: Examples | None = None) -> None:
        """Learn from other searches first; what is added later is learned beside it."""
        self._before = None
        if before is not None:
            self._before = _learned(xgboost.DMatrix(*before), BEFORE_ROUNDS)
        self._features: list[list[float]] = []
        self._residuals: list[float] = []
        self._trees: xgboost.Booster | None = None

    @property
    def examples(self) -> Examples:
        """What was added."""
        return Examples(np.array(self._features, np.float32), np.array(self._residuals, np.float32))

    def add(self, features: list[float], residual: float) -> None:
        """A cut that was timed."""
        self._features.append(features)
        self._residuals.append(residual)
        self._trees = None

    def residuals(self, features: list[list[float]]) -> np.ndarray:
        """Predicted, of each cut."""
        asked = self._based(np.array(features, np.float32))
        if self._trees is None and len(self._residuals) >= FEWEST:
            known = self.examples
            self._trees = _learned(self._based(known.features, known.residuals), ROUNDS)
        if self._trees is not None:
            return self._trees.predict(asked)
        return self._before.predict(asked) if self._before else np.zeros(len(features))

    def _based(self, features: np.ndarray, residuals: np.ndarray | None = None) -> xgboost.DMatrix:
        """What the trees of this search see: those of the others are where they begin."""
        base = None
        if self._before:
            base = self._before.predict(xgboost.DMatrix(features))
        return xgboost.DMatrix(features, residuals, base_margin=base)


def _learned(examples: xgboost.DMatrix, rounds: int) -> xgboost.Booster:
    return xgboost.train(TREES, examples, rounds)


def ranked_search(
    trials: Trials,
    budget: int,
    seed: int,
    known: Known,
    processes: Processes | None = None,
    ranker: Ranker | None = None,
    mix: Mix | None = None,
) -> Found:
    """Like ``search``, with cuts by a ranker; what it learns is left in it."""
    mix = mix or Mix(near=0, by_estimate=BATCH - AT_RANDOM)
    with Workers(trials, processes) as workers:
        return RankedSearch(
            Ranker() if ranker is None else ranker, trials, workers, budget, seed, known, None, mix
        ).run()


class RankedSearch(Search):
    """The search, with what is next by estimate replaced by what is next by prediction."""

    def __init__(self, ranker: Ranker, *others: Any) -> None:
        super().__init__(*others)
        self.ranker = ranker
        self._taken: dict[tuple[str, Cut, int], int] = {}

    def _candidates(self, task: Any, space: list[Cut], current: Cut) -> list[Cut]:
        planned = self.base.plan.layers[task.layers[0]]
        asked = [features(planned, cut) for cut in space]
        prices = [kind_of(planned.job.layer).price(planned.job, cut) for cut in space]
        predicted = np.array(prices) * np.exp(self.ranker.residuals(asked))
        ranked = [space[n] for n in np.argsort(predicted, kind="stable")]
        return super()._candidates(task, ranked, current)

    def _timed(self, batch: Sequence[Any]) -> list[tuple[int, int]]:
        timed = super()._timed(batch)
        for change, (before, after) in zip(batch, timed, strict=True):
            cut = change.choices.cuts.get(change.name)
            if cut is not None and after:
                planned = self.base.plan.layers[change.layers.start]
                takes = max(self._takes(planned) + after - before, 1)
                price = kind_of(planned.job.layer).price(planned.job, cut)
                self._taken[change.name, cut, price] = takes
                self.ranker.add(features(planned, cut), math.log(takes / price))
        return timed

    def _takes(self, planned: Planned) -> int:
        """Cycles of a layer as it is: the rule's take what is estimated, others more or less."""
        price = kind_of(planned.job.layer).price(planned.job, planned.choice)
        return self._taken.get((planned.job.output.value.name, planned.choice, price), price)


def features(planned: Planned, cut: Cut) -> list[float]:
    """Of a layer that could be cut so."""
    job, layer = planned.job, planned.job.layer
    kind, spec = kind_of(layer), planned.job.spec
    sizes = [float(v) for v in vars(cut).values()] if isinstance(cut, ConvTiling) else [float(cut)]
    sizes += [math.nan] * (len(vars(ConvTiling)["__dataclass_fields__"]) - len(sizes))
    convolution = [math.nan] * 7
    if isinstance(layer, Conv2d):
        shape = (*layer.weight_shape, layer.right.bits, layer.groups, layer.strides[0])
        convolution = [float(each) for each in shape]
    cost, source = kind.cost(job, cut), (*job.inputs, job.output)[0]
    busy = (cost.ahead, cost.part, cost.array, cost.data, cost.fetch, cost.vector, cost.decode)
    memories, dma = spec.sram, spec.dma
    return [
        float(list(KINDS).index(type(layer))),
        *sizes,
        *convolution,
        *job.output.shape,
        *source.shape,
        *(source.bits, job.output.bits, source.near, job.output.near),
        *(job.act_bytes, job.beside, job.sharing, job.follows),
        *(spec.array.rows, spec.array.cols, memories.wgt.bytes, memories.acc.bytes),
        *(memories.par.bytes, dma.bytes_per_cycle, dma.read_latency, spec.vu.mult_lanes),
        *(cost.cycles, *(each / cost.cycles for each in busy)),
        kind.price(job, cut) / kind.price(job, planned.choice),
    ]
