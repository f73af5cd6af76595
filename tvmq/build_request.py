"""What a build is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from targets.errors import InputError
from tvmq.data.preprocessing import Preprocessing
from tvmq.settings import CALIBRATION_BATCH, MOST, Settings
from tvmq.tune.request import TuneRequest


@dataclass(frozen=True)
class BuildRequest:
    """Everything that a build depends on.

    Attributes:
        model_file: exported program, pickled module or state dict.
        output: folder to write.
        target: "npu", "npu:PRESET", "npu:FILE.toml" or "cpu".
        cpu: "native", or an instruction set of ``targets/cpu/instruction_sets.py``.
        settings: of the quantization.
        calib_data: one of the forms of ``tvmq/data/open.py``; None: batch-norm statistics.
        calib_samples: images to use; None: 256 (1,024 for a method that learns), or all
            where there are fewer.
        preprocessing: of images.
        plan: an edited plan file; replaces calibration and planning.
        model_factory: for state dicts.
        trust_pickle: unpickle freely.
        input_shapes: for models that are not exported programs.
        batch: images calibrated at a time.
        seed: of everything random.
        learn_device: to train on, for methods that learn: "cpu", "cuda" or "cuda:N".
        float_islands: let operators that can't be quantized run in float in the network's middle.
        strict: refuse any CPU fallback.
        max_fallback: refuse more CPU fallback than this percentage of the operators.
        tuning: of the NPU programs, or of the kernels where the target is the CPU; None to compile
            them by rule.
    """

    model_file: Path
    output: Path
    target: str = "npu"
    cpu: str = "native"
    settings: Settings = field(default_factory=Settings)
    calib_data: str | None = None
    calib_samples: int | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    plan: Path | None = None
    model_factory: str | None = None
    trust_pickle: bool = False
    input_shapes: str | None = None
    batch: int = CALIBRATION_BATCH
    seed: int = 0
    learn_device: str = "cpu"
    float_islands: bool = False
    strict: bool = False
    max_fallback: float | None = None
    tuning: TuneRequest | None = None

    def __post_init__(self) -> None:
        for name, least, most in (
            ("calib_samples", 1, MOST),
            ("batch", 1, MOST),
            ("seed", 0, 2**32 - 1),
        ):
            number = getattr(self, name)
            if number is not None and not (isinstance(number, int) and least <= number <= most):
                raise InputError(
                    f"{name} is {number!r}; give a whole number from {least} to {most}."
                )
        if self.max_fallback is not None and not 0 <= self.max_fallback <= 100:
            raise InputError(f"max_fallback is {self.max_fallback}; give a percentage, 0 to 100.")
        method = self.settings.learned_method
        if method and self.calib_data is None and self.plan is None:
            raise InputError(
                f"--method {method} learns from images; give some with --calib-data, or leave the "
                "option out to round to nearest."
            )
