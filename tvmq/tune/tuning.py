"""Tuned choices for the NPU programs of a network: from records, and from trials."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from relay_passes.place import ProgramParts
from targets.errors import CapacityError, InputError, TimingError, TvmqError
from targets.npu.choices import NO_CHOICES, Choices
from targets.npu.machine.spec import NpuSpec
from targets.npu.trials import Structure, Trials
from tvmq.progress import Progress
from tvmq.tune.processes import WORTH_A_PROCESS, Processes
from tvmq.tune.records import Records
from tvmq.tune.request import TuneRequest
from tvmq.tune.search import Found, search
from tvmq.tune.told_records import told_records


@dataclass(frozen=True)
class Tuned:
    """Programs and the choices that make them faster.

    Attributes:
        found: per program, in order.
        request: what was asked for.
    """

    found: tuple[Found, ...]
    request: TuneRequest

    @property
    def before(self) -> int:
        """Cycles of all programs by rule."""
        return sum(found.before for found in self.found)

    @property
    def after(self) -> int:
        """Cycles of all tuned programs."""
        return sum(found.after for found in self.found)

    @property
    def choices(self) -> tuple[Choices, ...]:
        """Per program."""
        return tuple(found.choices for found in self.found)

    def as_json(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {
            "trials": sum(len(found.best) for found in self.found),
            "failed": sum(found.failed for found in self.found),
            "seed": self.request.seed,
            "cycles": {
                "before": [found.before for found in self.found],
                "after": [found.after for found in self.found],
            },
            "best": [found.steps for found in self.found],
        }


def tune(
    programs: Sequence[ProgramParts],
    spec: NpuSpec,
    request: TuneRequest,
    progress: Progress,
    start: Sequence[Choices] = (),
) -> Tuned:
    """Find choices for all programs of a network.

    Args:
        programs: in order.
        spec: their machine.
        request: what is asked for.
        progress: told of each trial.
        start: choices of before, per program; what is found is no slower.

    Raises:
        InputError: a folder of records can't be used, or servers can't.
        TvmqError: no server is free.
    """
    shares = _shares([parts.macs for parts in programs], request.trials)
    done: list[Found] = []
    wanted = "this machine, this compiler and these versions"
    tracker = request.tracker
    processes: Processes | None = None
    with (
        told_records(spec, request, progress, wanted) as records,
        progress.bar("tune") as bar,
        ExitStack() as stack,
    ):

        def start_processes() -> None:
            nonlocal processes
            count = min(request.processes, request.trials // WORTH_A_PROCESS)
            if count > 1:  # with records, it may be that no trial is missing
                processes = stack.enter_context(Processes(count - 1, early=not records.read))

        def lost(why: TvmqError) -> Processes | None:
            nonlocal tracker
            tracker = None
            progress.note(f"note: trials are made on this machine from now on: {why}")
            start_processes()
            return processes

        if tracker is None:
            start_processes()
        for n, (parts, share) in enumerate(zip(programs, shares, strict=True)):
            made = sum(len(found.best) for found in done)

            def report(trials: int, _: int, before: int, best: int, made: int = made) -> None:
                gain = f"{best:,} cycles, {100 * (before - best) / before:.2f} % fewer"
                bar(made + trials, request.trials, gain)

            if done and tracker is not None:
                try:
                    tracker.servers()
                except InputError as error:  # those that made trials of the program before
                    lost(error)
            trials = Trials(parts.layers, parts.inputs, parts.outputs, spec)
            found = search(
                *(trials, share, request.seed, records, report),
                processes=processes,
                tracker=tracker,
                lost=lost,
            )
            known = [records.best(trials.description(trials.rule)), *start[n : n + 1]]
            done.append(_best(found, trials, known, progress))
    return Tuned(tuple(done), request)


def check_records(request: TuneRequest, spec: NpuSpec) -> None:
    """Check that records can be read and written, before what takes an hour.

    Raises:
        InputError: as ``tune``.
    """
    with Records(spec, request.records, request.output):
        pass


def _shares(macs: Sequence[int], trials: int) -> list[int]:
    """Trials of each program, by what it computes."""
    total = sum(macs)
    if not total:
        return [trials // len(macs)] * len(macs) if macs else []
    ends = [trials * sum(macs[: n + 1]) // total for n in range(len(macs))]
    return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]


def _best(found: Found, trials: Trials, known: Iterable[Any], progress: Progress) -> Found:
    """What was found, or choices of before that are better."""
    if found.choices:
        cycles = trials.cycles(_structure(trials, found.choices))
        if cycles != found.after:
            progress.note(
                f"note: records say {found.after:,} cycles of what takes {cycles:,}: they are of "
                f"something else, or damaged."
            )
            kept = found.choices if cycles < found.before else NO_CHOICES
            found = replace(found, choices=kept, after=min(cycles, found.before))
    for each in known:
        if each is None or each == NO_CHOICES:
            continue
        try:
            choices = each if isinstance(each, Choices) else Choices.from_json(each)
            cycles = trials.cycles(_structure(trials, choices))
        except (CapacityError, TimingError, ValidationError) as error:
            progress.note(f"note: choices of before are left out: {error}")
            continue
        if cycles < found.after:
            found = Found(choices, found.before, cycles, found.failed, found.best)
    return found


def _structure(trials: Trials, choices: Choices) -> Structure:
    cascades = {**trials.rule.choices.cascades, **choices.cascades}
    return trials.structure(replace(choices, cascades=cascades))
