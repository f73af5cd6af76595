"""Trials of NPU programs on the servers of an RPC tracker: what a server does, and who asks it.

A server has three functions, by ``register``. A trial takes the same cycles there as here if
compiler and versions are the same, which is looked at before anything else is sent.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from typing import Any

import tvm

from targets.errors import InputError
from targets.npu.trials import Trials
from tvmq.tune.processes import trials_of
from tvmq.tune.records import compiler_and_versions
from tvmq.tune.rpc_tracker import RpcTracker
from tvmq.tune.trial import Trial, cycles_of

_COMPILER, _PROGRAM, _CYCLES = (f"tvmq.trials.{name}" for name in ("compiler", "program", "cycles"))


def register() -> None:
    """Let this process make trials for who has a session with it.

    What it is sent is unpickled: whoever reaches a TVM server has it execute what he likes anyway.
    """
    program: list[Trials] = []
    compiler = _here()  # whose modules this process has read; sessions are forked later

    def take(pickled: bytes) -> None:
        program[:] = [trials_of(pickled)]

    def cycles(pickled: bytes) -> int:
        return cycles_of(program[0], pickle.loads(pickled))

    tvm.register_global_func(_COMPILER, lambda: compiler)
    tvm.register_global_func(_PROGRAM, take)
    tvm.register_global_func(_CYCLES, cycles)


def begin_trials(
    session: Any, tracker: RpcTracker, program: bytes
) -> tuple[str, Callable[[Trial], int]]:
    """What a ``ServerPool`` does first: give a server a program, ``pickled``.

    Raises:
        InputError: it makes no trials, or has another compiler or other versions.
        RuntimeError: it is gone.
    """
    try:
        ask = session.get_function(_COMPILER)
    except AttributeError as error:
        raise InputError(
            f"{tracker}: a server for the key {tracker.key} makes no trials of NPU programs. Start "
            f"it by `python -m tvmq.tune.trial_server --tracker {tracker.host}:{tracker.port} "
            f"--key {tracker.key}`, or tune the CPU's kernels with --device cpu."
        ) from error
    theirs, ours = str(ask()), _here()
    if theirs != ours:
        raise InputError(
            f"{tracker}: a server for the key {tracker.key} has another compiler than this machine "
            f"({_words(theirs)}; here {_words(ours)}), whose cycles may be others. Install the "
            f"same tvmq and TVM there, and start it again."
        )
    session.get_function(_PROGRAM)(program)
    cycles = session.get_function(_CYCLES)
    return "this compiler", lambda trial: int(cycles(pickle.dumps(trial)))


def _here() -> str:
    return json.dumps(compiler_and_versions("npu"), sort_keys=True)


def _words(compiler: str) -> str:
    found = json.loads(compiler)
    return f"{found['tvmq.versions']}, sources {found['tvmq.compiler'][:12]}"
