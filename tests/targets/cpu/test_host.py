"""This machine's processor: what Linux says it has, and what is made of it."""

import pytest
from tvm.target import Target, codegen

from targets.cpu import host
from targets.cpu.host import cpu_target, features_needed, host_sets, host_target, lacking, runs_here
from targets.cpu.instruction_sets import best_of, named

AVX2 = "sse2 sse4_1 sse4_2 avx avx2 bmi1 bmi2 f16c fma movbe"


@pytest.fixture
def machine(monkeypatch):
    """Be another machine: LLVM's name of its processor, and the line in /proc/cpuinfo."""
    caches = (host.host_target, host._host_features)

    def be(mcpu: str, flags: str, triple: str = "x86_64-linux-gnu") -> None:
        monkeypatch.setattr(host, "_linux_flags", lambda: frozenset(flags.replace("_", "").split()))
        monkeypatch.setattr(host, "host_architecture", lambda: triple.split("-")[0])
        monkeypatch.setattr(codegen, "llvm_get_system_cpu", lambda: mcpu)
        monkeypatch.setattr(codegen, "llvm_get_system_triple", lambda: triple)
        for cache in caches:
            cache.cache_clear()

    yield be
    for cache in caches:
        cache.cache_clear()


def test_this_machine_runs_what_is_compiled_for_it():
    assert runs_here(host_target())
    assert lacking(features_needed(host_target())) == ()
    assert cpu_target("native") == host_target()
    for each in host_sets():
        assert runs_here(cpu_target(each.name))


def test_features_that_a_virtual_machine_hides_are_not_compiled_for(machine):
    machine("znver3", AVX2 + " vaes vpclmulqdq")
    assert host_target().attrs["mcpu"] == "znver3"
    assert not codegen.llvm_cpu_has_features(["sse4a"], host_target())  # slow
    assert codegen.llvm_cpu_has_features(["avx2", "vaes"], host_target())
    machine("znver4", AVX2)
    assert not lacking(features_needed(host_target()))
    assert best_of(host_target()).name == "avx2"
    assert [each.name for each in host_sets()] == ["avx2", "x86-64"]
    assert lacking(("fma", "avx512vnni", "avxvnni")) == ("avx512vnni", "avxvnni")


def test_names_of_linux_are_those_of_llvm(machine):
    machine("alderlake", AVX2 + " avx_vnni")
    assert named("avx-vnni") in host_sets()
    assert named("avx512-vnni") not in host_sets()
    machine("neoverse-n1", "fp asimd atomics asimdhp asimddp", "aarch64-linux-gnu")
    assert [each.name for each in host_sets()] == ["armv8-dotprod", "armv8-neon"]
    assert not runs_here(named("avx2").target)
    assert not runs_here(Target({"kind": "llvm", "mtriple": "x86_64-linux-gnu"}))
