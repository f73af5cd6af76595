"""What processes of a pool do in tests: it must be found by its module's name."""

import time
from pathlib import Path


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
