"""One real link on a loop, with the other end of its tunnel in the hands of the test, and real sockets around its edges.

Bench   a runtime, a link whose greeting is already done, and `peer`, the raw socket at the other end of the tunnel
Peer    writes frames made by hand, and reads the link's frames one by one, or does not read at all
Local   the outside of an edge: what a visitor or a target holds
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Callable
from typing import Self

from fastrelay import wire
from fastrelay.errors import Code
from fastrelay.limits import DEFAULTS, Limits
from fastrelay.mux.session import Session
from fastrelay.mux.stream import NOTHING, Stream
from fastrelay.net.edge import Edge
from fastrelay.net.link import Core, Link
from fastrelay.net.options import LINGER_RESET
from fastrelay.net.runtime import Runtime
from fastrelay.wire import HEADER, HEADER_SIZE, Kind
from tests.support import pair
from tests.support.pair import Frame
from tests.support.peers import End

PATIENCE = 10.0


async def until(holds: Callable[[], object], what: str, timeout: float = PATIENCE) -> None:
    """Wait until `holds()` is true; `what` names it in the failure."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, f"{timeout:g} s passed and it is not so: {what}"
        await asyncio.sleep(0.001)


async def turns(number: int = 3) -> None:
    """Let what is due happen."""
    for _ in range(number):
        await asyncio.sleep(0.001)


def tcp_pair(host: str = "127.0.0.1") -> tuple[socket.socket, socket.socket]:
    """Two ends of a loopback connection, not blocking."""
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        one = socket.create_connection(listener.getsockname()[:2])
        two, _ = listener.accept()
    for sock in (one, two):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one, two


class Local:
    """The outside of an edge."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.loop.sock_sendall(self.sock, data)

    async def read(self, size: int) -> bytes:
        """Exactly `size` bytes."""
        data = b""
        async with asyncio.timeout(PATIENCE):
            while len(data) < size:
                piece = await self.loop.sock_recv(self.sock, size - len(data))
                assert piece, f"an end after {len(data)} of {size} bytes"
                data += piece
        return data

    async def to_end(self) -> tuple[bytes, End]:
        """What still comes, and how it ends."""
        data = b""
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    piece = await self.loop.sock_recv(self.sock, 1 << 20)
                except ConnectionResetError:
                    return data, End.RESET
                if not piece:
                    return data, End.EOF
                data += piece

    def quiet(self) -> bool:
        """Whether there is nothing to read now, not even an end."""
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def eof(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """End with RST; what it had sent before stays sent."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()


class Peer:
    """The other end of the tunnel, by hand."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.loop = asyncio.get_running_loop()
        self.raw = bytearray()
        self.ended: End | None = None

    async def send(self, *frames: bytes) -> None:
        """Write, in one call."""
        async with asyncio.timeout(PATIENCE):
            await self.loop.sock_sendall(self.sock, b"".join(frames))

    async def frame(self, *kinds: Kind) -> Frame:
        """The next frame; with `kinds` the next one of these, others are skipped."""
        async with asyncio.timeout(PATIENCE):
            while True:
                found = self._cut()
                if found is None:
                    assert await self._more(), f"the tunnel ended ({self.ended}) before {kinds}"
                elif not kinds or found.kind in kinds:
                    return found

    async def frames_to_end(self) -> list[Frame]:
        """All that still comes until the tunnel ends; half a frame at the end is left out."""
        async with asyncio.timeout(PATIENCE):
            while await self._more():
                pass
        found = []
        while (one := self._cut()) is not None:
            found.append(one)
        return found

    async def data(self, stream: int, size: int) -> bytes:
        """`size` bytes of a stream's DATA; control frames are skipped, other streams' data is an error."""
        got = b""
        while len(got) < size:
            one = await self.frame(Kind.DATA, Kind.FIN, Kind.RESET)
            assert one.stream == stream and one.kind == Kind.DATA, f"{one.kind} of {one.stream} after {len(got)} bytes"
            got += one.payload
        assert len(got) == size
        return got

    async def half(self, stream: int) -> tuple[bytes, Kind, Code | None]:
        """DATA of a stream until FIN, RESET or TRUNC: what, which, and RESET's code."""
        got = b""
        while True:
            one = await self.frame(Kind.DATA, Kind.FIN, Kind.RESET, Kind.TRUNC)
            assert one.stream == stream
            if one.kind == Kind.RESET:
                return got, Kind.RESET, Code.of(int.from_bytes(one.payload, "big"))
            got += one.payload
            if one.kind != Kind.DATA:
                return got, Kind(one.kind), None

    def _cut(self) -> Frame | None:
        if len(self.raw) < HEADER_SIZE:
            return None
        word, stream = HEADER.unpack_from(self.raw)
        stop = HEADER_SIZE + (word & 0xFFFFFF)
        if len(self.raw) < stop:
            return None
        payload = bytes(self.raw[HEADER_SIZE:stop])
        del self.raw[:stop]
        return Frame(word >> 24, stream, payload)

    async def _more(self) -> bool:
        try:
            piece = await self.loop.sock_recv(self.sock, 1 << 20)
        except ConnectionResetError:
            self.ended = End.RESET
            return False
        if not piece:
            self.ended = End.EOF
        self.raw += piece
        return bool(piece)

    def close(self) -> None:
        self.sock.close()


class Bench:
    """`async with Bench() as bench`. At the end everything is closed, and what was borrowed must have come back.

    The link plays the relay, as which it opens even ids, or with `dialer` the client.
    """

    def __init__(self, *, dialer: bool = False, theirs: wire.Settings | None = None, limits: Limits = DEFAULTS) -> None:
        self.limits = limits
        self.dialer = dialer
        self.theirs = theirs or wire.Settings(early=0)  # so that the peer alone says what may come
        self.locals: list[Local] = []
        self.links: list[Link] = []
        self.closed: list[Exception | None] = []
        self.goaways: list[tuple[Code, str]] = []
        self.on_stream: Callable[[Stream, wire.Open], None] = lambda stream, request: None
        self.idle = 0

    async def __aenter__(self) -> Self:
        self.runtime = Runtime(self.limits)
        self.loop = self.runtime.loop
        far, near = tcp_pair()
        self.peer = Peer(far)
        self.link = Link(self.runtime, self)
        await self.loop.connect_accepted_socket(lambda: self.link, near)
        self.session = self.links_session(self.link)
        await self.peer.frame(Kind.PING)  # the first thing a session says
        return self

    def links_session(self, link: Link) -> Session:
        assert link.session is not None
        return link.session

    async def __aexit__(self, kind: object, *_: object) -> None:
        for local in self.locals:
            local.close()
        self.peer.close()
        if not self.closed:
            self.link.abort(ConnectionAbortedError("the test is over"))
        await until(lambda: self.closed, "the link has ended")
        # Edges whose streams were over before may still drain: their sockets are closed, so they end soon.
        await until(lambda: not self.runtime.edges or kind, "every edge has ended", 4)
        watched = dict(self.runtime.watch._watched)
        await self.runtime.close()
        if kind is None:
            assert not watched, f"still watched: {watched}"
            assert self.session.pool.used == 0, "the tunnel's pool"
            assert self.runtime.pool.used == 0, "the pool of the process"
            assert len(self.closed) == 1

    # --- role and owner ------------------------------------------------------------------------------------------------

    def on_connected(self, link: Link) -> Core:
        return link.begin(self, dialer=self.dialer, ours=wire.Settings(), theirs=self.theirs)

    def on_closed(self, link: Link, error: Exception | None) -> None:
        self.closed.append(error)

    def on_open(self, stream: Stream, request: wire.Open) -> None:
        self.on_stream(stream, request)

    def on_expose(self, request: wire.Expose) -> None: ...
    def on_exposed(self, answer: wire.Exposed) -> None: ...
    def on_list(self) -> None: ...
    def on_listed(self, answer: wire.Listed) -> None: ...
    def on_pins(self, pins: tuple[bytes, ...]) -> None: ...
    def on_goaway(self, code: Code, text: str) -> None:
        self.goaways.append((code, text))

    def on_idle(self) -> None:
        self.idle += 1

    # --- edges ---------------------------------------------------------------------------------------------------------

    async def edge(self, ends: tuple[socket.socket, socket.socket] | None = None) -> tuple[Edge, Local]:
        """An edge that is joined with nothing yet, and its outside."""
        outside, inside = ends or tcp_pair()
        outside.setblocking(False)
        inside.setblocking(False)
        if inside.family != socket.AF_UNIX:
            inside.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        edge = Edge(self.runtime)
        await self.loop.connect_accepted_socket(lambda: edge, inside)
        local = Local(outside)
        self.locals.append(local)
        return edge, local

    def open(self) -> Stream:
        """A stream that the link opens."""
        stream = self.session.open(NOTHING, 1, "192.0.2.9:51544")
        assert stream is not None
        return stream

    async def joined(
        self, credit: int | None = None, ends: tuple[socket.socket, socket.socket] | None = None
    ) -> tuple[Edge, Local, Stream]:
        """An edge with a stream of its own, accepted by the peer; with `credit` the peer lets so much come."""
        edge, local = await self.edge(ends)
        stream = self.open()
        edge.join(stream, self.link)
        opened = await self.peer.frame(Kind.OPEN)
        assert opened.stream == stream.id
        await self.peer.send(pair.accept(stream.id, 1 << 20 if credit is None else credit))
        await until(lambda: stream.recv.value == "open", "ACCEPT has arrived")
        return edge, local, stream

    async def gone(self, edges: int = 0, timeout: float = PATIENCE) -> None:
        await until(lambda: self.runtime.edges <= edges, "the edges have ended", timeout)
