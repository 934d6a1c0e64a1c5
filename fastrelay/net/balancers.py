"""Connections that a load balancer has passed on: a PROXY header in front of them says whose they are (`net.proxy_header`).

It is read off the socket before anything else looks at it, so that TLS may come behind it; whoever serves the connection then sees the
visitor's address where it would see the balancer's.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

from fastrelay.net.options import hung_up, wake_at
from fastrelay.net.proxy_header import MOST, parse

if TYPE_CHECKING:
    from fastrelay.net.runtime import Runtime
    from fastrelay.networks import Networks

Address = tuple[Any, ...]
"""What a socket calls its peer: (host, port), and more for IPv6."""
Then = Callable[[Address | None], None]
_ENDED: Final = "it ended before its PROXY header did"


class _Wait:
    """A balancer's connection whose header is not there yet."""

    __slots__ = ("lowat", "sock", "then", "timer", "who")

    timer: asyncio.TimerHandle

    def __init__(self, sock: socket.socket, who: Address, then: Then) -> None:
        self.sock = sock
        self.who = who
        self.then = then
        self.lowat = 0  # bytes that must be there for the loop to tell; 0: it was not asked


class Balancers:
    """What one door hears of the load balancers in `networks`: each connection of theirs must begin with a header, within the limit `handshake-time`.

    Everybody else's connections are taken as they are: a header from a stranger is never believed, it is data like any other.
    """

    def __init__(self, runtime: Runtime, networks: Networks) -> None:
        self._runtime = runtime
        self._networks = networks
        self._waits: set[_Wait] = set()

    def hear(self, sock: socket.socket, who: Address, then: Then) -> None:
        """Call `then` with the address of whoever is behind a connection that was accepted from `who`, which is `who` itself unless a header names
        another; now, or when the header is there. With None if there will be none: then the connection is reset.
        """
        if who[0] not in self._networks:
            then(who)
            return
        wait = _Wait(sock, who, then)
        wait.timer = self._runtime.loop.call_later(self._runtime.limits.handshake_time, self._late, wait)
        self._waits.add(wait)
        self._look(wait)

    def close(self) -> None:
        """Those who still wait are reset."""
        for wait in list(self._waits):
            self._drop(wait)

    def _look(self, wait: _Wait) -> None:
        try:
            said = wait.sock.recv(MOST, socket.MSG_PEEK)
            header = parse(said)
            if header is not None:
                wait.sock.recv(header.size)
        except BlockingIOError:
            self._listen(wait, 1)
            return
        except ValueError as error:
            self._refuse(wait, str(error))
            return
        except OSError:
            self._refuse(wait, _ENDED)
            return
        if header is not None:
            self._end(wait)
            wait.then(header.visitor or wait.who)
        elif hung_up(wait.sock):
            self._refuse(wait, _ENDED)
        else:
            self._listen(wait, len(said) + 1)

    def _listen(self, wait: _Wait, size: int) -> None:
        """Be told when so much is there, or when it has ended; what is there is not read until it is a header."""
        if not wait.lowat:
            self._runtime.loop.add_reader(wait.sock.fileno(), self._look, wait)
        if wait.lowat != size:
            wait.lowat = size
            wake_at(wait.sock, size)

    def _late(self, wait: _Wait) -> None:
        self._look(wait)  # after a stall of ours it may be there, and a loop may look at its clock first
        if wait not in self._waits:
            return
        self._runtime.reached("handshake-time", f"the load balancer {wait.who[0]}")
        self._refuse(wait, "its PROXY header did not come in time")

    def _refuse(self, wait: _Wait, why: str) -> None:
        host = str(wait.who[0]).removeprefix("::ffff:")
        self._runtime.notices.say(
            f"header of {host}",
            "balancer.refused",
            f"Refused a connection of the load balancer {host}: {why}. Does it send PROXY headers? If not, leave it out of --proxy-protocol.",
            balancer=host,
            cause=why,
        )
        self._drop(wait)

    def _drop(self, wait: _Wait) -> None:
        self._end(wait)
        wait.sock.close()  # with SO_LINGER as `listen` sets it: a reset
        wait.then(None)

    def _end(self, wait: _Wait) -> None:
        self._waits.discard(wait)
        wait.timer.cancel()
        if wait.lowat:
            self._runtime.loop.remove_reader(wait.sock.fileno())
            with contextlib.suppress(OSError):
                wake_at(wait.sock, 1)


class Renamed(asyncio.BufferedProtocol):
    """Makes a connection for `protocol`, as one whose other end is `who`."""

    def __init__(self, protocol: asyncio.BaseProtocol, who: Address) -> None:
        self._protocol = protocol
        self._who = who

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.set_protocol(self._protocol)
        self._protocol.connection_made(cast("asyncio.BaseTransport", _Behind(transport, self._who)))


class _Behind:
    """A transport, but for what it says of its other end."""

    __slots__ = ("_transport", "_who")

    def __init__(self, transport: asyncio.BaseTransport, who: Address) -> None:
        self._transport = transport
        self._who = who

    def get_extra_info(self, name: str, default: object = None) -> Any:
        return self._who if name == "peername" else self._transport.get_extra_info(name, default)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
