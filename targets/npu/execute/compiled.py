"""The compiled executor of a machine: made once, kept in the user's cache, linked into artifacts.

    python -m targets.npu.execute.compiled < machine.toml      makes it, for another process to find

An object file is named by what it is made of: the sizes of the machine's array and memories (an
executor knows values and no time), the host's processor, the versions of TVM and LLVM, and the
sources of all of ``targets``, since the executor shares encoding and rules with the rest. Whatever
changes one of them changes the name, so nothing stale is ever found. Beside each object lies its
SHA-256; what doesn't match it is made anew. Where the cache can't be written, an object lives as
long as the process.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tomli_w
import tvm
from tvm.support import cc
from tvm.target import Target, codegen

from targets.cpu.host import CpuFeatures, host_target
from targets.cpu.instruction_sets import AVX512_VNNI
from targets.errors import InputError, TrapError
from targets.interrupts import held_back
from targets.linker import linking
from targets.npu.execute.executor import make_executor
from targets.npu.execute.traps import Trap
from targets.npu.machine.program import Program
from targets.npu.machine.spec import NpuSpec, parse_spec
from targets.whole_files import whole_file

SYMBOL = "npu_execute_"
"""How the name of every machine's function begins."""
FOLDER_VARIABLE = "TVMQ_CACHE"
MAKER = """
import sys
sys.path[:] = filter(None, sys.path)
from targets.interrupts import end_with
end_with({parent})
from targets.npu.execute.compiled import make
make()
"""
"""What another process runs: with modules from where ours has them, not from where the user is; and
before it imports TVM, it sees to it that it does not outlive ours."""
KEPT = 16
"""Objects in the cache, a tenth of a megabyte each; those used longest ago go."""


def executor_symbol(spec: NpuSpec, target: Target | None = None) -> str:
    """The name of a machine's function, in its object and in the libraries that hold it.

    Args:
        spec: the machine.
        target: of the processor that executes it; None is this one.
    """
    array, sram = spec.array, spec.sram
    banks = (sram.act, sram.wgt, sram.acc, sram.par)
    sizes = (array.rows, array.cols, *array.precisions, *(bank.bytes for bank in banks))
    return SYMBOL + _key(sizes, str(target or host_target()))


def executor_object(spec: NpuSpec, target: Target | None = None) -> Path:
    """The object file with a machine's function; compiled if it is neither kept nor made yet."""
    target = target or host_target()
    symbol, own = executor_symbol(spec, target), Path(_own_folder().name)
    name = f"{symbol}.o"
    if symbol in _makers:
        _makers[symbol].wait()
    for folder in (cache_folder(), own):
        if _intact(folder / name):
            with contextlib.suppress(OSError):
                os.utime(folder / name)
            return folder / name
    vnni = CpuFeatures.of(target).instructions is AVX512_VNNI
    function = make_executor(spec, symbol, vnni=vnni)
    library = tvm.tirx.build(tvm.IRModule({symbol: function}), target)
    made = own / name
    library.write_to_file(str(made))
    _write_digest(made)
    return _keep(made) or made


@contextlib.contextmanager
def made_meanwhile(spec: NpuSpec | None) -> Iterator[None]:
    """Make a machine's object in another process, if it isn't kept, while the caller goes on.

    ``executor_object`` waits for that process, and makes the object itself if it could not.
    """
    if spec is None or _intact(cache_folder() / f"{executor_symbol(spec)}.o"):
        yield
        return
    symbol = executor_symbol(spec)
    try:
        with held_back():
            _makers[symbol] = _start_maker(spec)
        yield
    finally:
        with held_back():
            if maker := _makers.pop(symbol, None):
                maker.kill()
                maker.wait()


def _start_maker(spec: NpuSpec) -> subprocess.Popen[bytes]:
    with tempfile.TemporaryFile("w+") as machine:
        machine.write(tomli_w.dumps(spec.model_dump()))
        machine.seek(0)
        return subprocess.Popen(
            [sys.executable, "-c", MAKER.format(parent=os.getpid())],
            stdin=machine,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )


_makers: dict[str, subprocess.Popen[bytes]] = {}


class Executor:
    """The compiled machine, callable from Python."""

    def __init__(self, spec: NpuSpec) -> None:
        self.spec = spec

    def run(self, program: Program, inputs: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
        """Execute a program on a batch of images.

        Args:
            program: compiled for this machine.
            inputs: int8 or uint8[batch, input_bytes].

        Returns:
            uint8[batch, output_bytes].

        Raises:
            InputError: another machine's program.
            TrapError: with the instruction's index, of the first image that trapped.
        """
        if program.digest != self.spec.digest:
            msg = f"the executor is of {self.spec.name}, the program of {program.machine}."
            raise InputError(f"{msg} Make one for that machine.")
        constants = np.frombuffer(program.constants or bytes(1), np.int8)
        arena, outputs = program.arena_bytes, program.output_bytes
        return self.run_words(program.words(), constants, inputs, arena, outputs)

    def run_words(
        self,
        words: npt.NDArray[np.int32],
        constants: npt.NDArray[np.int8],
        inputs: npt.NDArray[np.generic],
        arena_bytes: int,
        output_bytes: int,
    ) -> npt.NDArray[np.uint8]:
        """The same for encoded instructions, int32[n, 8]."""
        outputs = tvm.runtime.tensor(np.zeros((inputs.shape[0], output_bytes), np.int8))
        program, data, images = (
            tvm.runtime.tensor(x) for x in (words, constants, inputs.view(np.int8))
        )
        try:
            executor_function(self.spec)(0, program, data, arena_bytes, images, outputs)
        except RuntimeError as error:
            trap = Trap.of(str(error))
            if trap is None:
                raise
            raise TrapError(trap.index, trap.reason) from None
        return outputs.numpy().view(np.uint8)


def executor_function(spec: NpuSpec) -> Any:
    """A machine's function in this process, for TVM to find by ``executor_symbol``, too."""
    return _loaded(executor_symbol(spec), str(executor_object(spec)))


@functools.cache
def _loaded(symbol: str, path: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / f"{symbol}.so"
        with linking(library.name):
            cc.create_shared(str(library), [path])
        function = tvm.runtime.load_module(str(library))[symbol]
    tvm.register_global_func(symbol, function, override=True)
    return function


def cache_folder() -> Path:
    """Where objects are kept: ``$TVMQ_CACHE``, or ``tvmq`` in the user's cache folder."""
    given = os.environ.get(FOLDER_VARIABLE)
    if given:
        return Path(given)
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "tvmq"


@functools.cache
def _own_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder of this process, gone with it."""
    return tempfile.TemporaryDirectory(prefix="tvmq-")


@functools.cache
def _key(machine: tuple[int, ...], target: str) -> str:
    digest = hashlib.sha256()
    parts = [str(machine), target, str(codegen.llvm_version_major())]
    parts += [version(package) for package in ("apache-tvm", "apache-tvm-ffi")]
    digest.update("\n".join(parts).encode())
    package = Path(__file__).resolve().parents[2]
    for source in sorted(package.rglob("*.py")):
        digest.update(f"\n{source.relative_to(package)}\n".encode() + source.read_bytes())
    return digest.hexdigest()[:24]


def _digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write_digest(path: Path) -> None:
    path.with_suffix(".sha256").write_text(_digest_of(path))


def _intact(path: Path) -> bool:
    try:
        return path.with_suffix(".sha256").read_text() == _digest_of(path)
    except OSError:
        return False


def _keep(made: Path) -> Path | None:
    """Copy an object into the cache, whole or not at all; None where that can't be."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in (made, made.with_suffix(".sha256")):
            with whole_file(folder / path.name) as file:
                file.write(path.read_bytes())
        _forget_oldest(folder)
    except (OSError, InputError):
        return None
    return folder / made.name


def _forget_oldest(folder: Path) -> None:
    objects = sorted(folder.glob(f"{SYMBOL}*.o"), key=lambda path: path.stat().st_mtime)
    for path in objects[:-KEPT]:
        path.unlink(missing_ok=True)
        path.with_suffix(".sha256").unlink(missing_ok=True)


def make() -> None:
    """Make the executor of the machine that standard input describes."""
    executor_object(parse_spec(sys.stdin.read(), "standard input"))


if __name__ == "__main__":
    make()
