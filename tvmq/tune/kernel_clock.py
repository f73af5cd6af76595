"""Seconds of the CPU's kernels on the clock, by TVM's time evaluator in an RPC session.

The session is of this process, or of a server (``servers_clock.py``). Kernels that are compared
are timed by turns, so that other load on the machine hits all alike, and what they compute is
compared with the first one's output, bit for bit.
"""

from __future__ import annotations

import itertools
import logging
import math
import platform
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tvm
from tvm.support import cc
from tvm.target import Target

from targets.cpu.cuts import Cut
from targets.cpu.host import CpuFeatures, foreign_architecture
from targets.cpu.kernel import Kernel
from targets.cpu.kernels import make_kernel
from targets.errors import TvmqError
from targets.layers import Layer
from targets.linker import find_linker, linking
from tvmq.run.session import load_library
from tvmq.tune.tvm_reason import tvm_reason

REPEAT, LEAST_MS = 3, 1
"""Times of a turn, of which the least counts, and how long each one takes at least."""

Array = npt.NDArray[Any]

logging.getLogger("RPCServer").setLevel(logging.WARNING)  # it tells of each library


@dataclass(frozen=True)
class Turns:
    """What became of a kernel.

    Attributes:
        seconds: by turn; () if it failed.
        fault: why it failed, in words.
    """

    seconds: tuple[float, ...]
    fault: str = ""


@dataclass(frozen=True, eq=False)
class Batch:
    """Kernels that are timed by turns.

    Attributes:
        layer: whose kernels they are.
        cuts: of them; the first one is what the others are compared with.
        turns: how many.
    """

    layer: Layer
    cuts: Sequence[Cut]
    turns: int


class Clock(Protocol):
    """What times kernels."""

    @property
    def machine(self) -> str:
        """Whose times they are, in words that no other machine has."""

    @property
    def at_once(self) -> int:
        """Batches that are timed at the same time, each on a machine of its own."""

    def submit(self, batch: Batch) -> None:
        """Have a batch timed.

        Raises:
            TvmqError: as ``done``.
        """

    def done(self) -> tuple[Batch, list[Turns]]:
        """A batch that is timed now, of those that were submitted, and what became of its kernels.

        Raises:
            TvmqError: the first kernel of one can't be timed.
        """


class OneAtATime(ABC):
    """A clock of one machine, which times nothing beside a batch.

    Attributes:
        machine: as ``Clock`` says.
    """

    machine: str
    at_once = 1

    def __init__(self) -> None:
        self._waiting: deque[Batch] = deque()

    def submit(self, batch: Batch) -> None:
        """As ``Clock`` says."""
        self._waiting.append(batch)

    def done(self) -> tuple[Batch, list[Turns]]:
        """As ``Clock`` says."""
        batch = self._waiting.popleft()
        return batch, self.timed(batch)

    @abstractmethod
    def timed(self, batch: Batch) -> list[Turns]:
        """What becomes of the kernels of a batch."""


class LocalClock(OneAtATime):
    """Times kernels on this machine, one image each.

    Args:
        target: that they are compiled for.
    """

    def __init__(self, target: Target) -> None:
        from tvm import rpc

        super().__init__()
        self._timer = KernelTimer(target, rpc.LocalSession())
        self.machine = machine_words(target, _processor(), self._timer.threads)

    def timed(self, batch: Batch) -> list[Turns]:
        """As ``OneAtATime`` says."""
        try:
            return self._timer(batch)
        except RuntimeError as error:
            name = batch.layer.name
            raise TvmqError(f"{name}: its kernel can't be timed: {tvm_reason(error)}.") from error


def machine_words(target: Target, where: str, threads: str) -> str:
    """What records call a machine."""
    return f"{target}; {where}; {threads}"


class KernelTimer:
    """Compiles kernels and times them in a session, one image each.

    Attributes:
        threads: that the session's process has, in words.
    """

    def __init__(self, target: Target, session: Any) -> None:
        """Ask a session what it is like.

        Args:
            target: that kernels are compiled for.
            session: a ``tvm.rpc.RPCSession``.

        Raises:
            RuntimeError: it is gone.
        """
        self._target, self._session = target, session
        self._numbers = itertools.count()  # a library is found again by its name, replaced or not
        self.threads = f"{session.get_function('runtime.NumThreads')()} threads"

    def __call__(self, batch: Batch) -> list[Turns]:
        """Time a batch.

        Raises:
            TvmqError: the first kernel can't be compiled.
            RuntimeError: the session is gone.
        """
        layer, host = batch.layer, CpuFeatures.of(self._target)
        kernels = [kernel for cut in batch.cuts if (kernel := make_kernel(layer, host, cut))]
        with TemporaryDirectory() as folder:
            libraries = [
                self._compiled(kernel, Path(folder) / f"kernel_{next(self._numbers)}.so")
                for kernel in kernels
            ]
            if isinstance(libraries[0], str):
                raise TvmqError(f"{layer.name}: its kernel can't be compiled: {libraries[0]}.")
            return self._timed(layer, kernels, libraries, batch.turns)

    def _compiled(self, kernel: Kernel, path: Path) -> Path | str:
        """The library of a kernel, or why there is none."""
        function = kernel.func.with_attr("global_symbol", "main")
        try:
            built = tvm.compile(function, target=self._target)
        except Exception as error:  # whatever a schedule makes TVM or LLVM raise
            return tvm_reason(error)
        foreign = foreign_architecture(self._target)
        link = None if foreign is None else cc.cross_compiler(find_linker(foreign))
        with linking(path.name, path.parent):
            built.export_library(str(path), fcompile=link)
        return path

    def _timed(
        self,
        layer: Layer,
        kernels: Sequence[Kernel],
        libraries: Sequence[Path | str],
        turns: int,
    ) -> list[Turns]:
        device = self._session.cpu(0)
        inputs = _inputs(layer)
        output = np.zeros((1, *layer.output.shape), layer.output.dtype)
        shared = [tvm.runtime.tensor(array, device) for array in inputs]
        timers: list[Any] = []
        faults = [library if isinstance(library, str) else "" for library in libraries]
        expected: Array | None = None
        for n, (kernel, library) in enumerate(zip(kernels, libraries, strict=True)):
            if isinstance(library, str):
                timers.append(None)
                continue
            self._session.upload(str(library))
            module = self._session.load_module(library.name)
            constants = [tvm.runtime.tensor(array, device) for array in kernel.constants]
            arguments = [*shared, *constants, tvm.runtime.tensor(output, device)]
            module["main"](*arguments)
            made = arguments[-1].numpy()
            expected = made if expected is None else expected
            if not np.array_equal(made, expected):
                faults[n] = "it computes other integers"
            evaluator = module.time_evaluator(
                "main", device, number=1, repeat=REPEAT, min_repeat_ms=LEAST_MS
            )
            timers.append(lambda each=evaluator, given=arguments: min(each(*given).results))
        times: list[list[float]] = [[] for _ in kernels]
        for _ in range(turns):
            for n, timer in enumerate(timers):
                if not faults[n]:
                    times[n].append(timer())
        for library in libraries:
            if isinstance(library, Path):
                self._session.remove(library.name)
        return [Turns(tuple(each), why) for each, why in zip(times, faults, strict=True)]


def network_seconds(
    libraries: Sequence[Path], arrays: Sequence[Array], turns: int
) -> list[tuple[float, ...]]:
    """Seconds of whole networks on this machine, by turns.

    Args:
        libraries: of the same network.
        arrays: its inputs.
        turns: how many.
    """
    machines = [load_library(path) for path in libraries]
    tensors = [tvm.runtime.tensor(array) for array in arrays]
    times: list[list[float]] = [[] for _ in libraries]
    for turn in range(turns + 1):
        for each, machine in zip(times, machines, strict=True):
            least = math.inf
            for _ in range(REPEAT):
                begin = time.perf_counter()
                machine["main"](*tensors)
                least = min(least, time.perf_counter() - begin)
            each += [least] if turn else []  # the first one warms up
    return [tuple(each) for each in times]


def _inputs(layer: Layer) -> list[Array]:
    """One image of random codes for each input."""
    rng = np.random.default_rng(0)
    found = []
    for value in layer.inputs:
        ends = np.iinfo(value.dtype)
        codes = rng.integers(ends.min, ends.max, (1, *value.shape), endpoint=True)
        found.append(codes.astype(value.dtype))
    return found


def _processor() -> str:
    """The name of this machine's processor, by which one of the same family differs."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
