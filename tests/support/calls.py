"""A relay in this process with an HTTP front, clients played by hand that dial for others, and those who call through them."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from fastrelay import wire
from fastrelay.auth import Token
from fastrelay.front.http.front import HttpFront
from fastrelay.limits import DEFAULTS, Limits
from fastrelay.wire import Kind
from tests.roles.test_server import LOCALHOST, RelayBench
from tests.support import pair
from tests.support.certificates import Pair
from tests.support.grants import make_token
from tests.support.pair import Frame
from tests.support.tunnel import Local, Peer, turns, until

MUCH = 1 << 30


class Reply(NamedTuple):
    status: int
    fields: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode().removesuffix("\n")


class Hand:
    """A client that dials for others, by hand."""

    def __init__(self, name: str, peer: Peer) -> None:
        self.name = name
        self.peer = peer
        self.dialled: list[str] = []
        self.rest: dict[int, bytes] = {}
        self._unread: list[Frame] = []

    async def _frame(self, kind: Kind, stream: int = 0) -> Frame:
        """The next of this kind, of that stream if it is given; others stay to be read, but for credit."""
        for one in self._unread:
            if one.kind == kind and stream in (0, one.stream):
                self._unread.remove(one)
                return one
        while True:
            one = await self.peer.frame(Kind.OPEN, Kind.DATA, Kind.FIN, Kind.RESET)
            if one.kind == kind and stream in (0, one.stream):
                return one
            self._unread.append(one)

    async def asked(self) -> int:
        """The next stream; what it is to dial is in `dialled`."""
        opened = await self._frame(Kind.OPEN)
        request = wire.unpack_open(opened.payload)
        assert request.service == 0 and request.target
        self.dialled.append(request.target)
        return opened.stream

    async def untouched(self) -> None:
        """Nobody has asked it to dial anything, and nobody does."""
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(self.asked(), 0.03)

    async def takes(self) -> int:
        """The same, and it is accepted."""
        stream = await self.asked()
        await self.peer.send(pair.accept(stream, MUCH))
        return stream

    async def head(self, stream: int) -> bytes:
        """What comes on a stream up to a blank line; what has come behind it is in `rest`."""
        raw = self.rest.pop(stream, b"")
        while b"\r\n\r\n" not in raw:
            raw += (await self._frame(Kind.DATA, stream)).payload
        end = raw.index(b"\r\n\r\n") + 4
        self.rest[stream] = raw[end:]
        return raw[:end]

    async def has(self, stream: int, data: bytes) -> None:
        """These bytes come next on a stream."""
        raw = self.rest.pop(stream, b"")
        while len(raw) < len(data):
            raw += (await self._frame(Kind.DATA, stream)).payload
        assert raw == data

    async def serves(self, body: bytes = b"", status: int = 200) -> bytes:
        """Takes one call and answers it; returns the head of it."""
        stream = await self.takes()
        head = await self.head(stream)
        await self.answers(stream, body or self.name.encode(), status)
        return head

    async def answers(self, stream: int, body: bytes, status: int = 200) -> None:
        raw = b"HTTP/1.1 %d Fine\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)
        await self.peer.send(pair.data(stream, raw))

    async def refuses(self, code: int) -> None:
        await self.peer.send(pair.reset(await self.asked(), code))


class CallsBench(RelayBench):
    """`token` grants the callers what `dial` says; `port_http` is where they call."""

    front: HttpFront

    def __init__(self, home: Path, limits: Limits = DEFAULTS, certificate: Pair | None = None) -> None:
        """With a certificate there is a port for HTTPS as well, `port_https`."""
        super().__init__(home, limits)
        self.certificate = certificate

    def start(self) -> None:
        super().start()
        config = dataclasses.replace(self.server.config, http=(LOCALHOST, 0))
        if self.certificate is not None:
            cert, key = self.certificate
            config = dataclasses.replace(config, https=(LOCALHOST, 0), http_cert=cert, http_key=key)
        self.server.config = config
        self.front = HttpFront(self.server)
        ports = dict(self.server.fronts)
        self.port_http, self.port_https = ports["http"], ports.get("https", 0)
        self.front.start()

    async def close(self) -> None:
        self.front.close()
        await super().close()

    async def caller(self, label: str = "caller", **grant: object) -> Token:
        """A token that dials everything through every client, unless `grant` says otherwise."""
        made = make_token(
            self.home,
            label,
            **{"names": [], "services": [], "dial": ["*", "0.0.0.0/0", "127.0.0.0/8"], "through": ["*"], **grant},
        )
        await until(lambda: self.server.keyring._state.find(made.key_id), "the relay has read it")
        return made

    async def hand(self, name: str = "home") -> Hand:
        peer, _ = await self.client(name, f"inst-{name}")
        hand = Hand(name, peer)
        await until(lambda: self.server.registry.here(name), "it is connected")
        return hand

    async def call(self, raw: bytes) -> Local:
        """Somebody who has sent this."""
        sock = socket.socket()
        sock.setblocking(False)
        local = Local(sock)
        self.locals.append(local)
        await asyncio.get_running_loop().sock_connect(sock, (LOCALHOST, self.port_http))
        await local.send(raw)
        return local

    async def ask(self, raw: bytes) -> Reply:
        """What they are answered."""
        return await reply(await self.call(raw))


@asynccontextmanager
async def calls_relay(
    home: Path, limits: Limits = DEFAULTS, certificate: Pair | None = None
) -> AsyncIterator[CallsBench]:
    bench = CallsBench(home, limits, certificate)
    bench.start()
    try:
        yield bench
    finally:
        for local in bench.locals:
            local.close()
        for peer in bench.peers:
            peer.close()
        runtime = bench.server.runtime
        await bench.close()
        await turns()
    assert runtime.edges == 0 and runtime.pool.used == 0 and not runtime.watch._watched


def login(token: Token | str, user: str = "me") -> bytes:
    text = token if isinstance(token, str) else token.text()
    return b"Authorization: Basic " + base64.b64encode(f"{user}:{text}".encode())


def bearer(token: Token) -> bytes:
    return b"Authorization: Bearer " + token.text().encode()


def request(first: bytes, *fields: bytes, body: bytes = b"") -> bytes:
    """With a Host, and a length where there is a body."""
    length = (b"Content-Length: %d" % len(body),) if body else ()
    return b"\r\n".join((first + b" HTTP/1.1", b"Host: localhost", *fields, *length, b"", b"")) + body


async def head(local: Local) -> bytes:
    raw = b""
    while not raw.endswith(b"\r\n\r\n"):
        raw += await local.read(1)
    return raw


async def reply(local: Local) -> Reply:
    """One answer, whole."""
    first, *lines = (await head(local)).decode("latin-1").rstrip().split("\r\n")
    found = re.fullmatch(r"HTTP/1\.[01] (\d{3}) .*", first)
    assert found, first
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Reply(int(found[1]), fields, await local.read(int(fields.get("content-length", "0"))))
