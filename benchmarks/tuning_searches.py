"""The search of `tvmq tune` beside others: its parts, a learned ranker, and all cuts there are.

    python -m benchmarks.tuning_searches [--cases ...] [--seeds 2] [--trials 512] [--only S ...]
    python -m benchmarks.tuning_searches --layers ...
    python -m benchmarks.tuning_searches --cuts-of ...

Networks and machines are those of `tuning.py`; a case is network:machine:precision. Prints Markdown
tables: how much faster than the rule's program each search's is in each case, with a column per
seed, and the geometric means after some and after all trials, with trials per CPU second. "ranker"
is `cut_ranker.py`, "ranker, warm" the same that has learned from searches in other networks on
other machines.

--layers takes the layer of a case that takes most cycles, with those alike, alone in a program;
times every cut of it, and prints the fewest cycles beside what the searches find, and in which
trial. --cuts-of times every cut of every layer of a network, one layer after the other, until none
gains.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import cycle

import numpy as np

from benchmarks.cut_ranker import Examples, Ranker, ranked_search
from benchmarks.tuning import Memory, Row, geometric_mean, integers, machine, tuned
from relay_passes.place import programs_of
from targets.layers import Layer
from targets.npu.kinds.table import kind_of
from targets.npu.trials import Trials
from tvmq.tune.search import Cut, Found, Mix, search
from tvmq.tune.trial import Trial, cycles_of

NEVER = 10**9
SEARCHES = {
    "search": Mix(),
    "no turns": Mix(turns=NEVER),
    "turns first": Mix(turns=1),
    "turns alone": Mix(turns=1, structures=NEVER),
    "estimate": Mix(near=0, by_estimate=8),
    "random": Mix(first=0, near=0, by_estimate=0),
}
RANKERS = ("ranker", "ranker, warm")
LEARNED_FROM = ("digits", "mobilenet_small", "vit_small"), ("e256", "drawn3", "drawn4", "drawn5")
"""Networks and machines whose trials the warm ranker has seen, but for the case's own."""
LEARNED_TRIALS = 256
SHORTER = (64, 128, 256)
"""Trials after which the result is printed, too."""
CASES = ",".join(
    f"{network}:{spec}:w8a8"
    for spec in ("m2048", "drawn1", "drawn2")
    for network in LEARNED_FROM[0]
)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default="", help="network:machine:precision,...")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--trials", type=int, default=512)
    searches = (*SEARCHES, *RANKERS)
    parser.add_argument("--only", nargs="+", choices=searches, default=searches)
    parser.add_argument("--layers", default="", help="cases, the slowest layer of each")
    parser.add_argument("--cuts-of", default="", help="cases, all layers one by one")
    options = parser.parse_args()
    alone = options.layers or options.cuts_of
    asked = options.cases or ("" if alone else CASES), options.layers, options.cuts_of
    if any(case.count(":") != 2 for text in asked for case in text.split(",") if text):
        parser.error("a case is network:machine:precision")
    for text, show in zip(asked, (print_searches, print_layers, print_cuts), strict=True):
        if text:
            cases = [case.split(":") for case in text.split(",")]
            show(cases, options.only, options.seeds, options.trials)
    return 0


def searching(name: str, network: str, spec: str, cuts_alone: bool = False) -> Callable[..., Found]:
    """A search by its name, for a case."""
    mix = SEARCHES.get(name)
    if cuts_alone:
        mix = replace(mix or Mix(near=0, by_estimate=6), turns=NEVER, structures=NEVER)
    if name in SEARCHES:
        return partial(search, mix=mix)
    before = learned(network, spec) if name == "ranker, warm" else None
    return lambda *given, **named: ranked_search(*given, **named, ranker=Ranker(before), mix=mix)


def learned(network: str, spec: str) -> Examples:
    """Trials of the networks and machines that aren't these."""
    networks, machines = LEARNED_FROM
    made = [
        examples(name, other)
        for name in networks
        for other in machines
        if name != network and other != spec
    ]
    return Examples(*map(np.concatenate, zip(*made, strict=True)))


@cache
def examples(network: str, spec: str) -> Examples:
    """Trials of a search for cuts at random, w8a8."""
    ranker = Ranker()
    mix = Mix(turns=NEVER, structures=NEVER, near=2, by_estimate=2)
    searched = partial(ranked_search, ranker=ranker, mix=mix)
    tuned(integers(network, "w8a8"), machine(spec), LEARNED_TRIALS, 0, searched)
    return ranker.examples


def print_searches(
    cases: Sequence[Sequence[str]], names: Sequence[str], seeds: int, trials: int
) -> None:
    """A line per search and case, and one per search."""
    print(f"| network | machine | precision | search | ratio after {trials} trials, by seed |")
    print("|---|---|---|---|---|")
    rows: dict[str, list[Row]] = {name: [] for name in names}
    for network, spec, precision in cases:
        for name in names:
            how = searching(name, network, spec)
            given = integers(network, precision), machine(spec), trials
            made = [tuned(*given, seed, how) for seed in range(seeds)]
            rows[name] += made
            ratios = ", ".join(f"{row.ratio:.4f}" for row in made)
            print(f"| {network} | {spec} | {precision} | {name} | {ratios} |", flush=True)
    shorter = [number for number in SHORTER if number < trials]
    heads = [*(f"{number} trials" for number in shorter), f"{trials} trials", "by seed"]
    print(f"\n| search | {' | '.join(heads)} | trials / CPU s |\n|{'---|' * (len(heads) + 2)}")
    for name, made in rows.items():
        means = [
            geometric_mean([row.before / row.best[:number][-1] for row in made])
            for number in (*shorter, trials)
        ]
        by_seed = [geometric_mean([row.ratio for row in made[n::seeds]]) for n in range(seeds)]
        speed = sum(row.trials for row in made) / sum(row.seconds for row in made)
        cells = [*(f"{mean:.4f}" for mean in means), ", ".join(f"{each:.4f}" for each in by_seed)]
        print(f"| {name} | {' | '.join(cells)} | {speed:.1f} |", flush=True)


def print_layers(
    cases: Sequence[Sequence[str]], names: Sequence[str], seeds: int, trials: int
) -> None:
    """A line per case and search: the layers that take most, alone in a program."""
    print("\n| of | machine | cuts | by rule | fewest | search | cycles | trials, by seed |")
    print("|---|---|---|---|---|---|---|---|")
    for network, spec, precision in cases:
        program = slowest(network, spec, precision)
        space = [cut for _, cut in program.space(program.rule, 0)]
        (name,) = program.made_by
        every = [cycles_by(program, {name: cut}) for cut in space]
        fewest = min(cycles for cycles in every if cycles)
        for how in names:
            find = searching(how, network, spec, cuts_alone=True)
            found = [find(program, min(trials, len(space)), n, Memory()) for n in range(seeds)]
            after = ", ".join(f"{each.after:,}" for each in found)
            until = ", ".join(str(1 + each.best.index(each.after)) for each in found)
            cells = f"{after} | {until}"
            heads = f"| {network} | {spec} | {len(space)} | {found[0].before:,} | {fewest:,} |"
            print(f"{heads} {how} | {cells} |", flush=True)


def slowest(network: str, spec: str, precision: str) -> Trials:
    """Of the layers of a network that are alike, those that take most cycles: one of them."""
    takes: dict[Hashable, int] = {}
    first: dict[Hashable, Layer] = {}
    for parts in programs_of(integers(network, precision), machine(spec)):
        rule = Trials(parts.layers, parts.inputs, parts.outputs, machine(spec)).rule
        for each in rule.plan.layers:
            form = kind_of(each.job.layer).form(each.job)
            takes[form] = takes.get(form, 0) + each.cost.cycles
            first.setdefault(form, each.job.layer)
    layer = first[max(takes, key=takes.__getitem__)]
    return Trials([layer], layer.inputs, [layer.output], machine(spec))


def print_cuts(
    cases: Sequence[Sequence[str]], names: Sequence[str], seeds: int, trials: int
) -> None:
    """A line per case and search, all of which change cuts alone."""
    print("\n| network | machine | by rule | layer by layer | search | cycles, by seed |")
    print("|---|---|---|---|---|---|")
    for network, spec, precision in cases:
        (parts,) = programs_of(integers(network, precision), machine(spec))
        program = Trials(parts.layers, parts.inputs, parts.outputs, machine(spec))
        fewest, made = layer_by_layer(program)
        for how in names:
            find = searching(how, network, spec, cuts_alone=True)
            found = [find(program, trials, n, Memory()) for n in range(seeds)]
            if any(each.choices.turns.leads or each.choices.stays for each in found):
                raise SystemExit(f"{network} has fewer cuts than {trials}: give fewer --trials")
            cells = ", ".join(f"{each.after:,}" for each in found)
            heads = f"| {network} | {spec} | {found[0].before:,} | {fewest:,} ({made:,} trials) |"
            print(f"{heads} {how} | {cells} |", flush=True)


def layer_by_layer(program: Trials) -> tuple[int, int]:
    """Fewest cycles by all cuts of one layer after the other, until none gains; and the trials."""
    cuts: dict[str, Cut] = {}
    fewest, made, stale = program.cycles(program.rule), 0, 0
    names = [each.job.output.value.name for each in program.rule.plan.layers]
    for name in cycle(names):
        space = [cut for _, cut in program.space(program.rule, program.made_by[name])]
        timed = [(cycles_by(program, {**cuts, name: cut}), n) for n, cut in enumerate(space)]
        made += len(timed)
        best, n = min((each for each in timed if each[0]), default=(fewest, 0))
        stale = stale + 1 if best >= fewest else 0
        if best < fewest:
            fewest, cuts[name] = best, space[n]
        if stale == len(names):
            return fewest, made
    raise AssertionError  # a cycle has no end


def cycles_by(program: Trials, cuts: dict[str, Cut]) -> int:
    """Of the whole program; 0 if it can't be made."""
    return cycles_of(program, Trial(replace(program.rule.choices, cuts=cuts), None))


if __name__ == "__main__":
    sys.exit(main())
