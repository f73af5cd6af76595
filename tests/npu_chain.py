"""A small NPU program to search choices for, and a memory of trials."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from npu_layers import conv

from targets.layers import Layer
from targets.npu.machine.spec import load_spec
from targets.npu.trials import Trials

E256 = load_spec("e256")


class Memory:
    """Trials that are known while the process lives."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], int] = {}
        self.made: list[tuple[str, str]] = []

    def find(self, workload: str, choice: Any) -> int | None:
        return self.known.get((workload, repr(choice)))

    def add(self, workload: str, choice: Any, cycles: int, words: str) -> None:
        assert words
        self.known[workload, repr(choice)] = cycles
        self.made.append((workload, repr(choice)))


def layers() -> list[Layer]:
    chain: list[Layer] = []
    for n, (channels, stride) in enumerate(((24, 1), (40, 2), (40, 1), (40, 1))):
        shape = chain[-1].output.shape if chain else (28, 28, 8)
        layer = conv(shape, channels, strides=(stride, stride), seed=n)
        source = {"input": chain[-1].output} if chain else {}
        chain.append(replace(layer, **source, output=replace(layer.output, name=f"v{n}")))
    return chain


def trials() -> Trials:
    made = layers()
    return Trials(made, made[0].inputs, [made[-1].output], E256)
