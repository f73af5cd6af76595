"""Servers that a TVM RPC tracker knows: found, asked for, and their absence in words."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from targets.errors import InputError, TvmqError

T = TypeVar("T")

ANSWER_SECONDS = 10.0
"""How long a tracker may take to answer."""


@dataclass(frozen=True)
class RpcTracker:
    """A tracker, and the key under which servers of one kind of machine have registered.

    Attributes:
        host: of the tracker.
        port: of the tracker.
        key: of the servers.
    """

    host: str
    port: int
    key: str

    @staticmethod
    def parse(address: str, key: str) -> RpcTracker:
        """Of HOST:PORT.

        Raises:
            InputError: it is something else.
        """
        host, _, port = address.rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
            raise InputError(f"--rpc-tracker {address}: expected HOST:PORT, as 192.168.0.2:9190.")
        return RpcTracker(host.strip("[]"), int(port), key)

    def __str__(self) -> str:
        return f"RPC tracker {self.host}:{self.port}"

    def servers(self) -> int:
        """How many servers have registered under the key, busy ones included.

        Raises:
            InputError: the tracker can't be reached, or there are none.
        """
        try:
            with socket.create_connection((self.host, self.port), ANSWER_SECONDS):
                pass
            keys = _within(ANSWER_SECONDS, self._keys)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"{self}: can't be reached ({error}). Start it with `python -m "
                f"tvm.exec.rpc_tracker`, or correct --rpc-tracker."
            ) from error
        if self.key not in keys:
            known = f"has servers for {', '.join(sorted(set(keys)))}" if keys else "has no servers"
            raise InputError(
                f"{self}: {known}, none for the key {self.key}. Start one on the machine to tune "
                f"for: `python -m tvmq.tune.trial_server --tracker {self.host}:{self.port} --key "
                f"{self.key}`."
            )
        return keys.count(self.key)

    def session(self, seconds: float = ANSWER_SECONDS) -> Any:
        """A ``tvm.rpc.RPCSession`` with a server that is free.

        Args:
            seconds: to wait for one.

        Raises:
            TvmqError: none is free, or it doesn't answer.
        """
        from tvm import rpc

        try:
            return _within(
                seconds, lambda: rpc.connect_tracker(self.host, self.port).request(self.key)
            )
        except (OSError, RuntimeError) as error:
            raise TvmqError(
                f"{self}: no server for the key {self.key} answers ({error}). Look whether it "
                f"still runs, or is used by somebody else, and give the same command again: "
                f"trials that were made are kept."
            ) from error

    def _keys(self) -> list[str]:
        from tvm import rpc

        summary = rpc.connect_tracker(self.host, self.port).summary()
        return [str(each["key"]).removeprefix("server:") for each in summary["server_info"]]


def _within(seconds: float, call: Callable[[], T]) -> T:
    """What a call gives, if it gives something in time; TVM waits for ever.

    Raises:
        TimeoutError: it doesn't.
    """
    found: list[T] = []
    raised: list[Exception] = []

    def run() -> None:
        try:
            found.append(call())
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    if not found:
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    return found[0]
