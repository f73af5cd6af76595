"""What processes of a pool do in tests: it must be found by its module's name."""

import time
from pathlib import Path

import tvm

from tvmq.tune import server_trials


def begin(session):
    """Words that are files: each is made by a server's process, and some wait for others."""
    threads = session.get_function("runtime.NumThreads")
    place = session.get_function("tvm.rpc.server.workpath")("")

    def work(request):
        make, awaited = map(Path, request)
        make.write_text(place)
        until = time.monotonic() + 60
        while not awaited.exists():
            threads()  # which fails if the server is gone
            assert time.monotonic() < until
            time.sleep(0.01)
        threads()
        return make.name, place

    return "a server", work


def begin_failing(session):
    """Every request fails, as if the server had ended."""
    session.get_function("runtime.NumThreads")()

    def work(request):
        raise RuntimeError(f"in the way:\n  {request} ended it")

    return "a server", work


def register_telling():
    """A trial server that prints a line for each trial."""
    server_trials.register()
    cycles = tvm.get_global_func("tvmq.trials.cycles")

    def telling(trial):
        print("a trial", flush=True)
        return cycles(trial)

    tvm.register_global_func("tvmq.trials.cycles", telling, override=True)


def register_of_other_sources():
    """A trial server where the compiler is another one."""
    server_trials.compiler_and_versions = lambda _: {
        "tvmq.compiler": "0123456789abcdef",
        "tvmq.versions": "tvmq 0.0",
    }
    server_trials.register()
