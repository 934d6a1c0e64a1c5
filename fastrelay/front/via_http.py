"""The client of POST /tcpproxy: a local port each of whose connections becomes one over HTTP, and so reaches a target behind a client.

    the program ──▶ Near ──▶ Far ──▶ the relay's HTTP front ──▶ … ──▶ the target

There is no tunnel and no mux: the two are one TCP connection once the relay has answered 101, and nothing is read of the program before. Each
direction ends by itself, under TLS with close_notify; what ends in another way is a reset for the other side.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import re
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, cast

from fastrelay import log
from fastrelay.config import Front, join_host
from fastrelay.dialling import Place
from fastrelay.net.link import address
from fastrelay.net.options import LINGER_OFF, LINGER_RESET, linger, unacknowledged
from fastrelay.net.tls import ends_count
from fastrelay.wire import RESET_DRAIN, RESET_DRAIN_MOST

ANSWER_TIME: Final = 30.0
"""Seconds from a program's connection to the relay's answer."""

_MOST: Final = 16_384
_TOLD: Final = 4096  # bytes of a refusal that are read
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r]")
_POLL_FIRST: Final = 0.001
_POLL_MOST: Final = 0.05
_MUCH: Final = 1 << 62
_USER: Final = "fastrelay"
Failed = Callable[[str, str], None]
"""Told of a program, by its address, and why it was reset."""


@dataclass(frozen=True)
class Call:
    """What is asked of the front of a relay: a connection that `client` makes to `place`. The token is a secret."""

    front: Front
    client: str
    place: Place
    token: str = field(repr=False)

    def head(self) -> bytes:
        login = base64.b64encode(f"{_USER}:{self.token}".encode()).decode()
        return (
            f"POST {self.front.path}/tcpproxy HTTP/1.1\r\nHost: {join_host(self.front.host, self.front.port)}\r\n"
            f"Authorization: Basic {login}\r\nX-Fastrelay-Client: {self.client}\r\nX-Target-Host: {self.place.host}\r\n"
            f"X-Target-Port: {self.place.port}\r\nContent-Length: 0\r\n\r\n"
        ).encode()


class HttpForward:
    """All connections of one local port."""

    def __init__(self, loop: asyncio.AbstractEventLoop, call: Call, failed: Failed) -> None:
        self.loop = loop
        self.call = call
        self.failed = failed
        self.context = ends_count(ssl.create_default_context()) if call.front.tls else None
        self.nears: set[Near] = set()
        self._server: asyncio.Server | None = None
        self._nobody = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, sock: socket.socket) -> None:
        self._server = await self.loop.create_server(lambda: Near(self), sock=sock)

    @property
    def port(self) -> int:
        """The local one; once started."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def drain(self) -> None:
        """Nobody new; those who are here go on to their ends."""
        if self._server is not None:
            self._server.close()
        while self.nears:
            self._nobody.clear()
            await self._nobody.wait()

    async def close(self) -> None:
        """End at once: what is left is reset."""
        if self._server is not None:
            self._server.close()
        for near in list(self.nears):
            near.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)

    def gone(self, near: Near) -> None:
        self.nears.discard(near)
        if not self.nears:
            self._nobody.set()

    def connect(self, near: Near) -> asyncio.Task[None]:
        task = self.loop.create_task(self._connect(near))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _connect(self, near: Near) -> None:
        front = self.call.front
        ready: asyncio.Future[str] = self.loop.create_future()
        far: Far | None = None
        try:
            async with asyncio.timeout(ANSWER_TIME):
                _, far = await self.loop.create_connection(
                    lambda: TlsFar(near, ready) if front.tls else Far(near, ready), front.host, front.port
                )
                why = await ready
        except TimeoutError:
            why = f"the relay did not answer within {ANSWER_TIME:g} s"
        except OSError as error:
            why = _why(error)
        except asyncio.CancelledError:  # the program has gone
            if far is not None:
                far.abort()
            raise
        if not why:
            return
        if far is not None:
            far.abort()
        if not near.over:
            self.failed(near.peer, why)
            near.abort()


class _End(asyncio.Protocol):
    """One of the two connections. What it reads the other writes, and each end of a direction is passed on."""

    transport: asyncio.Transport
    other: _End | None = None

    def __init__(self) -> None:
        self.over = False  # the connection is gone
        self._read_all = False
        self._written_all = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._linger(LINGER_RESET)

    def send(self, data: bytes) -> None:
        """Write what the other has read."""
        if not self.over and not self._written_all:
            self.transport.write(data)

    def finish(self) -> None:
        """The other's direction is over."""
        if not self.over and not self._written_all:
            self._written_all = True
            self._write_eof()
            self._close_if_done()

    def abort(self) -> None:
        if not self.over:
            self.transport.abort()

    def drain(self) -> None:
        """The other was reset: so is this one, behind what was written, as long as that goes on. What comes is read away (protocol.md 9.2)."""
        if not self.over:
            now = asyncio.get_running_loop().time()
            if not self._read_all:
                self.transport.resume_reading()
            self._drain(_MUCH, now + RESET_DRAIN, now + RESET_DRAIN_MOST, _POLL_FIRST)

    def _drain(self, left: int, until: float, most: float, pause: float) -> None:
        if self.over:
            return
        loop = asyncio.get_running_loop()
        sock = self.transport.get_extra_info("socket")
        unsent = self.transport.get_write_buffer_size() + unacknowledged(sock.fileno())
        if unsent < left:
            left, until = unsent, min(loop.time() + RESET_DRAIN, most)
        if not unsent or loop.time() >= until:
            self.transport.abort()
        else:
            loop.call_later(pause, self._drain, left, until, most, min(pause * 2, _POLL_MOST))

    def pause_writing(self) -> None:
        if self.other is not None and not self.other.over:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and not self.other.over:
            self.other.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            self.other.send(data)

    def eof_received(self) -> bool:
        self._all_read()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.over = True
        if self.other is not None and not (self._read_all and self._written_all):
            self.other.drain()

    def _write_eof(self) -> None:
        self.transport.write_eof()

    def _all_read(self) -> None:
        if not self._read_all:
            self._read_all = True
            if self.other is not None:
                self.other.finish()
            self._close_if_done()

    def _close_if_done(self) -> None:
        if self._read_all and self._written_all:
            self._linger(LINGER_OFF)
            self.transport.close()

    def _linger(self, option: bytes) -> None:
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            linger(sock.fileno(), option)


class Near(_End):
    """A program's connection to the local port."""

    def __init__(self, forward: HttpForward) -> None:
        super().__init__()
        self.forward = forward
        self.peer = ""
        self._early = b""
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.peer = address(transport.get_extra_info("peername"))
        self.forward.nears.add(self)
        self._connecting = self.forward.connect(self)

    def data_received(self, data: bytes) -> None:
        if self.other is None:  # nothing is said to the relay before it has answered
            self._early += data
            self.transport.pause_reading()
        else:
            super().data_received(data)

    def joined(self, far: Far) -> None:
        self.other = far
        early, self._early = self._early, b""
        if early:
            far.send(early)
        if self._read_all:
            far.finish()
        else:
            self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._connecting is not None:
            self._connecting.cancel()
        self.forward.gone(self)


class Far(_End):
    """The connection to the relay. `ready` is done when the two are joined, with "", or with why they are not."""

    def __init__(self, near: Near, ready: asyncio.Future[str]) -> None:
        super().__init__()
        self._near = near
        self._ready = ready
        self._said = b""
        self._joined = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._ask()

    def _ask(self) -> None:
        self.transport.write(self._near.forward.call.head())

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._fail("the relay ended the connection without an answer")

    def data_received(self, data: bytes) -> None:
        if self._joined:
            super().data_received(data)
            return
        self._said += data
        head, blank, rest = self._said.partition(b"\r\n\r\n")
        if not blank:
            if len(self._said) > _MOST:
                self._fail("what answers there does not speak HTTP")
            return
        status = _STATUS.match(head)
        if status is None:
            self._fail("what answers there does not speak HTTP")
        elif status[1] != b"101":
            length = re.search(rb"\r\ncontent-length: *([0-9]{1,9})", head.lower())
            if length is None or len(rest) >= min(int(length[1]), _TOLD):
                self._refused(status[1], rest)
        elif not re.search(rb"\r\nupgrade: *tcpproxy(\r|$)", head.lower()):
            self._fail("it switches to another protocol than tcpproxy")
        else:
            self._join(rest)

    def eof_received(self) -> bool:
        if not self._joined:
            head, blank, rest = self._said.partition(b"\r\n\r\n")
            if blank and (status := _STATUS.match(head)):
                self._refused(status[1], rest)
            else:
                self._fail("the relay ended the connection without an answer")
            return False
        return super().eof_received()

    def _refused(self, status: bytes, text: bytes) -> None:
        told = " ".join(text[:_TOLD].decode("utf-8", "replace").split())
        self._fail(f"the relay answers {status.decode()}{f': {told}' if told.isprintable() and told else ''}")

    def _join(self, rest: bytes) -> None:
        near = self._near
        self._joined = True
        self._said = b""
        self.other = near
        if near.over:
            self.abort()
            return
        if not self._ready.done():
            self._ready.set_result("")
        near.joined(self)
        if rest:
            self.data_received(rest)

    def _fail(self, why: str) -> None:
        if not self._ready.done():
            self._ready.set_result(why)


class TlsFar(Far):
    """The same under TLS, where OpenSSL works in memory: a transport that does TLS by itself cannot end one direction alone."""

    def __init__(self, near: Near, ready: asyncio.Future[str]) -> None:
        super().__init__(near, ready)
        context, host = near.forward.context, near.forward.call.front.host
        assert context is not None
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=host)
        self._shaken = False

    def _ask(self) -> None:
        self._pump()

    def send(self, data: bytes) -> None:
        if self.over or self._written_all:
            return
        view = memoryview(data)
        try:
            while view:
                view = view[self._tls.write(view) :]
        except ssl.SSLError:  # the relay has ended TLS, and so this connection
            self.abort()
        self._flush()

    def _write_eof(self) -> None:
        with contextlib.suppress(ssl.SSLError):  # theirs is not awaited
            self._tls.unwrap()
        self._flush()
        super()._write_eof()

    def data_received(self, data: bytes) -> None:
        self._in.write(data)
        self._pump()

    def eof_received(self) -> bool:
        self._in.write_eof()
        self._pump()
        if not self._read_all:
            self.abort()  # nobody in TLS has said that this is the end
        return True

    def _pump(self) -> None:
        try:
            if not self._shaken:
                self._tls.do_handshake()
                self._shaken = True
                self.send(self._near.forward.call.head())
            while not self._read_all and not self.over:
                data = self._tls.read(65_536)
                if not data:
                    self._ended()
                    break
                super().data_received(data)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._ended()
        except ssl.SSLCertVerificationError as error:
            self._fail(f"the relay's certificate is not accepted ({error.verify_message})")
        except ssl.SSLError as error:
            self._fail(f"TLS with the relay failed ({(error.reason or str(error)).replace('_', ' ').lower()})")
            if self._joined:
                self.abort()
        if not self.over:
            self._flush()

    def _ended(self) -> None:
        """close_notify: their direction is over."""
        if self._joined:
            self._all_read()
        else:
            super().eof_received()

    def _flush(self) -> None:
        if data := self._out.read():
            self.transport.write(data)


def _why(error: OSError) -> str:
    named = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror  # a resolver's are below 0
    return (named or str(error)).lower()


def told(program: str, why: str) -> None:
    """For `HttpForward`: say that a program was reset."""
    log.warning("forward.failed", f"Reset the connection of {program}: {why}.", visitor=program)
