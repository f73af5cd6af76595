"""Borders of activations, for the weights and steps that there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tvmq.reconstruct.refinement import Refinement

if TYPE_CHECKING:
    from tvmq.reconstruct.unit_work import UnitWork


@dataclass(frozen=True)
class Borders(Refinement):
    name: ClassVar[str] = "borders"
    how: str = "measured-channel"

    def propose(self, work: UnitWork) -> None:
        import os
        import torch
        from tvmq.reconstruct.border_search import measured_borders, derived_borders
        from tvmq.reconstruct.learned_borders import LearnedBorders
        from tvmq.reconstruct.unit_state import apply_state, state_of
        from tvmq.reconstruct.unit_work import unit_loss
        from tvmq.reconstruct.unit_cache import BATCH

        unit, cache = work.unit, work.cache
        regions = cache.regions
        names = []
        for n in unit.unit.values:
            v = regions.values[n]
            layer = regions.layers.get(v.layer)
            if layer is None or layer.kind not in ("conv", "linear"):
                continue
            if unit.steps[n].high - unit.steps[n].low > 15:
                continue
            names.append(n)
        rows = slice(0, min(work.images, 448))
        log = []

        def loss():
            return unit_loss(unit, cache, work.loss, rows), work.held_out_loss()

        base = state_of(unit)
        log.append(("base", *loss()))
        kinds = self.how.split("+")
        def inside(n): return n not in unit.unit.outputs
        for kind in kinds:
            before = state_of(unit)
            start = loss()[0]
            if kind.startswith("measured"):
                for n in names:
                    if kind.endswith("inside") and not inside(n): continue
                    t = measured_borders(unit, work.exact, cache, n, rows.stop, by_channel="channel" in kind)
                    unit.steps[n].borders = LearnedBorders(t)
                    if "seq" in kind:
                        work.correct_biases()
                work.correct_biases()
            elif kind == "derived":
                for n in names:
                    readers = [l.name for l in regions.layers.values() if n in l.inputs and l.name in unit.weights]
                    if not readers: continue
                    w = unit.weights[readers[0]].weight
                    t = derived_borders(unit, n, readers, unit.steps[n])
                    if t.shape[0] not in (1,) and t.shape[0] != unit.weights[regions.values[n].layer].weight.shape[0]: continue
                    unit.steps[n].borders = LearnedBorders(t)
                work.correct_biases()
            elif kind.startswith("learn"):
                # learnN[c|t]iters
                deg = int(kind[5]); by = kind[6]; its = int(kind[7:].split("_")[0]); lr = float((kind.split("_")+["3e-3"])[1])
                params = []
                for n in names:
                    if unit.steps[n].borders is None:
                        C = unit.weights[regions.values[n].layer].weight.shape[0]
                        unit.steps[n].borders = LearnedBorders.half_up(C if by == "c" else 1, unit.steps[n].high - unit.steps[n].low)
                    params.append(unit.steps[n].borders.learn(deg))
                corr = [b.correction.requires_grad_(True) for b in unit.biases.values()]
                if params:
                  opt = torch.optim.Adam([{"params": params, "lr": lr}, {"params": corr, "lr": 1e-3}])
                  import math
                  sch = torch.optim.lr_scheduler.LambdaLR(opt, lambda i: (1 + math.cos(math.pi * i / its)) / 2)
                  for i in range(its):
                    which = torch.randint(work.images, (32,), generator=work.generator)
                    l = torch.zeros(())
                    for name, out in zip(unit.unit.outputs, unit(*(cache.quantized.rows(n, which) for n in unit.unit.inputs))):
                        l = l + work.loss(out - cache.exact.rows(name, which))
                    opt.zero_grad(); l.backward(); opt.step(); sch.step()
                for n in names:
                    unit.steps[n].borders.harden()
                for b in unit.biases.values(): b.correction.requires_grad_(False)
            after = loss()
            log.append((kind, *after))
            if not after[0] < start:
                apply_state(unit, before)
        print(unit.unit.name, [n for n in names], " ".join(f"{k}:{a:.4g}/{h:.4g}" for k, a, h in log), flush=True)
