"""Programs of any instructions, for the clock alone."""

from dataclasses import replace

import numpy as np

from targets.npu.machine import isa


def random_program(rng: np.random.Generator) -> list[isa.Instruction]:
    """Instructions of all units with tokens that match; pushes come before their pops."""
    program: list[isa.Instruction] = []
    free: list[tuple[int, int]] = []
    for _ in range(60):
        m = int(rng.integers(1, 40))
        kinds = [
            isa.Load(x_bytes=m * 16, y=3, dram_ystride=int(rng.choice([m * 16, 1000]))),
            isa.Load(fill=1, x_bytes=m),
            isa.Gemm(m0=m, k0=int(rng.integers(1, 5)), kvalid=16, nvalid=16),
            isa.Depthwise(m0=m, kw=3, kh=3, nvalid=16),
            isa.Requantize(m0=m, nvalid=16, multiply=int(rng.integers(2))),
            isa.Pool(c=16, ox=m, kw=2, kh=2),
            isa.Store(x_bytes=m * 16),
            isa.Nop(on=int(rng.integers(4))),
        ]
        new = kinds[int(rng.integers(len(kinds)))]
        for pair in [p for p in free if p[1] == new.unit]:
            if not new.pop >> pair[0] & 1 and rng.random() < 0.7:
                new = replace(new, pop=new.pop | 1 << pair[0])
                free.remove(pair)
        target = int(rng.integers(4))
        if target != new.unit and sum(p == (new.unit, target) for p in free) < 2:
            new = replace(new, push=1 << target)
            free.append((new.unit, target))
        program.append(new)
    for source, target in free:
        program.append(isa.Nop(on=target, pop=1 << source))
    return [*program, isa.Halt()]
