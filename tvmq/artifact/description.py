"""An artifact in a few lines: what was built from what, and when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # so that printing does not import what reads artifacts
    from tvmq.artifact.artifact import Artifact, CpuEntry, Manifest


def described(artifact: Artifact) -> Iterator[str]:
    """Lines of what it is.

    The date is that of its manifest: builds are the same to the byte whenever they are made.
    """
    manifest = artifact.manifest
    versions, placement = manifest.versions, manifest.placement
    built = datetime.fromtimestamp(
        (artifact.held.path / "manifest.json").stat().st_mtime, timezone.utc
    )
    yield f"{manifest.model['file']} ({manifest.model['kind']}): {settings_text(manifest.settings)}"
    yield f"calibration: {manifest.calibration['source']}"
    yield f"operators: {placement_text(placement)}"
    if manifest.cpu is not None:
        yield f"CPU: {cpu_text(manifest.cpu)}"
    yield (
        f"{verdict_text(manifest)}. Accuracy is not part of an artifact: `tvmq eval` "
        "measures it on your data."
    )
    made_by = ", ".join(f"{name} {versions[name]}" for name in _MAKERS if name in versions)
    yield f"built {built:%Y-%m-%d %H:%M} UTC by {made_by}"


def placement_text(placement: Mapping[str, int]) -> str:
    """How many operators run where."""
    text = f"{placement['npu']} on the NPU, {placement['cpu']} on the CPU"
    floats = placement.get("float", 0)
    return text + (f", {floats} in float on the host" if floats else "")


def cpu_text(cpu: CpuEntry) -> str:
    """The processor that the libraries are for."""
    return f"{cpu.architecture} {cpu.processor}, kernels of {cpu.instructions} (--cpu {cpu.target})"


def verdict_text(manifest: Manifest) -> str:
    """What was compared at the end of the build, and how it ended."""
    devices = "reference and CPU" if manifest.target == "cpu" else "reference, CPU and NPU"
    same = "identical, bit for bit" if manifest.bit_exact else "DIFFERENT"
    text = f"{devices} on golden.npz: {same}"
    if manifest.cpu is None or manifest.cpu.executed:
        return text
    return (
        f"{text}, compiled for the machine that built it; the libraries for "
        f"{manifest.cpu.instructions} were not executed, and must give the same"
    )


_MAKERS = ("tvmq", "tvm", "torch", "numpy", "python")


def settings_text(settings: Mapping[str, Any]) -> str:
    """The settings of a manifest in one line."""
    methods = [name for name in settings["method"] if name != "rtn"]
    steps = "power-of-two steps" if settings["scales"] == "pot" else "free steps"
    added = ""
    if bits := settings.get("residual_bits"):
        added = f"residuals {bits} bits read {settings['residual_reads']}, "
    shifts = " with a shift per channel" if "wess" in methods else ""
    return (
        f"{', '.join([settings['precision'], *methods, steps])}, symmetric weights per "
        f"{settings['granularity']}{shifts}, activations per tensor, {added}first and last layer "
        f"{settings['first_last_bits']} bits"
    )
