"""From a run of layers to one program.

    plan the layers (layer_plan.py) -> place tensors in DRAM -> schedule each layer ->
    generate its instructions -> the order in which they are issued (issue_order.py) ->
    tokens from hazards -> HALT

What does not stay in ACT lives in the arena, a region of DRAM whose bytes are reused once nobody
reads them; tensors that belong to the network lie among the constants.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby

import numpy as np

from targets import collector
from targets.layers import Constant, Layer, Value
from targets.npu.cascade import merged
from targets.npu.choices import NO_CHOICES, Choices, Leads, Order, Turns
from targets.npu.emit.codegen import Block, Scratchpads, generate_together
from targets.npu.emit.emitted import Emission, Place
from targets.npu.emit.tokens import derive_tokens
from targets.npu.issue_order import IssueClock
from targets.npu.layer_plan import LayerPlan, plan_layers
from targets.npu.machine import isa
from targets.npu.machine.program import ARENA, CONSTANTS, INPUTS, OUTPUTS, LayerSpan, Program
from targets.npu.machine.spec import NpuSpec
from targets.npu.price.timing import STEP, Records, Table, cycles_of, steps_of
from targets.npu.schedule.storage import host_bytes
from targets.npu.written import Written

_ALIGN = 64
_ITEMSIZE = {"int8": 1, "uint8": 1, "int32": 4}
NO_LEAD = Leads()
TIMED = 2000
"""Instructions that are timed to find a program's order of issue."""
PLACES_KEPT = 4
"""Of instructions that are remembered, with scratchpads in so many places."""


@collector.paused()
def compile_layers(
    layers: Sequence[Layer],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    spec: NpuSpec,
    choices: Choices = NO_CHOICES,
) -> Program:
    """Compile layers, given in order, into a program for one image.

    Args:
        layers: layers that ``constraints.refusal`` accepts.
        inputs: tensors that come from outside; they lie one behind the other in region 2.
        outputs: tensors that are needed outside; one behind the other in region 3.
        spec: the machine.
        choices: that take the place of the compiler's own.

    Raises:
        CapacityError: a layer doesn't fit, or one of the choices can't be made; says why.
    """
    plan = plan_layers(layers, inputs, outputs, spec, cycles_together, choices)
    constants = Constants()
    places, arena_bytes = place_tensors(plan, inputs, outputs, constants)
    written = layer_instructions(plan, together(plan), places, constants, spec)
    made = issued(written, plan, spec, choices.turns)
    runs = _runs(made.owners.tolist())
    return Program(
        machine=spec.name,
        digest=spec.digest,
        instructions=tuple(made.instructions),
        constants=constants.bytes(),
        arena_bytes=arena_bytes,
        input_bytes=sum(host_bytes(v) for v in inputs),
        output_bytes=sum(host_bytes(v) for v in outputs),
        layers=tuple(
            LayerSpan(tuple(runs[index]), layer.name, layer.source, layer.kind, layer.macs)
            for index, layer in enumerate(planned.job.layer for planned in plan.layers)
        ),
    )


def cycles_together(plan: LayerPlan, span: range, spec: NpuSpec) -> int:
    """Cycles that some layers take by themselves, about, from their instructions.

    Args:
        plan: of all layers.
        span: those in question; a cascade is in it whole.
        spec: the machine.
    """
    constants = Constants()
    inside = [each for each in together(plan) if each.start in span]
    read = [value for n in span for value in plan.layers[n].job.layer.inputs]
    inputs = list({value.name: value for value in read}.values())
    places, _ = place_tensors(plan, inputs, (), constants)
    return IssueClock(layer_instructions(plan, inside, places, constants, spec), spec).least()


class Emissions:
    """The last instructions that were made, by all that they depend on but their scratchpads.

    Where those lie elsewhere, so do the bytes that instructions touch, and nothing else changes but
    the addresses in them. Those stay as they were: what is remembered is to be timed.
    """

    def __init__(self, most: int = 0) -> None:
        """Remember those of so many spans of layers."""
        self._most = most
        self._known: OrderedDict[Hashable, dict[tuple[Block, ...], Written]] = OrderedDict()

    def of(self, key: Hashable, scratchpads: Scratchpads, make: Callable[[], Written]) -> Written:
        """What ``make`` gives, or gave before."""
        known = self._known.get(key)
        if known is None:
            made = make()
            if self._most:
                self._known[key] = {tuple(scratchpads.taken): made}
                if len(self._known) > self._most:
                    self._known.popitem(last=False)
            return made
        self._known.move_to_end(key)
        before, made = next(iter(known.items()))
        scratchpads.take(before)
        now = tuple(scratchpads.taken)
        if now not in known:
            if len(known) == PLACES_KEPT:
                known.popitem()
            known[now] = _moved(made, before, now)
        return known[now]


def layer_instructions(
    plan: LayerPlan,
    spans: Iterable[range],
    places: Mapping[str, Place],
    constants: Constants,
    spec: NpuSpec,
    known: Emissions | None = None,
) -> Written:
    """The instructions of layers, those of a span together, in an order that is right one by one.

    Args:
        plan: of all layers.
        spans: of those in question, as ``together`` gives them.
        places: of the tensors that they read and make.
        constants: get what they need.
        spec: the machine.
        known: of calls before with layers of the same program, the same constants and the same
            machine.
    """
    scratchpads, known = Scratchpads(), known or Emissions()
    parts = [Written.of(Emission.of([], 0), spec)]
    for span in spans:
        working = [n for n in span if not plan.layers[n].idle]
        if not working:
            continue
        touching = [r for r in plan.residents if r.first in span or (r.rolling and r.last in span)]
        jobs = [plan.layers[n].job for n in working]
        tensors = {v.name for job in jobs for v in (*job.layer.inputs, job.layer.output)}
        key = (
            *(plan.layers[n] for n in working),
            *touching,
            *((name, places[name]) for name in sorted(tensors)),
        )
        make = partial(_of_span, span, working, plan, places, constants, spec, scratchpads)
        parts.append(known.of(key, scratchpads, make))
    return Written.joined(parts)


def _of_span(
    span: range,
    working: Sequence[int],
    plan: LayerPlan,
    places: Mapping[str, Place],
    constants: Constants,
    spec: NpuSpec,
    scratchpads: Scratchpads,
) -> Written:
    """The instructions of layers that work together."""
    functions = []
    for n in working:
        planned = plan.layers[n]
        layer, scheduled = planned.job.layer, planned.scheduled
        names = [b.name for b in scheduled.func.params]
        where = {
            n: constants.add(scheduled.constants[n]) for n in names if n in scheduled.constants
        }
        rest = [n for n in names if n not in where]
        for name, tensor in zip(rest, [*layer.inputs, layer.output], strict=True):
            where[name] = places[tensor.name]
        functions.append((n, planned.lowered, where))
    left = sum(plan.layers[n].job.act_bytes for n in working)
    parts = generate_together(functions, _with_act(spec, left), scratchpads)
    fills = [
        [fill for r in plan.residents if r.first == n for fill in r.border_fills()] for n in working
    ]
    filled = [
        _with_fills(made, Emission.of(border, n))
        for n, made, border in zip(working, parts, fills, strict=True)
    ]
    return Written.of(_in_one_order(span, plan, filled), spec)


def _moved(made: Written, before: Sequence[Block], now: Sequence[Block]) -> Written:
    """Instructions that touch the bytes of other blocks; of tensors in ACT the same as before."""
    for memory, (old, new) in enumerate(zip(before, now, strict=True)):
        which = range(old.begin, old.begin + old.bytes)
        made = made.moved(memory, which, new.begin - old.begin)
    return made


@dataclass(frozen=True)
class Issued:
    """A program's instructions as they are issued, HALT behind them.

    Attributes:
        order: one of ``choices.ORDERS``.
        written: the instructions.
        positions: of these, in the order of issue, int64[n]; -1 is a NOP.
        owners: their layers, int64[n]; a NOP is the next one's.
        steps: ``STEP[n + 1]``, with tokens and HALT.
        spec: the machine.
    """

    order: Order
    written: Written
    positions: Table
    owners: Table
    steps: Records
    spec: NpuSpec

    @property
    def instructions(self) -> list[isa.Instruction]:
        """With tokens, and HALT at the end."""
        columns = (self.positions, *(self.steps[name] for name in ("unit", "pops", "pushes")))
        rows = zip(*(column.tolist() for column in columns), strict=False)  # but for HALT
        made = [
            isa.Nop(on=unit, pop=pop)
            if position < 0
            else self.written.instruction(position, pop, push)
            for position, unit, pop, push in rows
        ]
        return [*made, isa.Halt()]

    @cached_property
    def cycles(self) -> int:
        """By the timing model.

        Raises:
            TimingError: units wait for each other for ever.
        """
        return cycles_of(self.steps, self.spec)


def issued(
    written: Written, plan: LayerPlan, spec: NpuSpec, turns: Turns = NO_CHOICES.turns
) -> Issued:
    """Instructions as they are issued.

    Args:
        written: from ``layer_instructions``.
        plan: of the layers.
        spec: the machine.
        turns: in which order. Where it is to be the fastest one, those that are best by the clock
            of ``issue_order`` are timed, as many as ``TIMED`` allows, but one at least is taken.
    """
    clock = IssueClock(written, spec)
    found = [(turns.order, clock.order(turns.order))] if turns.order else clock.fastest()
    found = found[: max(1, TIMED // max(1, len(written)))]
    if turns.leads:
        names = [each.job.output.value.name for each in plan.layers]
        by_layer = np.array([turns.leads.get(name, NO_LEAD) for name in names])
        leads = by_layer[written.owners, written.steps["unit"]]
        if leads.any():
            found = [(name, clock.with_leads(order, leads)) for name, order in found]
    made = [_with_tokens(name, order, clock) for name, order in found]
    return made[0] if len(made) == 1 else min(made, key=lambda each: each.cycles)


def together(plan: LayerPlan) -> Iterator[range]:
    """The layers in order: those of a cascade together, the others by themselves."""
    spans = {cascade.span.start: cascade.span for cascade in plan.cascades}
    n = 0
    while n < len(plan.layers):
        span = spans.get(n, range(n, n + 1))
        yield span
        n = span.stop


def _in_one_order(span: range, plan: LayerPlan, parts: Sequence[Emission]) -> Emission:
    """The instructions of layers that work together, in an order that is right one by one."""
    whole = parts[0]
    between = {r.last: r for r in plan.residents if r.rolling and r.last in span}
    for n, part in zip(span[1:], parts[1:], strict=True):
        rows = between[n]
        closing = Emission.of(rows.closing_fills(), rows.first)
        assert rows.rolling is not None
        whole = merged(Emission.joined([whole, closing]), part, rows.first, rows.rolling)
    return whole


class Constants:
    """Region 0: every constant once."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._known: dict[bytes, int] = {}

    def add(self, array: np.ndarray) -> Place:
        """Where an array lies, which may be where an equal one does."""
        data = np.ascontiguousarray(array).tobytes()
        if data not in self._known:
            self._data += bytes(-len(self._data) % _ALIGN)
            self._known[data] = len(self._data)
            self._data += data
        return Place(CONSTANTS, self._known[data], array.dtype.itemsize, dram=True)

    def bytes(self) -> bytes:
        """All of them."""
        return bytes(self._data)


def _with_act(spec: NpuSpec, act_bytes: int) -> NpuSpec:
    """The machine with as much of ACT as a layer is left."""
    act = spec.sram.act.model_copy(update={"bytes": act_bytes})
    return spec.model_copy(update={"sram": spec.sram.model_copy(update={"act": act})})


def _with_fills(made: Emission, fills: Emission) -> Emission:
    """A layer's instructions, its output's border written before anything is computed."""
    computes = [each.instruction.unit != isa.LD for each in made.emitted]
    which = made.order[:, 1].tolist()
    first = next((n for n, each in enumerate(which) if computes[each]), len(made))
    order = np.insert(np.arange(len(made)), first, len(made) + np.arange(len(fills)))
    return Emission.joined([made, fills]).part(order)


def place_tensors(
    plan: LayerPlan, inputs: Sequence[Value], outputs: Sequence[Value], constants: Constants
) -> tuple[dict[str, Place], int]:
    """Places of all tensors by name, and the arena's size; adds those that are constants."""
    given = {name: resident.place for resident in plan.residents for name in resident.names}
    for planned in plan.layers:
        layer = planned.job.layer
        if planned.idle and isinstance(layer, Constant):
            given[layer.output.name] = constants.add(layer.codes)
    return _with_places(plan, [v for v in inputs if v.name not in given], outputs, given)


def _with_places(
    plan: LayerPlan,
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    given: Mapping[str, Place],
) -> tuple[dict[str, Place], int]:
    """Places of all tensors by name, and the arena's size."""
    layers = plan.layers
    last_in = {n: span.stop - 1 for span in together(plan) for n in span}
    shared = [p.job for p in layers if p.idle and p.job.inputs]
    root = {job.output.value.name: job.inputs[0].value.name for job in shared}

    def storage(name: str) -> str:
        while name in root:
            name = root[name]
        return name

    places = dict(given)
    for region, values in ((INPUTS, inputs), (OUTPUTS, outputs)):
        offset = 0
        for value in values:
            places[storage(value.name)] = Place(region, offset, _ITEMSIZE[value.dtype], dram=True)
            offset += host_bytes(value)
    last_use = {
        storage(v.name): last_in[n] for n, p in enumerate(layers) for v in p.job.layer.inputs
    }
    live: list[tuple[int, int, int]] = []  # begin, end, last use
    size = 0
    for n, planned in enumerate(layers):
        output = planned.job.output
        name = storage(output.value.name)
        live = [block for block in live if block[2] >= n]
        if name not in places:
            begin, needed = 0, output.bytes
            for taken_begin, taken_end, _ in sorted(live):
                if begin + needed <= taken_begin:
                    break
                begin = max(begin, -(-taken_end // _ALIGN) * _ALIGN)
            places[name] = Place(ARENA, begin, _ITEMSIZE[output.dtype], dram=True)
            live.append((begin, begin + needed, last_use.get(name, last_in[n])))
            size = max(size, begin + needed)
        places[output.value.name] = places[name]
    return places, size


def _with_tokens(name: Order, order: Table, clock: IssueClock) -> Issued:
    """Instructions in an order, with their tokens and NOPs."""
    written, spec = clock.written, clock.spec
    units = np.ascontiguousarray(written.steps["unit"])
    tokens = derive_tokens(order, units, clock.needs, spec.issue.token_depth)
    before, nop_units, sources = tokens.early.T
    nops = np.zeros(len(before), STEP)
    nops["unit"], nops["pops"] = nop_units, 1 << sources
    steps, owners = written.steps[order], written.owners[order]
    steps["pops"], steps["pushes"] = tokens.pops, tokens.pushes
    return Issued(
        name,
        written,
        np.insert(order, before, -1),
        np.insert(owners, before, owners[before]),
        np.append(np.insert(steps, before, nops), steps_of([isa.Halt()], spec)),
        spec,
    )


def _runs(owners: Sequence[int]) -> defaultdict[int, list[tuple[int, int]]]:
    """By owner, the [begin, end) of what is theirs."""
    runs: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    begin = 0
    for owner, group in groupby(owners):
        end = begin + sum(1 for _ in group)
        runs[owner].append((begin, end))
        begin = end
    return runs
