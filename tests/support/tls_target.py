"""A TLS server at the far end of a stream, played by hand: OpenSSL in memory behind the frames of a tunnel."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable

from fastrelay.errors import Code
from fastrelay.wire import WINDOW, Kind
from tests.support import pair
from tests.support.certificates import Authority
from tests.support.tunnel import Peer


class TlsTarget:
    """A TLS server at the far end of a stream."""

    def __init__(
        self, peer: Peer, number: int, authority: Authority, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    ) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(authority.home / "target.crt", authority.home / "target.key")
        context.minimum_version = context.maximum_version = version
        self.peer = peer
        self.number = number
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.end: Kind | None = None
        self.consumed = [0]
        self.extra: Callable[[], bytes] = lambda: b""

    async def do(self, what: Callable[[], bytes | None]) -> bytes | None:
        while True:
            try:
                done = what()
            except ssl.SSLWantReadError:
                await self.flush()
                await self.more()
            else:
                await self.flush()
                return done

    async def shake(self) -> None:
        await self.do(self.tls.do_handshake)

    async def serve(self) -> None:
        """As far as it is let: one byte is enough."""
        await self.shake()
        await self.read(1)

    async def flush(self) -> None:
        raw = self.outgoing.read()
        if raw:
            await self.peer.send(pair.data(self.number, raw))

    async def more(self) -> None:
        one = await self.peer.frame(Kind.DATA, Kind.FIN, Kind.RESET, Kind.WINDOW)
        assert one.stream == self.number
        if one.kind == Kind.WINDOW:
            self.consumed.append(WINDOW.unpack(one.payload)[1])
            return
        if one.kind == Kind.RESET:
            self.end = Kind.RESET
            raise ConnectionResetError(Code.of(int.from_bytes(one.payload, "big")).name)
        self.incoming.write(one.payload)
        if one.kind == Kind.FIN:
            self.end = Kind.FIN
            self.incoming.write_eof()
        elif grant := self.extra():
            await self.peer.send(grant)

    async def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += await self.do(lambda: self.tls.read(65_536)) or b""
        return data

    async def until(self, end: bytes) -> bytes:
        """What comes until it ends so."""
        data = b""
        while not data.endswith(end):
            data += await self.do(lambda: self.tls.read(65_536)) or b""
        return data

    async def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self.tls.write(view) :]
        await self.flush()

    async def close(self) -> None:
        """close_notify and FIN."""
        with contextlib.suppress(ssl.SSLError):
            self.tls.unwrap()
        await self.flush()
        await self.peer.send(pair.fin(self.number))
