"""A network that means harm: between the real client and the real relay it cuts, stalls, splits, dribbles, repeats and falsifies.

It works on bytes of TCP, and can be told another thing at any moment. What a side ends or resets, the other side hears as such.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Self

from tests.support.peers import TIMEOUT, Address
from tests.support.processes import Client, Link, Server, Way

CHUNK = 65_536


class Fault:
    """What happens to one direction; attributes may be set at any time.

    `stalled`: nothing is forwarded, nothing is read, the sockets stay open. `piece`: so many bytes at once, from and to, and `pause`
    seconds between them. `falsify(n)` and `repeat(n)` concern the byte that comes n bytes from now.
    """

    def __init__(self) -> None:
        self.stalled = False
        self.piece: tuple[int, int] | None = None
        self.pause = 0.0
        self.hits = 0  # falsified or repeated
        self._at = -1
        self._edit: Callable[[bytearray, int], None] = lambda chunk, at: None

    def falsify(self, after: int) -> None:
        """Flip a bit."""

        def flip(chunk: bytearray, at: int) -> None:
            chunk[at] ^= 1 << random.randrange(8)

        self._edit, self._at = flip, after

    def repeat(self, after: int, size: int = 100) -> None:
        """Send up to `size` bytes twice."""

        def again(chunk: bytearray, at: int) -> None:
            chunk[at:at] = chunk[at : at + size]

        self._edit, self._at = again, after

    def heal(self) -> None:
        self.stalled = False
        self.piece = None
        self.pause = 0.0
        self._at = -1

    def edit(self, chunk: bytearray) -> None:
        if 0 <= self._at < len(chunk):
            self._edit(chunk, self._at)
            self._at = -1
            self.hits += 1
        elif self._at >= 0:
            self._at -= len(chunk)

    def size(self) -> int:
        return CHUNK if self.piece is None else random.randint(*self.piece)


class _Flow:
    """One direction of one connection."""

    def __init__(self, source: socket.socket, sink: socket.socket, fault: Fault) -> None:
        self.source = source
        self.sink = sink
        self.fault = fault
        self.held = bytearray()
        self.ended = False  # the source has
        self.over = False  # and the sink was told
        self.dead = False  # its connection is stalled for ever
        self.due = 0.0

    @property
    def stalled(self) -> bool:
        return self.dead or self.fault.stalled

    def move(self, readable: bool, writable: bool) -> None:
        """Raises OSError when the connection has failed."""
        with contextlib.suppress(BlockingIOError):
            if readable:
                chunk = bytearray(self.source.recv(CHUNK))
                self.ended = not chunk
                self.fault.edit(chunk)
                self.held += chunk
            if writable and self.held:
                sent = self.sink.send(memoryview(self.held)[: self.fault.size()])
                del self.held[:sent]
                self.due = time.monotonic() + self.fault.pause
        if self.ended and not self.held and not self.over:
            self.over = True
            self.sink.shutdown(socket.SHUT_WR)


class Proxy:
    """Forwards to `target` from `address`, in a thread of its own. `up` is what happens on the way to the target, `down` on the way back."""

    def __init__(self, target: Address) -> None:
        self.target = target
        self.up = Fault()
        self.down = Fault()
        self.made = 0  # connections so far
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.setblocking(False)
        self.address: Address = self._listener.getsockname()
        self._flows: list[tuple[_Flow, _Flow]] = []
        self._ear, self._mouth = socket.socketpair()
        self._orders: list[tuple[Callable[[], None], Future[None]]] = []
        self._over = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def hits(self) -> int:
        """How often something was falsified or repeated so far."""
        return self.up.hits + self.down.hits

    # --- orders --------------------------------------------------------------------------------------------------------

    def do(self, order: Callable[[], None]) -> None:
        """Run it between two moves of bytes; what was set in a Fault before holds as well when this returns."""
        done: Future[None] = Future()
        self._orders.append((order, done))
        self._mouth.send(b"!")
        done.result(TIMEOUT)

    def cut(self, *, reset: bool, client: bool = True, relay: bool = True) -> None:
        """End all connections, with RST or FIN, towards one side or both; a side that is not told finds out by itself."""

        def order() -> None:
            for up, down in self._flows:
                for told, sock in ((client, up.source), (relay, up.sink)):
                    if told:
                        _close(sock, reset=reset)
                if client and relay:
                    up.over = down.over = True
                else:
                    up.dead = down.dead = True

        self.do(order)

    def abandon(self) -> None:
        """Stall the connections that are there, for ever and both ways; new ones are forwarded."""

        def order() -> None:
            for flow in (flow for pair in self._flows for flow in pair):
                flow.dead = True

        self.do(order)

    # --- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._over:
            self._turn()
        for up, _ in self._flows:
            for sock in (up.source, up.sink):
                sock.close()

    def _turn(self) -> None:
        now = time.monotonic()
        flows = [flow for pair in self._flows for flow in pair if not flow.over and not flow.stalled]
        reads = [flow.source for flow in flows if not flow.held and not flow.ended]
        writes = [flow.sink for flow in flows if flow.held and flow.due <= now]
        waits = [flow.due - now for flow in flows if flow.held and flow.due > now]
        ready, room, _ = select.select([self._listener, self._ear, *reads], writes, [], min([0.5, *waits]))
        if self._ear in ready:
            self._ear.recv(100)
            while self._orders:
                order, done = self._orders.pop(0)
                order()
                done.set_result(None)
            self._flows = [pair for pair in self._flows if not all(flow.over for flow in pair)]
            return
        if self._listener in ready:
            self._accept()
        for pair in list(self._flows):
            for flow in pair:
                try:
                    if not flow.over:
                        flow.move(flow.source in ready, flow.sink in room)
                except OSError:
                    _close(flow.source, reset=True)
                    _close(flow.sink, reset=True)
                    self._flows.remove(pair)
                    break
            else:
                if all(flow.over for flow in pair):
                    for flow in pair:
                        flow.source.close()
                    self._flows.remove(pair)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            relay = socket.create_connection(self.target, TIMEOUT)
        except OSError:
            _close(client, reset=True)
            return
        for sock in (client, relay):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._flows.append((_Flow(client, relay, self.up), _Flow(relay, client, self.down)))
        self.made += 1

    def close(self) -> None:
        self._over = True
        self._mouth.send(b"!")
        self._thread.join(TIMEOUT)
        for sock in (self._listener, self._ear, self._mouth):
            sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _close(sock: socket.socket, *, reset: bool) -> None:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", int(reset), 0))
        if not reset:
            sock.shutdown(socket.SHUT_RDWR)
    sock.close()


class Crossing(Link):
    """A relay, and a client that reaches it through `proxy`; visitors and targets are in the hands of the test, see Link."""

    def __init__(self, home: Path, way: Way) -> None:
        self.way = way
        self.relay = None
        with contextlib.ExitStack() as stack:
            self.listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))
            self.server = stack.enter_context(Server(home / "server", way))
            self.proxy = stack.enter_context(Proxy(self.server.address))
            scheme = self.server.url.split(":")[0]
            self.client = stack.enter_context(
                Client(
                    f"{scheme}://127.0.0.1:{self.proxy.address[1]}",
                    self.server.token(),
                    home / "client",
                    expose=[f"127.0.0.1:{self.listener.getsockname()[1]}"],
                    loop=way.loop,
                    name="crossing",
                )
            )
            self.address = self.client.addresses()[0]
            self._stack = stack.pop_all()

    def heal(self) -> None:
        """The network is as it should be."""
        self.proxy.up.heal()
        self.proxy.down.heal()
        self.proxy.do(lambda: None)

    def __exit__(self, *error: object) -> None:
        kind = error[0] if error else None
        self._stack.__exit__(kind if isinstance(kind, type) else None, None, None)
