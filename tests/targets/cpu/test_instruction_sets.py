"""The table of instruction sets: what a target gets, what a name means."""

import pytest
from tvm.target import Target

from targets.cpu.host import features_needed
from targets.cpu.instruction_sets import INSTRUCTION_SETS, NAMED, best_of, named
from targets.errors import InputError

X86, ARM = {"mtriple": "x86_64-linux-gnu"}, {"mtriple": "aarch64-linux-gnu"}


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        (X86 | {"mcpu": "znver4"}, "avx512-vnni"),
        (X86 | {"mcpu": "znver4", "mattr": ["-avx512vnni"]}, "avx512"),
        (X86 | {"mcpu": "skylake-avx512"}, "avx512"),
        (X86 | {"mcpu": "alderlake"}, "avx-vnni"),
        (X86 | {"mcpu": "znver3"}, "avx2"),
        (X86 | {"mcpu": "nehalem"}, "x86-64"),
        (ARM | {"mcpu": "neoverse-v1"}, "armv8-i8mm"),
        (ARM | {"mcpu": "neoverse-n1"}, "armv8-dotprod"),
        (ARM | {"mcpu": "cortex-a53"}, "armv8-neon"),
        ({"mtriple": "arm64-apple-macosx", "mcpu": "apple-m1"}, "armv8-dotprod"),
        ({"mtriple": "riscv64-linux-gnu"}, "plain"),
    ],
)
def test_a_target_gets_the_fastest_set_that_it_has(attributes, name):
    assert best_of(Target({"kind": "llvm", **attributes})).name == name


@pytest.mark.parametrize("instructions", NAMED, ids=lambda each: each.name)
def test_a_named_set_is_that_of_its_own_target(instructions):
    for name in (instructions.name, instructions.name.upper(), *instructions.aliases):
        assert named(name) is instructions
    assert best_of(instructions.target) is instructions
    assert set(instructions.needs) - {"neon"} <= {*features_needed(instructions.target)}


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(InputError, match=r"processor pentium: .*native.*avx512-vnni.*armv8-neon"):
        named("pentium")


def test_instructions_fill_the_vectors_of_their_set():
    for each in INSTRUCTION_SETS:
        for dot in (*each.bytes, *([each.words] if each.words else [])):
            assert dot.lanes == each.lanes
        assert each.registers * each.lanes * 4 < 1024  # from there on TVM puts sums on the heap
