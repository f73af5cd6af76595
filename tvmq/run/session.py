"""Run an artifact on one of its devices; all but "float" give the same numbers, bit for bit.

npu        model.so: the encoded NPU programs in the simulator, CPU fallback around them
cpu        cpu.so: the same integers in CPU kernels
reference  integer.json in the NumPy interpreter, which is the definition; what stays in float
           around or between the integers is run by cpu.so, as on the others
float      float.pt2 in torch: what the network was before quantization
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from targets.causes import in_words
from targets.errors import InputError, TrapError, TvmqError
from targets.npu.execute.traps import Trap
from targets.npu.machine.program import Program
from tvmq.artifact.artifact import Artifact

Array: TypeAlias = npt.NDArray[Any]
"""float32, or what a float end takes or gives instead: bytes of an image, indices."""

Runner: TypeAlias = Callable[[Sequence[Array]], list[Array]]


DEVICES = ("npu", "cpu", "reference", "float")


class Session:
    """A loaded network.

    Attributes:
        device: the one it runs on.
    """

    def __init__(self, artifact: Artifact, device: str | None = None) -> None:
        """Load for a device; None: the NPU if the artifact was built for one, else the CPU.

        Raises:
            InputError: the artifact was not built for that device, or for this processor.
        """
        self.artifact = artifact
        self.device = device or ("npu" if artifact.has("npu.toml") else "cpu")
        self._run = _runner(artifact, self.device)

    def run(self, inputs: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, Array]:
        """Compute one batch.

        Args:
            inputs: [N, ...] by input name, preprocessed, N the same for all; float32 but for what a
                float end takes.

        Returns:
            [N, ...] by output name; float32 but for what a float end gives.

        Raises:
            InputError: a name, shape or value is wrong.
            TvmqError: the device can't do it, as where the batch is too large for the memory.
        """
        arrays = check_inputs(self.artifact, inputs)
        try:
            outputs = self._run(arrays)
        except TvmqError:
            raise
        except Exception as error:  # of TVM, torch and NumPy
            words = in_words(error, "Build it again.", known="Give a smaller batch.")
            raise TvmqError(f"{self.artifact.folder}: stopped on {self.device}: {words}") from error
        names = [output.name for output in self.artifact.manifest.outputs]
        if len(outputs) != len(names):
            raise InputError(
                f"{self.artifact.folder}: gives {len(outputs)} outputs, its manifest names "
                f"{len(names)}. Build it again."
            )
        return dict(zip(names, outputs, strict=True))


def _runner(artifact: Artifact, device: str) -> Runner:
    if device == "npu":
        if not artifact.has("npu.toml"):
            raise InputError(
                f"{artifact.folder}: was built for the CPU. "
                f"Build it with --target npu, or choose --device cpu."
            )
        with artifact.library("model.so") as path:
            return _with_checked_head(artifact, LibraryRunner(path, artifact.programs()))
    if device == "cpu":
        with artifact.library("cpu.so") as path:
            return _with_checked_head(artifact, LibraryRunner(path))
    if device == "reference":
        library: LibraryRunner | None = None
        if artifact.manifest.float_ends is not None or artifact.manifest.float_islands:
            with artifact.library("cpu.so") as path:
                library = LibraryRunner(path)
        with artifact.reading("integer.json") as path:
            integers = ReferenceRunner(path, library)
        if library is None or artifact.manifest.float_ends is None:
            return integers
        return between_ends(library, integers)
    if device == "float":
        with artifact.reading("float.pt2") as path:
            return float_runner(path)
    raise InputError(f"device {device!r} is unknown. Choose one of {', '.join(DEVICES)}.")


def load_library(path: Path) -> Any:
    """The ``relax.VirtualMachine`` of a compiled library.

    A library that is loaded is found again by its path, even if the file has been replaced since,
    as by a second build; so what is loaded is a copy with a path of its own.
    """
    import tvm
    from tvm import relax

    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copy(path, folder)
        return relax.VirtualMachine(tvm.runtime.load_module(copy), tvm.cpu())


class LibraryRunner:
    """A compiled library; TVM and NumPy are all that its process needs.

    Args:
        path: of the library.
        programs: the NPU programs in it, by file name, to say which layer trapped.
    """

    def __init__(self, path: Path, programs: Mapping[str, Program] | None = None) -> None:
        self._machine, self._programs = load_library(path), programs or {}

    def __call__(self, arrays: Sequence[Array], function: str = "main") -> list[Array]:
        """Run a function of it: all, a float end or what is between the ends.

        Raises:
            TrapError: the NPU met an illegal instruction.
        """
        import tvm

        try:
            outputs = self._machine[function](*(tvm.runtime.tensor(array) for array in arrays))
        except RuntimeError as error:
            trap = Trap.of(str(error))
            if trap is None:
                raise
            raise TrapError(trap.index, trap.reason, _layer_of(trap, self._programs)) from None
        return [output.numpy() for output in outputs]

    def parameters_of(self, function: str) -> int:
        """How many arrays a function of it takes."""
        return int(self._machine.module["get_function_arity"](function))


def _layer_of(trap: Trap, programs: Mapping[str, Program]) -> str:
    """Program and layer of a trap, as far as they are known."""
    name = f"program_{trap.program}.bin"
    spans = programs[name].layers if name in programs else ()
    layers = [
        f" (layer {span.name}, {span.source})"
        for span in spans
        if any(begin <= trap.index < end for begin, end in span.runs)
    ]
    return f"the NPU trapped in {name}{''.join(layers)}, "


def _with_checked_head(artifact: Artifact, library: LibraryRunner) -> Runner:
    """A library, run in three parts where its float head makes numbers of the inputs."""
    from relay_passes.float_ends import INTEGERS

    ends = artifact.manifest.float_ends
    if ends is None or not ends.head:
        return library
    return between_ends(library, partial(library, function=INTEGERS))


def between_ends(library: LibraryRunner, integers: Runner) -> Runner:
    """The float ends of a library, and what is between them by any means."""
    from relay_passes.float_ends import HEAD, INTEGERS, TAIL

    read = library.parameters_of(INTEGERS)

    def run(arrays: Sequence[Array]) -> list[Array]:
        given = library(arrays, HEAD)
        require_finite(given[:read])
        return library([*integers(given[:read]), *given[read:]], TAIL)

    return run


def require_finite(made: Sequence[Array]) -> None:
    """Refuse inputs of which the float head makes what has no code."""
    for array in made:
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            image = int(np.argmin(np.isfinite(array.reshape(len(array), -1)).all(axis=1)))
            raise InputError(
                f"image {image} of the batch: what runs in float before the first quantized layer "
                "makes NaN or infinite values of it, as of a constant image that is divided by its "
                "own deviation, or of a number that an embedding doesn't have. Leave it out, or "
                "divide by something above 0."
            )


class ReferenceRunner:
    """The NumPy interpreter on a saved integer module.

    Args:
        path: of the module.
        library: the compiled library that runs its float islands; None if it has none.
    """

    def __init__(self, path: Path, library: LibraryRunner | None = None) -> None:
        import tvm

        from relay_passes.relax_nodes import Graph

        self._module = tvm.ir.load_json(path.read_text())
        self._names = tuple(param.name for param in Graph(self._module).params)
        self._library = library

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        """Run it."""
        from tvmq.run.reference import run_reference

        inputs = dict(zip(self._names, arrays, strict=True))
        return run_reference(self._module, inputs, islands=self._library)


def float_runner(path: Path) -> Runner:
    """The saved float network, in torch."""
    import torch

    from tvmq import token_operators  # noqa: F401  registers operators that the file may name

    module = torch.export.load(path).module()

    def run(arrays: Sequence[Array]) -> list[Array]:
        with torch.no_grad():
            outputs = module(*(torch.tensor(array) for array in arrays))
        return [output.numpy() for output in outputs]

    return run


def check_inputs(artifact: Artifact, inputs: Mapping[str, npt.NDArray[np.generic]]) -> list[Array]:
    """The arrays in the order of the network, contiguous float32."""
    wanted = artifact.manifest.inputs
    names = [info.name for info in wanted]
    if set(inputs) != set(names):
        raise InputError(
            f"Inputs are named {', '.join(sorted(inputs)) or 'nothing'}; "
            f"this network takes {', '.join(names)}. Rename the arrays."
        )
    arrays = []
    for info in wanted:
        array = inputs[info.name]
        floats = info.dtype == "float32"
        fits = array.dtype.kind == "f" if floats else array.dtype == info.dtype
        if not fits or array.shape[1:] != info.image_shape or not len(array):
            shape = ", ".join(map(str, info.shape[1:]))
            raise InputError(
                f"Input {info.name}: expected {info.dtype}[N, {shape}], "
                f"got {array.dtype}{list(array.shape)}. Give one array of N preprocessed inputs."
            )
        with np.errstate(over="ignore"):
            arrays.append(np.ascontiguousarray(array, info.dtype))
        if not np.isfinite(arrays[-1]).all():
            raise InputError(
                f"Input {info.name}: has NaN or infinite values, or some beyond float32. Remove "
                "them."
            )
    if len({len(array) for array in arrays}) > 1:
        raise InputError(f"Inputs {', '.join(names)}: have different batch sizes. Give equal ones.")
    return arrays
