"""Random command lines, from what click declares of all verbs and options and a pool of files.

Whatever is asked for, the exit code is a documented one, nothing is called a fault of tvmq, nothing
of the user's is changed but what was named as an output, and an error leaves no output.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import click

from attacks import Attempt
from attacks.command_server import ESCAPED, ROOT, TIMED_OUT, CommandServer, Done
from attacks.materials import FUNCTIONS, damage, devices, make_room
from tvmq.cli import VERBS, cli

SECONDS = 90
"""For an attempt; a build takes three."""

DOCUMENTED = {0, 1, 2, 4, 5}

OUTPUTS = {"output", "outputs", "csv_file", "trace", "html", "ranges"}
"""Parameters that name what is written."""

MODELS = ("model.pt2", "two.pt2", "module.pt", "state.pt", "checkpoint.pt", "m\u00f6del \u2603.pt2")
ARTIFACT = "built.tvmq"

GOOD: dict[str, tuple[str, ...]] = {
    "model_file": MODELS,
    "artifact": (ARTIFACT,),
    "other": (ARTIFACT,),
    "subject": (*MODELS, ARTIFACT),
    "target": ("npu", "npu:e256", "cpu"),
    "output": ("new.tvmq", "deep/er/new.tvmq", ARTIFACT),
    "calib_data": ("images.npz", "floats.npz", "pictures", "code_of_mine:floats", "both.npz"),
    "data": ("images.npz", "floats.npz", "pictures", "code_of_mine:floats", "named_images.npz"),
    "inputs": ("images.npz", "floats.npz", "float_images.npz", "named_images.npz"),
    "outputs": ("out.npz",),
    "precision": ("w8a8", "w4a8", "w2a2", "W8A4"),
    "method": (
        "rtn",
        "wess",
        "equalize",
        "rapq",
        "adaround",
        "equalize,wess",
        "qdrop",
        "qdrop,aquant",
    ),
    "exclude": ("*", "first", "conv*", "["),
    "plan": ("plan.json",),
    "model_factory": ("code_of_mine:Net",),
    "input_shapes": ("x:1x1x8x8", "1x1x8x8", "x:[2,1,8,8]"),
    "mean": ("0.5", "0"),
    "std": ("0.5", "1"),
    "resize": ("8", "9"),
    "crop": ("8",),
    "iters": ("1", "3"),
    "learn_batch": ("1", "4"),
    "learn_device": ("cpu", "cuda", "tpu"),
    "calib_samples": ("1", "4", "12"),
    "samples": ("1", "5", "100"),
    "batch": ("1", "5", "64"),
    "seed": ("0", "7", "4294967295"),
    "first_last_bits": ("2", "8"),
    "residual_bits": ("3", "8"),
    "kappa": ("0", "0.5", "1"),
    "distill_iters": ("1", "3"),
    "min_top1": ("0", "0.3", "1"),
    "max_fallback": ("0", "50", "100"),
    "stage": ("integer", "placed", "float", "LowerConvolution"),
    "energy": ("horowitz45",),
    "csv_file": ("rows.csv",),
    "trace": ("trace.json",),
    "html": ("page.html",),
    "ranges": ("ranges.svg",),
    "config": ("good.toml",),
}

RECIPES: dict[str, tuple[str, ...]] = {
    "build": (
        "model.pt2 --target cpu",
        "model.pt2 --calib-data images.npz --mean 0.5 --std 0.5",
        "model.pt2 --target cpu --calib-data floats.npz --mean 0.5 --std 0.5",
        "model.pt2 --calib-data pictures --mean 0.5 --std 0.5 --resize 8 --crop 8 --target cpu",
        "model.pt2 --calib-data code_of_mine:images --mean 0 --std 1 --target cpu",
        "model.pt2 --calib-data one_huge.npz --scales free --target cpu",
        "model.pt2 --calib-data huge.npz --target cpu",
        "model.pt2 --calib-data tiny.npz --granularity channel --target cpu",
        "model.pt2 --calib-data zero.npz --calib-method lp --target cpu",
        "model.pt2 --method rapq --iters 1 --calib-data floats.npz --target cpu",
        "model.pt2 --method qdrop --iters 2 --calib-data one_huge.npz --precision w2a2",
        "model.pt2 --precision w2a2 --residual-bits 8 --residual-reads whole --target cpu",
        "model.pt2 --method equalize,wess --calib-data half.npz --target cpu",
        "model.pt2 --plan plan.json --target cpu",
        "two.pt2 --calib-data both.npz --target cpu",
        "two.pt2 --calib-data image_and_numbers.npz --mean 0.5 --std 0.5 --target cpu",
        "module.pt --trust-pickle --input-shapes 1x1x8x8 --target cpu --calib-data floats.npz",
        "state.pt --model code_of_mine:Net --input-shapes x:1x1x8x8 --target cpu",
        "raises.pt --trust-pickle --input-shapes 1x1x8x8",
        "leaves.pt --trust-pickle --input-shapes 1x1x8x8",
    ),
    "run": (
        "built.tvmq -i images.npz -o out.npz",
        "built.tvmq -i floats.npz -o out.npz --device reference",
        "built.tvmq -i one_huge.npz -o out.npz --device float",
        "built.tvmq -i huge.npz -o out.npz --device cpu",
    ),
    "eval": (
        "built.tvmq --data images.npz --min-top1 0.1",
        "built.tvmq --data huge.npz --device float",
        "built.tvmq --data pictures --resize 8 --crop 8",
    ),
    "inspect": ("model.pt2", "built.tvmq", "two.pt2 --precision w4a4", "built.tvmq --stage placed"),
    "profile": (
        "built.tvmq",
        "built.tvmq built.tvmq",
        "built.tvmq --csv rows.csv --html page.html",
    ),
    "disasm": ("built.tvmq",),
    "targets": ("",),
    "doctor": ("",),
}
"""Command lines that work, or nearly, to which options are added."""

NUMBERS = (
    *("nan", "inf", "-inf", "1e999", "-1", "0", "1e-400", "9" * 30, "9" * 5000, "2147483648"),
    *("0.5", "2.5", "1_000", "0x10", "", " ", "one", "\u0663", "-0.0", "1,2", "1e308", "3e38"),
)
TEXTS = (
    *("", " ", "x" * 300, "/".join(["y" * 200] * 30), "\u2603", "[bold]", "%s%n", "--", "-", "a:b"),
    *("../..", "/", ".", "~", "npu:", "npu:none", "w9a9", "w8", ":", "a.b:c.d", "\x1b[31m", "a\nb"),
    *("nan,nan", "0.5,inf", "1e999", "3e38", "1,1,1,1", "x:0x0", "x:1", "x:99999999999999999999x3"),
    *(
        "x:1x1x99999999x99999999",
        "y:1x1x8x8",
        "x:1x1x7x5",
        "x:1x1x1x1",
        "rtn,rtn",
        ",",
        "wess,rapq",
    ),
    *("os:getcwd", "code_of_mine:broken", "code_of_mine:leaves", "code_of_mine:text", "sys:exit"),
    *("code_of_mine:Two", "code_of_mine:Raises", "none_of_mine:f", "code_of_mine:", "../x:y"),
)
PLACES = (
    *("mine", "notes.txt", "empty_folder", "none/such/file", "loop", "dangling", "dev_null"),
    *("dev_full", "x" * 300, "/".join(["y" * 200] * 30), ".", "..", "/", "", "mine/thesis.txt/x"),
    *(
        "built.tvmq/inside.npz",
        "damaged.tvmq",
        "/proc/self/mem",
        "/sys/none",
        "a\nb",
        "\x1b[31mred",
    ),
)
"""Outputs that should not be, or where something of the user's stands."""


def attempts(count: int, seed: int, room: Path) -> Iterator[Attempt]:
    """Make random command lines; yields each as one that can be typed again."""
    pool = room / "pool"
    pool.mkdir()
    make_room(pool)
    devices(pool)
    with CommandServer() as server:
        words = ["build", "model.pt2", "-o", ARTIFACT, "--calib-data", "images.npz"]
        built = server.run([*words, "--mean", "0.5", "--std", "0.5"], pool, 600)
        if built.code != 0:
            yield Attempt("the artifact that is attacked", built.err)
            return
        damage(pool, pool / ARTIFACT)
        for index in range(count):
            chance = random.Random(f"{seed} {index}")
            folder = room / "here"
            shutil.copytree(pool, folder, symlinks=True, copy_function=_copy)
            line = _Line(chance, folder)
            before = _contents(folder)
            done = server.run(line.words, folder, SECONDS)
            broke = _broke(line, done, before, _contents(folder))
            yield Attempt(f"{index}: {_readable(line.words)}{line.note}", broke)
            shutil.rmtree(folder)


class _Line:
    """A command line.

    Attributes:
        words: of it, without "tvmq".
        outputs: paths that it names to be written, as typed.
        note: on a configuration that was written for it.
    """

    def __init__(self, chance: random.Random, folder: Path) -> None:
        self._chance, self._folder = chance, folder
        self._files = sorted(path.name for path in folder.iterdir())
        self.outputs: list[str] = []
        self.note = ""
        self._goodness = chance.choice((0.3, 0.8, 0.95))
        verb = chance.choices(VERBS, weights=(6, 5, 5, 2, 5, 1, 0.3, 0.2))[0]
        command = cli.get_command(click.Context(cli), verb)
        assert command is not None
        self.words = [verb]
        given = chance.random()
        if chance.random() < 0.5:
            self._from_recipe(command, verb)
            parameters: list[click.Parameter] = []
        else:
            parameters = command.params
        for parameter in parameters:
            if isinstance(parameter, click.Argument):
                if parameter.required or chance.random() < 0.2:
                    self.words.append(self._value(parameter))
            elif parameter.required or chance.random() < 0.4 * given:
                self._option(parameter)
        if "output" in {p.name for p in command.params} and not self.outputs:
            model = Path(self.words[1])
            self.outputs.append(f"{model.stem}.tvmq")
        if "--config" not in self.words and chance.random() < 0.1:
            self._configuration(command, verb)
        if chance.random() < 0.03:
            chance.shuffle(self.words)

    def _from_recipe(self, command: click.Command, verb: str) -> None:
        self.words += self._chance.choice(RECIPES[verb]).split()
        for name in ("-o", "--csv", "--html"):
            if name in self.words:
                self.outputs.append(self.words[self.words.index(name) + 1])
        options = [p for p in command.params if isinstance(p, click.Option)]
        for option in self._chance.sample(options, self._chance.choice((0, 0, 1, 1, 2))):
            self._option(option)

    def _option(self, option: click.Parameter) -> None:
        assert isinstance(option, click.Option)
        name = self._chance.choice(option.opts)
        if option.is_flag or option.count:
            self.words.append(name)
            return
        value = self._value(option)
        self.words += [f"{name}={value}"] if name.startswith("--") else [name, value]
        if name in ("--mean", "--std") and self._chance.random() < 0.8:
            other = "--std" if name == "--mean" else "--mean"
            self.words += [other, self._chance.choice(("0.5", "1", value))]

    def _value(self, parameter: click.Parameter) -> str:
        name = str(parameter.name)
        value = self._any_value(parameter)
        if name in OUTPUTS:
            self.outputs.append(value)
        return value

    def _any_value(self, parameter: click.Parameter) -> str:
        chance, name = self._chance, str(parameter.name)
        if isinstance(parameter.type, click.Choice):
            choices = [str(choice) for choice in parameter.type.choices]
            return chance.choice([*choices, *choices, "none"])
        if chance.random() < self._goodness and name in GOOD:
            return chance.choice(GOOD[name])
        if name in OUTPUTS:
            return chance.choice(PLACES)
        if isinstance(parameter.type, click.Path) or name in ("calib_data", "data"):
            return self._path()
        if isinstance(parameter.type, click.IntRange | click.FloatRange):
            return chance.choice(NUMBERS)
        if name == "target":
            return f"npu:{self._path()}" if chance.random() < 0.5 else self._machine()
        return chance.choice(TEXTS)

    def _path(self) -> str:
        chance = self._chance
        return chance.choice(
            [
                chance.choice(self._files),
                chance.choice(self._files),
                chance.choice(TEXTS),
                f"code_of_mine:{chance.choice(FUNCTIONS)}",
                "/proc/self/mem",
            ]
        )

    def _machine(self) -> str:
        """A description with one number changed; ``inspect`` reads it, builds make few of them."""
        text = (ROOT / "targets/npu/specs/e256.toml").read_text()
        numbers = list(re.finditer(r"(?<== )[\d_.]+", text))
        number = self._chance.choice(numbers)
        value = self._chance.choice(
            ("0", "1", "3", "-1", "nan", "inf", "1e9", "'x'", "[]", "true", "2147483647", "9" * 25)
        )
        text = text[: number.start()] + value + text[number.end() :]
        (self._folder / "changed.toml").write_text(text)
        self.note = f" ({number[0]} at {number.start()} of the machine is {value})"
        return "npu:changed.toml"

    def _configuration(self, command: click.Command, verb: str) -> None:
        """Some options in a file instead."""
        chance, lines = self._chance, []
        options = [
            p for p in command.params if isinstance(p, click.Option) and p.opts[0][:2] == "--"
        ]
        for option in chance.sample(options, min(3, len(options))):
            if str(option.name) in OUTPUTS:
                continue
            value = self._any_value(option)
            plain = chance.choice(
                (json.dumps(value), json.dumps(value), value, "nan", "true", '"a\\u0000b"', "[1]")
            )
            lines.append(f"{option.opts[0][2:]} = {plain}")
        text = "\n".join([f"[{verb}]", *lines]) + "\n"
        (self._folder / "own.toml").write_text(text, errors="surrogateescape")
        self.words += ["--config", "own.toml"]
        self.note += f" (own.toml: {text!r})"


def _copy(source: str, target: str) -> None:
    """A file, or a device."""
    found = os.lstat(source)
    if os.path.isfile(source):  # noqa: PTH113
        shutil.copy2(source, target)
    else:
        os.mknod(target, found.st_mode, found.st_rdev)


def _contents(folder: Path) -> dict[str, str]:
    """What stands in a folder, by name below it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if "__pycache__" in name:
            continue
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder" if path.is_dir() else "device"
    return found


def _broke(line: _Line, done: Done, before: dict[str, str], after: dict[str, str]) -> str:
    """What went wrong; "" if nothing did."""
    said = f"; it said: {done.err[-400:]}"
    if done.code == TIMED_OUT:
        return f"took more than {SECONDS} s{said}"
    if done.code == ESCAPED or done.code not in DOCUMENTED:
        return f"exit code {done.code}{said}"
    if "internal:" in done.err:
        return f"called its own fault what is none{said}"
    loud = any(re.fullmatch("-v+", word) for word in line.words) or "verbose" in str(line.words)
    if "Traceback" in done.err and not loud:
        return f"a traceback{said}"
    lines = done.err.strip().splitlines()
    if done.code and not (lines and lines[-1].startswith("error: ")) and "Usage:" not in done.err:
        return f"exit code {done.code} without one line of error at the end{said}"
    if done.code == 0 and "--json" in line.words and line.words[0] != "--json":
        try:
            json.loads(done.out)
        except ValueError:
            return f"no JSON on stdout: {done.out[:200]!r}"
    return _changed(line, done, before, after)


def _changed(line: _Line, done: Done, before: dict[str, str], after: dict[str, str]) -> str:
    names = {name for name in before | after if before.get(name) != after.get(name)}
    if done.code == 1:  # an artifact is kept when a gate of its results fails
        names = {name for name in names if name in before}
    for output in line.outputs if done.code in (0, 1) else ():
        place = os.path.normpath(output)
        within = {str(parent) for parent in Path(place).parents} | {place}
        within.add(before.get(place, "").removeprefix("link to "))  # what is written through it
        names = {n for n in names if n not in within and not n.startswith(f"{place}/")}
    # units that were learned before an error are kept for the next try
    names = {name for name in names if not name.split("/")[0].endswith(".units")}
    if names:
        what = "changed" if done.code in (0, 1) else "left or changed after an error"
        return f"{what}: {', '.join(sorted(names)[:5])} (exit code {done.code})"
    return ""


def _readable(words: list[str]) -> str:
    return "tvmq " + " ".join(json.dumps(w) if re.search(r"[^\w=:./,-]", w) else w for w in words)
