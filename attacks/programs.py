"""Mutated programs on both simulators, the compiled one between memories that nobody may touch.

Programs of random networks, for the shipped machines and for random ones, are changed in bits,
fields, order, tokens and sizes. Whatever comes of it, the compiled executor must give the verdict
of the NumPy simulator, with the same bytes or a trap at the same instruction, and write nowhere
else. A machine's attempts are made by a process of its own: one that dies is an attempt that broke.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import tvm
from random_networks import machine, network, products, rows
from tvm.support import cc

from attacks import Attempt
from targets.errors import InputError, TrapError
from targets.npu.compiler import compile_layers
from targets.npu.execute.compiled import executor_object, executor_symbol
from targets.npu.execute.traps import Trap
from targets.npu.machine import isa
from targets.npu.machine.legality import check
from targets.npu.machine.program import Program
from targets.npu.machine.spec import NpuSpec, load_spec
from targets.npu.price.durations import duration
from targets.npu.simulate.simulator import Simulator

Verdict: TypeAlias = tuple[int, bytes]
"""Where it trapped, -1 where it did not; and the outputs."""

SHIPPED = ("e256", "m2048")
RANDOM_MACHINES = 6
PROGRAMS = 30
"""Of each machine."""
WORKERS = max(1, len(os.sched_getaffinity(0)))
MOST_CYCLES, MOST_ROWS = 20_000, 2_000
"""Of an instruction: a legal one can repeat itself for minutes."""
SECONDS = 60
"""For one attempt."""


def attempts(count: int, seed: int, room: Path) -> Iterator[Attempt]:
    """Mutate ``count`` programs."""
    guards = room / "guarded_memory.so"
    cc.create_shared(
        str(guards), [str(Path(__file__).with_suffix("").parent / "guarded_memory.cc")]
    )
    machines: list[str | int] = [*SHIPPED, *range(RANDOM_MACHINES)]
    shares = [range(count)[n :: len(machines)] for n in range(len(machines))]
    waiting = [
        _Worker(which, seed, share, guards)
        for which, share in zip(machines, shares, strict=True)
        if share
    ]
    running: list[_Worker] = []
    while waiting or running:
        while waiting and len(running) < WORKERS:
            running.append(waiting.pop(0))
            running[-1].start()
        for worker in list(running):
            yield from worker.results()
            if worker.finished:
                running.remove(worker)


class _Worker:
    """A process that makes the attempts of a machine, started anew behind one that kills it."""

    def __init__(self, which: str | int, seed: int, share: range, guards: Path) -> None:
        self.which, self.seed, self.share, self.guards = which, seed, share, guards
        self.done = 0

    @property
    def finished(self) -> bool:
        return self.done == len(self.share)

    def start(self) -> None:
        read, write = os.pipe()
        self.process = os.fork()
        if self.process == 0:
            os.close(read)
            try:
                with os.fdopen(write, "w", buffering=1) as lines:
                    _work(self, lines)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        os.close(write)
        self.lines = os.fdopen(read)

    def results(self) -> Iterator[Attempt]:
        """Those of the next hundred attempts, or of all until the process ends."""
        for _ in range(100):
            line = self.lines.readline()
            if line:
                yield Attempt(**json.loads(line))
                self.done += 1
                if self.finished:
                    self._end()
                    return
                continue
            status = self._end()
            code = os.waitstatus_to_exitcode(status)
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            yield Attempt(self.name(self.done), f"the process died: {how}")
            self.done += 1
            if not self.finished:
                self.start()
            return

    def _end(self) -> int:
        """Wait for the process to end; its status."""
        _, status = os.waitpid(self.process, 0)
        self.lines.close()
        return status

    def name(self, attempt: int) -> str:
        return f"machine {self.which}, seed {self.seed}, attempt {self.share[attempt]}"


def _work(worker: _Worker, lines: Any) -> None:
    number = worker.which if isinstance(worker.which, int) else 1000 + SHIPPED.index(worker.which)
    rng = np.random.default_rng([worker.seed, number])
    spec = machine(rng) if isinstance(worker.which, int) else load_spec(worker.which)
    victims = _victims(rng, spec)
    executor = _GuardedExecutor(spec, worker.guards)
    for attempt in range(worker.done, len(worker.share)):
        signal.alarm(SECONDS)
        broke = _attempt(
            np.random.default_rng([worker.seed, number, attempt]), spec, victims, executor
        )
        signal.alarm(0)  # whoever reads may be busy with another machine
        lines.write(json.dumps({"name": worker.name(attempt), "broke": broke}) + "\n")


def _victims(rng: np.random.Generator, spec: NpuSpec) -> list[Program]:
    """Programs of random networks."""
    programs = []
    while len(programs) < PROGRAMS:
        draw = (network, products, rows)[len(programs) % 3]
        drawn = draw(rng, spec)
        if drawn.layers:
            programs.append(compile_layers(drawn.layers, [drawn.input], drawn.outputs, spec))
    return programs


def _attempt(
    rng: np.random.Generator, spec: NpuSpec, victims: list[Program], executor: _GuardedExecutor
) -> str:
    """What is wrong with one mutated program; empty if nothing is."""
    mutant = _mutant(rng, spec, victims)
    image = rng.integers(0, 256, max(1, mutant.input_bytes)).astype(np.uint8)
    wanted, got = _simulated(spec, mutant, image), executor.run(mutant, image)
    if wanted[0] != got[0]:
        return f"the simulator trapped at {wanted[0]}, the executor at {got[0]}"
    return "" if wanted[1] == got[1] else f"other outputs (trap at {wanted[0]})"


# --- mutants


@dataclass(frozen=True)
class _Mutant:
    """A program that need not be one: its words, and its regions."""

    words: tuple[bytes, ...]
    constants: bytes
    arena_bytes: int
    input_bytes: int
    output_bytes: int

    @staticmethod
    def of(program: Program) -> _Mutant:
        words = tuple(isa.encode(i) for i in program.instructions)
        sizes = program.arena_bytes, program.input_bytes, program.output_bytes
        return _Mutant(words, program.constants or bytes(1), *sizes)

    @property
    def regions(self) -> list[int]:
        return [len(self.constants), self.arena_bytes, self.input_bytes, self.output_bytes]


def _mutant(rng: np.random.Generator, spec: NpuSpec, victims: list[Program]) -> _Mutant:
    """A program with up to three changes, none of which repeats itself for minutes."""
    while True:
        mutant = _Mutant.of(victims[rng.integers(len(victims))])
        for _ in range(rng.integers(1, 4)):
            change = _CHANGES[rng.integers(len(_CHANGES))]
            mutant = change(rng, mutant, victims)
        if not any(_endless(word, spec, mutant.regions) for word in mutant.words):
            return mutant


def _endless(word: bytes, spec: NpuSpec, regions: list[int]) -> bool:
    """Whether a word is a legal instruction that takes too long."""
    try:
        instruction = isa.decode(word)
        check(instruction, spec, 0, regions)
    except (InputError, TrapError):
        return False
    cost = duration(instruction, spec)
    copied = 0
    if isinstance(instruction, isa.Load | isa.Store):
        copied = instruction.z * (instruction.y + getattr(instruction, "pad_y0", 0) * 2)
    return cost.work + cost.bus > MOST_CYCLES or copied > MOST_ROWS


def _flip_bit(rng: np.random.Generator, m: _Mutant, _: list[Program]) -> _Mutant:
    at, bit = rng.integers(len(m.words)), int(rng.integers(8 * isa.WORD_BYTES))
    word = int.from_bytes(m.words[at], "little") ^ 1 << bit
    return _with_word(m, at, word.to_bytes(isa.WORD_BYTES, "little"))


def _change_field(rng: np.random.Generator, m: _Mutant, _: list[Program]) -> _Mutant:
    at = rng.integers(len(m.words))
    try:
        instruction = isa.decode(m.words[at])
    except InputError:
        return m
    field = fields(instruction)[rng.integers(len(fields(instruction)))].name
    most, old = isa.largest(type(instruction), field), getattr(instruction, field)
    values = [0, 1, most, most - 1, old + 1, old - 1, 2 * old, int(rng.integers(most + 1))]
    value = min(max(0, values[rng.integers(len(values))]), most)
    return _with_word(m, at, isa.encode(replace(instruction, **{field: value})))


def _swap(rng: np.random.Generator, m: _Mutant, _: list[Program]) -> _Mutant:
    words = list(m.words)
    a, b = rng.integers(len(words), size=2)
    words[a], words[b] = words[b], words[a]
    return replace(m, words=tuple(words))


def _drop(rng: np.random.Generator, m: _Mutant, _: list[Program]) -> _Mutant:
    at = rng.integers(len(m.words))
    return m if len(m.words) == 1 else replace(m, words=m.words[:at] + m.words[at + 1 :])


def _insert(rng: np.random.Generator, m: _Mutant, victims: list[Program]) -> _Mutant:
    """One of another program's instructions."""
    others = victims[rng.integers(len(victims))].instructions
    at, word = rng.integers(len(m.words)), isa.encode(others[rng.integers(len(others))])
    return replace(m, words=(*m.words[:at], word, *m.words[at:]))


def _truncate(rng: np.random.Generator, m: _Mutant, _: list[Program]) -> _Mutant:
    return replace(m, words=m.words[: rng.integers(1, len(m.words) + 1)])


def _noise(rng: np.random.Generator, m: _Mutant, _: list[Program]) -> _Mutant:
    return _with_word(m, rng.integers(len(m.words)), rng.bytes(isa.WORD_BYTES))


def _resize(rng: np.random.Generator, m: _Mutant, _: list[Program]) -> _Mutant:
    """A region with fewer bytes."""
    name = ("arena_bytes", "input_bytes", "output_bytes")[rng.integers(3)]
    size = getattr(m, name)
    return replace(m, **{name: max(1, size - int(rng.integers(1, 65)))}) if size else m


def _change_constants(rng: np.random.Generator, m: _Mutant, _: list[Program]) -> _Mutant:
    """Weights, records or tables with other bytes; or too few of them."""
    if rng.random() < 0.2:
        return replace(m, constants=m.constants[: rng.integers(1, len(m.constants) + 1)])
    constants = bytearray(m.constants)
    for at in rng.integers(len(constants), size=min(64, len(constants))):
        constants[at] = rng.integers(256)
    return replace(m, constants=bytes(constants))


def _with_word(m: _Mutant, at: int, word: bytes) -> _Mutant:
    return replace(m, words=(*m.words[:at], word, *m.words[at + 1 :]))


_CHANGES = (
    *(_flip_bit, _flip_bit, _change_field, _change_field, _swap, _drop, _insert, _truncate),
    *(_noise, _resize, _change_constants),
)


# --- the two machines


def _simulated(spec: NpuSpec, m: _Mutant, image: np.ndarray) -> Verdict:
    """The NumPy simulator's verdict; a word that is no instruction traps where it stands."""
    instructions = []
    for word in m.words:
        try:
            instructions.append(isa.decode(word))
        except InputError:
            break
    sizes = m.arena_bytes, m.input_bytes, m.output_bytes
    program = Program("", spec.digest, tuple(instructions), m.constants, *sizes, ())
    simulator = Simulator(spec)
    try:
        return -1, simulator.run(program, image[: m.input_bytes]).tobytes()
    except TrapError as trap:
        assert simulator.machine is not None
        return trap.index, simulator.machine.dram[3].tobytes()


class _GuardedExecutor:
    """The compiled machine whose every memory ends at a guard."""

    def __init__(self, spec: NpuSpec, guards: Path) -> None:
        symbol = executor_symbol(spec)
        path = guards.parent / f"{symbol}.so"
        cc.create_shared(str(path), [str(executor_object(spec))])
        self._function = tvm.runtime.load_module(str(path))[symbol]
        self._memory = ctypes.CDLL(str(guards))
        self._memory.guarded.restype = ctypes.c_void_p
        self._memory.guarded.argtypes = [ctypes.c_size_t]
        self._memory.give_back.argtypes = [ctypes.c_void_p]
        library = ctypes.CDLL(str(path))
        for ours, theirs in (
            (self._memory.guarded_workspace, "__TVMBackendAllocWorkspace"),
            (self._memory.give_back_workspace, "__TVMBackendFreeWorkspace"),
        ):
            pointer = ctypes.c_void_p.in_dll(library, theirs)
            pointer.value = ctypes.cast(ours, ctypes.c_void_p).value

    def run(self, m: _Mutant, image: np.ndarray) -> Verdict:
        words = np.frombuffer(b"".join(m.words), "<i4").reshape(-1, 8)
        arrays = [
            self._array(words),
            self._array(np.frombuffer(m.constants, np.int8)),
            self._array(image[: m.input_bytes].view(np.int8)[None]),
            self._array(np.zeros((1, m.output_bytes), np.int8)),
        ]
        program, constants, inputs, outputs = map(tvm.runtime.from_dlpack, arrays)
        trapped = -1
        try:
            self._function(0, program, constants, m.arena_bytes, inputs, outputs)
        except RuntimeError as error:
            trap = Trap.of(str(error))
            if trap is None:
                raise
            trapped = trap.index
        result = trapped, arrays[3].tobytes()
        del program, constants, inputs, outputs
        for array in arrays:
            self._memory.give_back(array.ctypes.data)
        return result

    def _array(self, values: np.ndarray) -> np.ndarray:
        """The values in guarded memory."""
        address = self._memory.guarded(values.nbytes)
        memory = (ctypes.c_byte * values.nbytes).from_address(address)
        array = np.frombuffer(memory, values.dtype).reshape(values.shape)
        array[...] = values
        return array
