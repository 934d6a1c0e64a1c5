"""Public ports of clients that are away: the relay keeps them, so that no other program on its machine has them meanwhile.

A port is held by its listening socket. For a moment that goes on to listen, and who comes waits in its backlog for the client. Then it
listens no more and stays bound: the system resets who waits and refuses who comes, which costs us nothing however many they are.
On Linux shutdown() makes a bound socket of a listening one, and listen() makes it listen again.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Container
from dataclasses import dataclass

from fastrelay.net.listen import BACKLOG, listen
from fastrelay.net.options import queued
from fastrelay.net.runtime import Runtime


@dataclass(slots=True)
class _Held:
    sock: socket.socket
    name: str
    shuts: asyncio.TimerHandle | None = None  # while it listens


class Holder:
    """`hold` and `bind` put a port in, `take` gets it out; each is here once, and `close` lets go of all."""

    def __init__(self, runtime: Runtime, host: str) -> None:
        self._runtime = runtime
        self._host = host
        self._held: dict[int, _Held] = {}
        self._closed = False

    def bind(self, port: int, name: str) -> None:
        """Hold a port of the client `name`, which was away before we began. Raises OSError where another program has it."""
        if self._room():
            self.hold(listen(self._host, port), name)

    def hold(self, sock: socket.socket, name: str, *, awaited: bool = True) -> None:
        """Take over a listening socket, as the client `name` is away. If it is `awaited`, who comes may wait for a moment."""
        if self._closed or not self._room():
            sock.close()
            return
        held = _Held(sock, name)
        self._held[int(sock.getsockname()[1])] = held
        if awaited and (wait := self._runtime.limits.return_time):
            held.shuts = self._runtime.loop.call_later(wait, self._late, held)
        else:
            self._shut(held)

    def take(self, port: int, name: str) -> socket.socket:
        """A listening socket for the client `name`, which is here: that of its port, and who waits there, or a new one. Raises OSError."""
        held = self._held.pop(port, None)
        if held is not None and held.name != name:  # whoever waits there came for somebody else
            self._release(held)
            held = None
        if held is None:
            return listen(self._host, port)
        if held.shuts is not None:
            held.shuts.cancel()
            return held.sock
        try:
            held.sock.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # or a connection in TIME_WAIT is in the way
            held.sock.listen(BACKLOG)
        except OSError:
            held.sock.close()
            raise
        return held.sock

    def give_up(self, port: int, name: str) -> None:
        """The client `name` is here and does not get its port: nobody has to wait for that."""
        held = self._held.get(port)
        if held is not None and held.name == name and held.shuts is not None:
            held.shuts.cancel()
            self._late(held)

    def keep(self, ports: Container[int]) -> None:
        """Let go of all but these."""
        for port in [port for port in self._held if port not in ports]:
            self._release(self._held.pop(port))

    def close(self) -> None:
        """Let go of all, and hold nothing any more."""
        self._closed = True
        self.keep(())

    def _room(self) -> bool:
        limits = self._runtime.limits
        most = min(limits.held_ports, self._runtime.files // 4)
        if len(self._held) < most:
            return True
        self._runtime.reached("held-ports", self._runtime.who, most)
        return False

    def _late(self, held: _Held) -> None:
        held.shuts = None
        if queued(held.sock.fileno()):
            self._runtime.reached("return-time", held.name)
        self._shut(held)

    def _shut(self, held: _Held) -> None:
        # With it, others that set it as well could bind a port on which nobody listens.
        held.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        held.sock.shutdown(socket.SHUT_RD)

    def _release(self, held: _Held) -> None:
        if held.shuts is not None:
            held.shuts.cancel()
        held.sock.close()
