"""A program file: instructions, constants, region sizes, and the layer of each instruction.

    magic "TVMQ", version, SHA-256 of the payload, payload length, payload
    payload = JSON header, instructions, constants

The header names the machine and its digest, so that a program never runs on a machine it was not
made for.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from targets.errors import InputError
from targets.npu.machine import isa

MAGIC = b"TVMQ"
VERSION = 3
_HEAD = struct.Struct("<4sI32sQ")
_JSON_LENGTH = struct.Struct("<I")
CONSTANTS, ARENA, INPUTS, OUTPUTS = range(4)
T = TypeVar("T")


@dataclass(frozen=True)
class LayerSpan:
    """Which instructions are one layer's.

    Attributes:
        runs: [begin, end) of its instructions, in order; those of other layers lie between runs.
            None if the layer needs no instruction.
        name: of the layer.
        source: module path and source line in the user's model.
        kind: "conv2d", "add", ...
        macs: multiply-accumulates of one image.
    """

    runs: tuple[tuple[int, int], ...]
    name: str
    source: str
    kind: str
    macs: int

    def of(self, items: Sequence[T]) -> list[T]:
        """The layer's own of what there is one of per instruction."""
        return [item for begin, end in self.runs for item in items[begin:end]]


@dataclass(frozen=True)
class Program:
    """What the NPU loads.

    Attributes:
        machine: name of the description it was compiled for.
        digest: that description's SHA-256.
        instructions: in program order, HALT last.
        constants: bytes of region 0.
        arena_bytes: size of region 1.
        input_bytes: size of region 2, one image.
        output_bytes: size of region 3, one image.
        layers: which instructions are whose.
    """

    machine: str
    digest: str
    instructions: tuple[isa.Instruction, ...]
    constants: bytes = field(repr=False)
    arena_bytes: int
    input_bytes: int
    output_bytes: int
    layers: tuple[LayerSpan, ...]

    def words(self) -> npt.NDArray[np.int32]:
        """int32[n, 8]: the encoded instructions."""
        code = b"".join(isa.encode(i) for i in self.instructions)
        return np.frombuffer(code, "<i4").reshape(-1, 8).astype(np.int32)

    def to_bytes(self) -> bytes:
        """The program file."""
        header = {
            "machine": self.machine,
            "digest": self.digest,
            "instructions": len(self.instructions),
            "arena_bytes": self.arena_bytes,
            "input_bytes": self.input_bytes,
            "output_bytes": self.output_bytes,
            "layers": [[s.runs, s.name, s.source, s.kind, s.macs] for s in self.layers],
        }
        text = json.dumps(header, separators=(",", ":")).encode()
        code = b"".join(isa.encode(i) for i in self.instructions)
        payload = _JSON_LENGTH.pack(len(text)) + text + code + self.constants
        digest = hashlib.sha256(payload).digest()
        return _HEAD.pack(MAGIC, VERSION, digest, len(payload)) + payload

    @staticmethod
    def from_bytes(data: bytes, origin: str = "program") -> Program:
        """Read a program file.

        Raises:
            InputError: not a program, another version, or damaged; ``origin`` is its name in the
                message.
        """
        if len(data) < _HEAD.size or data[:4] != MAGIC:
            msg = f"{origin}: not an NPU program (it does not start with TVMQ)"
            raise InputError(msg)
        _, version, digest, length = _HEAD.unpack_from(data)
        if version != VERSION:
            msg = (
                f"{origin}: program version {version}, this tvmq reads version {VERSION}. "
                "Rebuild it."
            )
            raise InputError(msg)
        payload = data[_HEAD.size :]
        if len(payload) != length or hashlib.sha256(payload).digest() != digest:
            msg = f"{origin}: damaged (its checksum does not match). Rebuild it."
            raise InputError(msg)
        (text_length,) = _JSON_LENGTH.unpack_from(payload)
        begin = _JSON_LENGTH.size + text_length
        header = json.loads(payload[_JSON_LENGTH.size : begin])
        end = begin + header["instructions"] * isa.WORD_BYTES
        words = [payload[i : i + isa.WORD_BYTES] for i in range(begin, end, isa.WORD_BYTES)]
        return Program(
            machine=header["machine"],
            digest=header["digest"],
            instructions=tuple(isa.decode(word, index) for index, word in enumerate(words)),
            constants=payload[end:],
            arena_bytes=header["arena_bytes"],
            input_bytes=header["input_bytes"],
            output_bytes=header["output_bytes"],
            layers=tuple(
                LayerSpan(tuple((begin, end) for begin, end in runs), *about)
                for runs, *about in header["layers"]
            ),
        )
