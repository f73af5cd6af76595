"""Records of trials, in the files and the JSON of TVM's MetaSchedule.

    database_workload.json         a line per workload: what was timed
    database_tuning_record.json    a line per trial: [workload, [trace, seconds, target, arguments]]

A workload is a function that says in its attributes what the seconds depend on: the machine, by the
SHA-256 of its description; the compiler, its intrinsics included; versions; and the layers. Of the
CPU it is what names the target, the processor and its threads, and a kernel. TVM's
own database finds a record whatever the target is; these are found by all of it, so a record of
another machine never is. The trace annotates the choice. A trial that failed has 1e10 seconds, as
in TVM.

A line is written at once, so an interrupt loses no trial. Lines that can't be read are left out.
"""

from __future__ import annotations

import base64
import fcntl
import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import tvm
from tvm.s_tir import meta_schedule
from tvm.tirx.script import builder as tir

from targets.errors import InputError
from targets.interrupts import held_back
from targets.npu.schedule.loops import prim_func, root
from targets.reading import what_is
from tvmq import __version__

WORKLOADS, TRIALS = "database_workload.json", "database_tuning_record.json"
CHOICE = "tvmq.choice"
FAILED = 1e10
"""Seconds of a trial that failed."""
_TARGETS = {"npu": "ext_dev", "cpu": "llvm"}


class Machine(Protocol):
    """What was timed, as far as records tell machines apart."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def digest(self) -> str:
        """Another one for each machine."""

    @property
    def clock_hz(self) -> int:
        """Cycles of a second."""


class Records:
    """Trials that were made for a machine, those of files before this run included.

    Attributes:
        notes: what was left out of the files, in words.
        read: trials of this machine that the files had.
    """

    def __init__(
        self,
        spec: Machine,
        folders: Sequence[Path] = (),
        output: Path | None = None,
        kind: str = "npu",
    ):
        """Read folders of records.

        Args:
            spec: the machine.
            folders: to read; one that isn't there has no records.
            output: a folder that gets what is added, read as well; None: nothing is written.
            kind: of the machine, "npu" or "cpu".

        Raises:
            InputError: a folder is something else, can't be written, or is being written.
        """
        self.spec, self.kind = spec, kind
        self.notes: list[str] = []
        self._cycles: dict[str, dict[str, int]] = {}
        self._file: _Appended | None = None
        if output is not None:
            self._file = _Appended(output)
        for folder in dict.fromkeys([*folders, *([output] if output else [])]):
            numbers = self._read(folder)
            if self._file is not None and folder == output:
                self._file.numbers = {workload: number for number, workload in numbers.items()}
        self.read = sum(len(trials) for trials in self._cycles.values())

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def find(self, workload: str, choice: Any) -> int | None:
        """Cycles of a trial; 0 if it failed, None if it wasn't made."""
        return self._cycles.get(workload, {}).get(_canonical(choice))

    def best(self, workload: str) -> Any:
        """The choice with the fewest cycles; None if there is no trial that didn't fail."""
        made = {choice: n for choice, n in self._cycles.get(workload, {}).items() if n}
        if not made:
            return None
        return json.loads(min(made, key=lambda choice: (made[choice], choice)))

    def add(self, workload: str, choice: Any, cycles: int, words: str) -> None:
        """Keep a trial.

        Args:
            workload: what the cycles depend on, but the choice and the machine.
            choice: anything that JSON holds.
            cycles: 0 if it failed.
            words: what was timed, for people.
        """
        self._cycles.setdefault(workload, {})[_canonical(choice)] = cycles
        if self._file is not None:
            seconds = cycles / self.spec.clock_hz if cycles else FAILED
            target = {"kind": _TARGETS[self.kind], "tag": "", "keys": [], "model": self.spec.name}
            self._file.add(self._key(workload), words, _canonical(choice), seconds, target)

    def _key(self, workload: str) -> dict[str, str]:
        return {
            "tvmq.machine": self.spec.digest,
            **compiler_and_versions(self.kind),
            "tvmq.workload": workload,
        }

    def _read(self, folder: Path) -> dict[int, str]:
        """Take what is of this machine; its workloads by their number in the folder."""
        kind = what_is(folder)
        if kind == "nothing":
            return {}
        if kind != "folder":
            raise InputError(f"{folder}: is a {kind}; --tuning-records takes a folder of records.")
        ours: dict[int, str] = {}
        for number, key in self._lines(folder / WORKLOADS, _workload_of):
            wanted = self._key(key.get("tvmq.workload", ""))
            if all(key.get(name) == value for name, value in wanted.items()):
                ours[number] = wanted["tvmq.workload"]
        for _, (number, choice, seconds) in self._lines(folder / TRIALS, _trial_of):
            if number in ours:
                cycles = 0 if seconds >= FAILED else round(seconds * self.spec.clock_hz)
                self._cycles.setdefault(ours[number], {}).setdefault(choice, cycles)
        return ours

    def _lines(self, path: Path, parse: Callable[[Any], Any]) -> Iterator[tuple[int, Any]]:
        """(number, what it says) of the lines of a file that say something."""
        if what_is(path) == "nothing":
            return
        damaged = []
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise InputError(f"{path}: can't be read ({error.strerror}).") from error
        for number, line in enumerate(lines[:-1] if lines[-1] == b"" else lines):
            try:
                yield number, parse(json.loads(line))
            except Exception:  # whatever a damaged line makes TVM or a parser raise
                damaged.append(number + 1)
        if damaged:
            numbers = ", ".join(str(n) for n in damaged[:3]) + (", ..." if damaged[3:] else "")
            self.notes.append(
                f"{path}: {len(damaged)} damaged lines are left out ({numbers}); "
                f"the others are used."
            )


@functools.cache
def compiler_digest(kind: str = "npu") -> str:
    """SHA-256 of the compiler for the NPU, its timing model included, or of the CPU's kernels."""
    import targets

    folder = Path(targets.__path__[0]) / kind
    whole = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        whole.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()


def compiler_and_versions(kind: str = "npu") -> dict[str, str]:
    """What cycles depend on beside the machine and what it executes."""
    return {
        "tvmq.compiler": compiler_digest(kind),
        "tvmq.versions": f"tvmq {__version__}, TVM {version('apache-tvm')}",
    }


class _Appended:
    """The two files, open to be written by this process alone."""

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._workloads, self._trials = (
                (folder / name).open("a+b", buffering=0) for name in (WORKLOADS, TRIALS)
            )
            fcntl.flock(self._workloads, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise InputError(
                f"{folder}: another tuning writes its records there. Wait for it, or give another "
                f"folder with --tuning-records."
            ) from None
        except OSError as error:
            raise InputError(
                f"{folder}: can't be written ({error.strerror}). Give another folder with "
                f"--tuning-records."
            ) from error
        self._count = _whole_lines(self._workloads)
        _whole_lines(self._trials)
        self.numbers: dict[str, int] = {}  # of workloads that are there

    def add(
        self, key: dict[str, str], words: str, choice: str, seconds: float, target: dict[str, Any]
    ) -> None:
        with held_back():
            workload = key["tvmq.workload"]
            if workload not in self.numbers:
                mod = tvm.IRModule({"main": _function(key | {"tvmq.words": words})})
                line = json.dumps(list(meta_schedule.database.Workload(mod).as_json()))
                self._workloads.write(line.encode() + b"\n")
                self.numbers[workload] = self._count
                self._count += 1
            steps = [
                ["GetSBlock", [], ["root", "main"], ["b0"]],
                ["Annotate", ["b0", f'"{choice}"'], [CHOICE], []],
            ]
            record = [self.numbers[workload], [[steps, []], [seconds], target, []]]
            self._trials.write(json.dumps(record).encode() + b"\n")

    def close(self) -> None:
        self._workloads.close()
        self._trials.close()


def _whole_lines(file: BinaryIO) -> int:
    """How many lines a file has, the last one ended if something has cut it off."""
    file.seek(0)
    content = file.read()
    if content and not content.endswith(b"\n"):
        file.write(b"\n")
        return content.count(b"\n") + 1
    return content.count(b"\n")


def _function(attributes: dict[str, str]) -> Any:
    """A function that does nothing and says what a workload is."""
    with prim_func("main") as builder, root():
        tir.evaluate(0)
    return builder.get().with_attr(attributes)


def _workload_of(line: Any) -> dict[str, str]:
    """The attributes of a workload."""
    _, encoded = line
    text = base64.b64decode(encoded)[8:].decode()  # behind its length
    attributes = tvm.ir.load_json(text)["main"].attrs
    return {str(name): str(attributes[name]) for name in attributes.keys()}  # noqa: SIM118


def _trial_of(line: Any) -> tuple[int, str, float]:
    """(number of the workload, choice, seconds) of a record."""
    number, ((steps, _), (seconds,), _, _) = line
    (choice,) = (inputs[1] for kind, inputs, names, _ in steps if names == [CHOICE])
    seconds = float(seconds)
    if not (isinstance(number, int) and math.isfinite(seconds) and seconds > 0):
        raise ValueError(line)
    return number, _canonical(json.loads(choice[1:-1])), seconds


def _canonical(choice: Any) -> str:
    return json.dumps(choice, sort_keys=True)
