"""The instruction sets that kernels are written for, fastest first: the one table of them.

A kernel asks its set for lanes, registers and instructions, and knows no name. The integers are the
same on all.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.target import Target, codegen

from targets.cpu.intrinsics import DotProduct, accumulating, neon_bytes, of_bytes, of_words
from targets.errors import InputError

NATIVE = "native"
CORES = 4
"""That kernels for a named set are cut for: the same wherever they are built."""


@dataclass(frozen=True, eq=False)
class InstructionSet:
    """What kernels use of a family of processors.

    Attributes:
        name: as users give it.
        title: for people.
        architecture: how the target's triple begins; "" is any.
        needs: features of the processor, by LLVM's names.
        lanes: int32 sums of a vector, in which output channels are packed.
        registers: vectors of sums that a tile may have.
        bytes: instructions for weights of 8 bits, fastest first but for the type on their left.
            Where none has the layer's, codes are staged with their sign bit turned.
        words: for weights of 16 bits, or None.
        mcpu: LLVM's name of the smallest processor that has all this.
        aliases: other names that users may give.
    """

    name: str
    title: str
    architecture: str
    needs: tuple[str, ...]
    lanes: int
    registers: int
    bytes: tuple[DotProduct, ...] = ()
    words: DotProduct | None = None
    mcpu: str = ""
    aliases: tuple[str, ...] = ()

    @property
    def target(self) -> Target:
        """The ``llvm`` target of the smallest processor that has it."""
        of_mcpu = Target(self._attributes([]))
        extra = [f for f in self.needs if not codegen.llvm_cpu_has_features([f], of_mcpu)]
        return Target(self._attributes([f"+{feature}" for feature in extra]))

    def _attributes(self, features: list[str]) -> dict[str, object]:
        attributes: dict[str, object] = {
            "kind": "llvm",
            "mtriple": f"{self.architecture}-linux-gnu",
            "mcpu": self.mcpu,
            "num-cores": CORES,
        }
        return attributes | ({"mattr": features} if features else {})


def _x86(lanes: int, name: str, depth: int, left: str, right: str) -> DotProduct:
    emit, in_words = _X86[name, lanes], name == "pmaddubsw"
    operations = {"pmaddubsw": 3, "pmaddwd": 2}.get(name, 1)
    name = f"{name}_{right}x{lanes}"
    return DotProduct(name, lanes, depth, left, right, emit, operations, in_words)


_X86 = {
    ("vpdpbusd", 16): accumulating("llvm.x86.avx512.vpdpbusd.512"),
    ("vpdpwssd", 16): accumulating("llvm.x86.avx512.vpdpwssd.512"),
    ("vpdpbusd", 8): accumulating("llvm.x86.avx512.vpdpbusd.256"),  # AVX-VNNI's, too
    ("vpdpwssd", 8): accumulating("llvm.x86.avx512.vpdpwssd.256"),
    ("pmaddubsw", 16): of_bytes("llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512"),
    ("pmaddubsw", 8): of_bytes("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd"),
    ("pmaddwd", 16): of_words("llvm.x86.avx512.pmaddw.d.512"),
    ("pmaddwd", 8): of_words("llvm.x86.avx2.pmadd.wd"),
    ("pmaddwd", 4): of_words("llvm.x86.sse2.pmadd.wd"),
}


def _vnni(lanes: int) -> tuple[tuple[DotProduct, ...], DotProduct]:
    return (_x86(lanes, "vpdpbusd", 4, "uint8", "int8"),), _x86(
        lanes, "vpdpwssd", 2, "int16", "int16"
    )


def _madd(lanes: int) -> tuple[tuple[DotProduct, ...], DotProduct]:
    of_int8, of_int16 = (_x86(lanes, "pmaddwd", 2, "int16", right) for right in ("int8", "int16"))
    narrow = [_x86(lanes, "pmaddubsw", 4, "uint8", "int8")] if ("pmaddubsw", lanes) in _X86 else []
    return (*narrow, of_int8), of_int16


_SDOT = DotProduct("sdot", 4, 4, "int8", "int8", accumulating("llvm.aarch64.neon.sdot"), 1)
_USDOT = DotProduct("usdot", 4, 4, "uint8", "int8", accumulating("llvm.aarch64.neon.usdot"), 1)
_SMULL = DotProduct("smull", 4, 2, "int8", "int8", neon_bytes, 2)

AVX512_VNNI = InstructionSet(
    "avx512-vnni", "AVX512-VNNI", "x86_64", ("avx512vnni", "avx512bw"), 16, 15, *_vnni(16),
    mcpu="cascadelake", aliases=("cascadelake",),
)  # fmt: skip
AVX_VNNI = InstructionSet(
    "avx-vnni", "AVX-VNNI", "x86_64", ("avx2", "avxvnni"), 8, 12, *_vnni(8), mcpu="x86-64-v3"
)
AVX512 = InstructionSet(
    "avx512", "AVX512", "x86_64", ("avx512f", "avx512bw"), 16, 15, *_madd(16),
    mcpu="x86-64-v4", aliases=("x86-64-v4",),
)  # fmt: skip
AVX2 = InstructionSet(
    "avx2", "AVX2", "x86_64", ("avx2",), 8, 12, *_madd(8),
    mcpu="x86-64-v3", aliases=("x86-64-v3",),
)  # fmt: skip
X86_64 = InstructionSet(
    "x86-64", "SSE2", "x86_64", ("sse2",), 4, 12, *_madd(4), mcpu="x86-64", aliases=("sse2",)
)
ARM_I8MM = InstructionSet(
    "armv8-i8mm", "NEON with i8mm", "aarch64", ("neon", "dotprod", "i8mm"), 4, 24, (_USDOT, _SDOT),
    mcpu="generic",
)  # fmt: skip
ARM_DOTPROD = InstructionSet(
    "armv8-dotprod", "NEON with dot products", "aarch64", ("neon", "dotprod"), 4, 24, (_SDOT,),
    mcpu="generic",
)  # fmt: skip
ARM_NEON = InstructionSet(
    "armv8-neon", "NEON", "aarch64", ("neon",), 4, 24, (_SMULL,),
    mcpu="generic", aliases=("armv8", "aarch64"),
)  # fmt: skip
PLAIN = InstructionSet("plain", "no vectors that tvmq knows", "", (), 16, 15)

INSTRUCTION_SETS = (
    *(AVX512_VNNI, AVX_VNNI, AVX512, AVX2, X86_64),
    *(ARM_I8MM, ARM_DOTPROD, ARM_NEON),
    PLAIN,
)


def architecture_of(target: Target) -> str:
    """How the target's triple begins: "x86_64", "aarch64"."""
    triple = target.attrs.get("mtriple") or codegen.llvm_get_system_triple()
    return str(triple).split("-")[0].replace("arm64", "aarch64")


def best_of(target: Target) -> InstructionSet:
    """The fastest set that an ``llvm`` target has."""
    architecture = architecture_of(target)
    return next(
        each
        for each in INSTRUCTION_SETS
        if each.architecture in ("", architecture)
        and (not each.needs or codegen.llvm_cpu_has_features(list(each.needs), target))
    )


def named(name: str) -> InstructionSet:
    """The set that a user names.

    Raises:
        InputError: there is none of that name.
    """
    for each in NAMED:
        if name.lower() in (each.name, *each.aliases):
            return each
    raise InputError(
        f"processor {name}: no such instruction set. Choose {NATIVE} (this machine) or one of "
        f"{', '.join(each.name for each in NAMED)}."
    )


NAMED = tuple(each for each in INSTRUCTION_SETS if each.mcpu)
"""Those that can be asked for."""
