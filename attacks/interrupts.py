"""Kill and interrupt commands at random moments: nothing half-written, nothing lost, nothing left.

Every attempt starts a process of its own and, in a stage that is drawn first, sends a signal to it
or to its process group, sometimes twice. Then it looks at the exit code, at what stands at the
destination and at what lies around, and does the command again where that could show more.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attacks import Attempt

ROOT = Path(__file__).resolve().parents[1]

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)

COMMANDS = {"build": 9, "learned": 8, "run": 3, "eval": 2, "inspect": 2, "profile": 2}
"""How often each is attacked, relatively."""

BEGIN, END = "begin", "end"
"""What is before the first stage (Python, imports) and behind the last (manifest, exchange)."""

STAGE = re.compile(r"^(\w+): (\d+\.\d+) s$")
PATIENCE = 120.0


@dataclass(frozen=True)
class Strike:
    """What is done to a process.

    Attributes:
        command: one of ``COMMANDS``.
        number: of the signal.
        stage: in which it is sent.
        share: of the stage's usual time that passes before.
        group: it goes to the whole process group, as from a terminal.
        again: seconds until it is sent once more; None: it isn't.
        ignored: the process was started to ignore it, as by nohup.
        older: something stands at the destination.
        cold: the executor of the machine is not in the cache.
    """

    command: str
    number: signal.Signals
    stage: str
    share: float
    group: bool
    again: float | None
    ignored: bool
    older: bool
    cold: bool

    def __str__(self) -> str:
        words = [self.command, self.number.name, "to the group" if self.group else ""]
        words += [f"again after {self.again} s" if self.again is not None else ""]
        words += ["ignored" if self.ignored else "", "over an older one" if self.older else ""]
        words += ["cold" if self.cold else "", f"{self.share:.2f} of {self.stage}"]
        return " ".join(filter(None, words))


@dataclass
class Watched:
    """A process, and when its stages ended.

    Attributes:
        ends: seconds since its start, by stage.
        took: what the stages say that they took.
        lines: of its standard error.
    """

    process: subprocess.Popen[str]
    began: float = field(default_factory=time.monotonic)
    ends: dict[str, float] = field(default_factory=dict)
    took: dict[str, float] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if match := STAGE.match(line.rstrip()):
                self.took[match[1]] = float(match[2])
                self.ends[match[1]] = time.monotonic() - self.began

    @property
    def stage(self) -> str:
        """The one behind the last that has ended."""
        return f"behind {list(self.ends)[-1]}" if self.ends else BEGIN


class Range:
    """A folder to shoot in: a small network, its data, and what its commands should give."""

    def __init__(self, room: Path) -> None:
        self.room, self.temporary, self.cache = room, room / "tmp", room / "cache"
        self.place = room / "place"
        for folder in (self.temporary, self.cache, self.place):
            folder.mkdir()
        _save_network(room)
        self.times: dict[str, dict[str, tuple[float, float]]] = {}
        self.expected: dict[str, Any] = {}
        self.older, self.artifact = room / "older", room / "artifact"
        self._must("build", ["--precision", "w4a8"], self.older)
        self._must("build", [], self.artifact)
        for command in COMMANDS:
            watched = self.start(command)
            self.end(watched)
            assert watched.process.returncode == 0, "".join(watched.lines)
            self.times[command] = _timeline(watched)
            self.expected[command] = self.result(command)
            self.clear()

    def destination(self, command: str) -> Path | None:
        """Where a command writes to; None where it only prints."""
        names = {"build": "a", "learned": "a", "run": "o.npz", "profile": "p.html"}
        return self.place / names[command] if command in names else None

    def words(self, command: str, destination: Path | None) -> list[str | Path]:
        """The command line."""
        data = self.room / "data.npz"
        build = ["build", self.room / "net.pt2", "--calib-data", data, "-o", destination]
        return {
            "build": [*build, "-v"],
            "learned": [*build, "-v", "--method", "rapq", "--iters", "150", "--seed", "5"],
            "run": ["run", self.artifact, "-i", data, "-o", destination, "--batch", "1"],
            "eval": ["eval", self.artifact, "--data", data, "--device", "reference"],
            "inspect": ["inspect", self.room / "net.pt2"],
            "profile": ["profile", self.artifact, "--html", destination],
        }[command]

    def start(self, command: str, *, ignored: int | None = None) -> Watched:
        """Begin a command in a process group of its own."""
        return self._start(self.words(command, self.destination(command)), ignored)

    def end(self, watched: Watched) -> None:
        """Wait for the end."""
        try:
            watched.process.wait(PATIENCE)
        finally:
            if watched.process.poll() is None:
                os.killpg(watched.process.pid, signal.SIGKILL)
                watched.process.wait()
            watched.reader.join(5)

    def result(self, command: str) -> Any:
        """What stands at the destination, such that equal results are equal."""
        place = self.destination(command)
        if place is None or not place.exists():
            return None
        if place.suffix == ".html":  # has timings, and is whole or not
            return place.read_text().rstrip().endswith("</html>")
        return _contents(place) if place.is_dir() else _digest(place)

    def clear(self) -> None:
        """Remove all results and finished units."""
        shutil.rmtree(self.place)
        self.place.mkdir()

    def left(self, command: str) -> list[str]:
        """What lies around, besides results and finished units."""
        own = {self.destination(command), self.place / "a.units"}
        names = [str(p.relative_to(self.room)) for p in self.place.iterdir() if p not in own]
        names += [str(path.relative_to(self.room)) for path in self.temporary.iterdir()]
        whole = re.compile(r"npu_execute_\w+\.(o|sha256)")
        names += [f"cache/{p.name}" for p in self.cache.iterdir() if not whole.fullmatch(p.name)]
        return names

    def _must(self, command: str, options: list[str], destination: Path) -> None:
        watched = self._start([*self.words(command, destination), *options], None)
        self.end(watched)
        assert watched.process.returncode == 0, "".join(watched.lines)

    def _start(self, words: list[str | Path], ignored: int | None) -> Watched:
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self.temporary),
            "TVMQ_CACHE": str(self.cache),
            "OMP_NUM_THREADS": "1",
            "TVM_NUM_THREADS": "1",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "tvmq", *map(str, words)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=None if ignored is None else lambda: _ignore(ignored),
        )
        return Watched(process)


def attempts(count: int, seed: int, room: Path) -> Iterator[Attempt]:
    """Strike so many times; which stage was really hit is said in the name."""
    dice = random.Random(seed)
    field_of_fire = Range(room)
    for _ in range(count):
        strike = _draw(dice, field_of_fire)
        yield _attempt(strike, field_of_fire)


def _draw(dice: random.Random, targets: Range) -> Strike:
    command = dice.choices(list(COMMANDS), list(COMMANDS.values()))[0]
    number = dice.choice(ENDINGS)
    return Strike(
        command,
        number,
        stage=dice.choice(list(targets.times[command])),
        share=round(dice.uniform(0.02, 1.0), 3),
        group=dice.random() < 0.4,
        again=dice.choice([0.02, 0.1, 0.7]) if dice.random() < 0.25 else None,
        ignored=number != signal.SIGKILL and dice.random() < 0.08,
        older=dice.random() < 0.6,
        cold=command in ("build", "learned") and dice.random() < 0.15,
    )


def _attempt(strike: Strike, targets: Range) -> Attempt:
    targets.clear()
    place = targets.destination(strike.command)
    before = None
    if place is not None and strike.older:
        if place.suffix:
            place.write_bytes(b"older")
        else:
            shutil.copytree(targets.older, place)
        before = _exact(place)
    if strike.cold:
        shutil.rmtree(targets.cache)
        targets.cache.mkdir()
    watched = targets.start(strike.command, ignored=strike.number if strike.ignored else None)
    heeded = _strike(strike, watched, targets)
    try:
        targets.end(watched)
    except subprocess.TimeoutExpired:
        return Attempt(str(strike), f"did not end within {PATIENCE:.0f} s")
    name = f"{strike}: {watched.stage}, code {watched.process.returncode}"
    faults = _code_faults(strike, watched, heeded)
    faults += _destination_faults(strike, watched, targets, before)
    if alive := _alive(watched.process.pid):
        faults.append(f"processes go on: {alive}")
    left = targets.left(strike.command)
    interrupted = strike.number != signal.SIGKILL and heeded
    if left and (interrupted or watched.process.returncode == 0):
        faults.append(f"left behind: {left}")
    killed = strike.number == signal.SIGKILL and place is not None
    if left or faults or killed or strike.command == "learned":
        faults += _faults_of_another(strike, targets)
    return Attempt(name, "; ".join(faults))


def _strike(strike: Strike, watched: Watched, targets: Range) -> bool:
    """Send the signals; whether the process had got as far as handling them."""
    begin, end = targets.times[strike.command][strike.stage]
    stages = list(targets.times[strike.command])
    before = stages[stages.index(strike.stage) - 1] if strike.stage != BEGIN else None
    deadline = time.monotonic() + PATIENCE
    while before not in (None, BEGIN) and before not in watched.ends:
        if watched.process.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    share = strike.share**4 if strike.stage == END else strike.share  # most of it is Python's end
    wait = share * (end - begin)
    if before == BEGIN:  # of which no line tells the end
        wait += begin
    time.sleep(max(0.0, wait))
    heeded = _heeds(watched.process.pid)
    _send(strike, watched)
    if strike.again is not None:
        time.sleep(strike.again)
        _send(strike, watched)
    return heeded


def _send(strike: Strike, watched: Watched) -> None:
    if watched.process.poll() is None:
        send = os.killpg if strike.group else os.kill
        with contextlib.suppress(ProcessLookupError):
            send(watched.process.pid, strike.number)


def _heeds(pid: int) -> bool:
    """Whether a process catches SIGTERM, which Python by itself doesn't, or ignores it by now."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    masks = re.findall(r"^Sig(?:Cgt|Ign):\s*([0-9a-f]+)", status, re.MULTILINE)
    return any(int(mask, 16) >> (signal.SIGTERM - 1) & 1 for mask in masks)


def _code_faults(strike: Strike, watched: Watched, heeded: bool) -> list[str]:
    code, text = watched.process.returncode, "".join(watched.lines)
    faults = [f"says {word}: {text[-1500:]}" for word in ("Traceback", "internal") if word in text]
    if strike.ignored:
        return [] if code == 0 else [f"{strike.number.name} was to be ignored: {text[-500:]}"]
    if code == 0:
        return faults
    if strike.number == signal.SIGKILL:
        return faults if code == -signal.SIGKILL else [*faults, text[-500:]]
    if not heeded and code == -strike.number:
        return []  # Python was starting
    if code != 130:
        faults.append(f"code {code} instead of 130: {text[-500:]}")
    elif "nothing was half-written" not in text:
        faults.append(f"the message is missing: {text[-500:]}")
    return faults


def _destination_faults(
    strike: Strike, watched: Watched, targets: Range, before: str | None
) -> list[str]:
    place = targets.destination(strike.command)
    if place is None:
        return []
    there = _exact(place) if place.exists() else None
    if watched.process.returncode != 0 and there == before:
        return []
    if targets.result(strike.command) == targets.expected[strike.command]:
        return []
    difference = _difference(targets.result(strike.command), targets.expected[strike.command])
    return [f"at the destination is neither the old nor the new: {difference}"]


def _faults_of_another(strike: Strike, targets: Range) -> list[str]:
    """What is wrong when the same command is given again."""
    again = targets.start(strike.command)
    targets.end(again)
    if again.process.returncode != 0:
        return [f"again: code {again.process.returncode}: {''.join(again.lines)[-500:]}"]
    faults = []
    found, expected = targets.result(strike.command), targets.expected[strike.command]
    if found != expected:
        faults.append(f"again: other bits: {_difference(found, expected)}")
    if left := targets.left(strike.command):
        faults.append(f"again: left behind: {left}")
    if strike.command == "learned" and (targets.place / "a.units").exists():
        faults.append("again: units are kept though the build is done")
    return faults


def _timeline(watched: Watched) -> dict[str, tuple[float, float]]:
    """By stage, seconds since the start when it begins and ends."""
    over = time.monotonic() - watched.began
    if not watched.ends:
        return {BEGIN: (0.0, over)}
    times, before = {}, None
    for stage, end in watched.ends.items():
        begin = end - watched.took[stage]
        if before is None:
            times[BEGIN] = (0.0, begin)
        times[stage] = (begin, end)
        before = end
    times[END] = (before, over)
    return times


def _alive(session: int) -> str:
    """The processes of a session that are still there after a moment; dead ones don't count."""
    for _ in range(20):
        words = ["ps", "-o", "stat=,pid=,args=", "-s", str(session)]
        listed = subprocess.run(words, capture_output=True, text=True, check=False).stdout
        alive = [line for line in listed.splitlines() if not line.startswith("Z")]
        if not alive:
            return ""
        time.sleep(0.1)
    return "; ".join(alive)


def _contents(folder: Path) -> dict[str, Any]:
    """An artifact without what differs from build to build; what doesn't load is None."""
    from targets.errors import TvmqError
    from tvmq.artifact.artifact import Artifact

    try:
        manifest = Artifact.load(folder).manifest.model_dump(mode="json")
    except TvmqError as error:
        return {"refused": str(error)}
    for unit in manifest["reconstruction"].get("units", ()):
        unit.pop("seconds")
    for refined in manifest["reconstruction"].get("network", ()):
        refined.pop("seconds", None)
    return {key: value for key, value in manifest.items() if key not in ("seconds", "sha256")}


def _difference(found: Any, expected: Any) -> str:
    """Where two results differ."""
    if not isinstance(found, dict) or not isinstance(expected, dict):
        return f"{found!r:.200} and {expected!r:.200}"
    keys = [key for key in {*found, *expected} if found.get(key) != expected.get(key)]
    return ", ".join(f"{key}: ({_difference(found.get(key), expected.get(key))})" for key in keys)


def _exact(place: Path) -> str:
    """A digest of a file, or of all files of a folder with their names."""
    if place.is_file():
        return _digest(place)
    files = sorted(path for path in place.rglob("*") if path.is_file())
    listed = [(str(path.relative_to(place)), _digest(path)) for path in files]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _ignore(number: int) -> None:
    signal.signal(number, signal.SIG_IGN)


def _save_network(room: Path) -> None:
    """net.pt2, three convolutions and a classifier, and data.npz with 64 labelled images."""
    import numpy as np
    import torch
    from torch import nn

    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    for _ in range(2):
        layers += [nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    images = torch.randn(64, 1, 8, 8)
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(net, (images[:2],), dynamic_shapes=shapes)
    torch.export.save(program, room / "net.pt2")
    labels = np.arange(64) % 4
    np.savez(room / "data.npz", input=images.numpy(), labels=labels)
