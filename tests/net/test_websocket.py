"""A link with a WebSocket between it and a socket; the other end is played by the sans-IO protocol of the library."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from websockets.client import ClientProtocol
from websockets.frames import Close, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import Event, Protocol
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from fastrelay import wire
from fastrelay.errors import Code, HandshakeError, LimitError, ProtocolError
from fastrelay.limits import DEFAULTS, Limits
from fastrelay.mux.stream import Stream
from fastrelay.net.link import Core, Link
from fastrelay.net.runtime import Runtime
from fastrelay.net.websocket import CLOSE_CODES, ClientSide, RelaySide
from fastrelay.wire import MAX_HEAD, MAX_MESSAGE, Kind
from tests.conftest import Run
from tests.support import pair
from tests.support.pair import Frame as TunnelFrame
from tests.support.pair import frames
from tests.support.tunnel import PATIENCE, tcp_pair, until

KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
ASK = (
    "GET /fastrelay HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"{KEY}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: fastrelay.1\r\n\r\n"
)


class Far:
    """The other end."""

    def __init__(self, sock: socket.socket, protocol: Protocol) -> None:
        self.sock = sock
        self.protocol = protocol
        self.events: list[Event] = []
        self.loop = asyncio.get_running_loop()
        self.tunnel = b""  # payload of binary messages

    async def say(self) -> None:
        """Send what the library wants to send."""
        for data in self.protocol.data_to_send():
            if data:
                await self.loop.sock_sendall(self.sock, data)

    async def send(self, raw: bytes) -> None:
        await self.loop.sock_sendall(self.sock, raw)

    async def event(self) -> Event:
        """The next event; payload of binary messages is collected."""
        async with asyncio.timeout(PATIENCE):
            while not self.events:
                data = await self.loop.sock_recv(self.sock, 1 << 16)
                assert data, "an end"
                self.protocol.receive_data(data)
                self.events += self.protocol.events_received()
            return self.events.pop(0)

    async def frame(self, *kinds: Kind) -> TunnelFrame:
        """The next frame of the tunnel of one of these kinds; messages of this file hold whole frames."""
        while True:
            for index, one in enumerate(whole := frames(self.tunnel)):
                if one.kind in kinds:
                    self.tunnel = b"".join(later.raw for later in whole[index + 1 :])
                    return one
            self.tunnel = b""
            event = await self.event()
            assert isinstance(event, Frame) and event.opcode is Opcode.BINARY, event
            self.tunnel += bytes(event.data)

    async def until_close(self) -> Close:
        """Read on until Close."""
        while True:
            event = await self.event()
            if isinstance(event, Frame) and event.opcode is Opcode.CLOSE:
                return Close.parse(bytes(event.data))

    async def rest(self) -> bytes:
        """All bytes until the connection ends."""
        got = b""
        async with asyncio.timeout(PATIENCE):
            while data := await self.loop.sock_recv(self.sock, 1 << 16):
                got += data
        return got


class Near:
    """The link's role and its owner."""

    def __init__(self, runtime: Runtime, *, dialer: bool, proxied: bool) -> None:
        self.runtime = runtime
        self.dialer = dialer
        self.proxied = proxied
        self.closed: list[Exception | None] = []
        self.link = Link(runtime, self)
        self.layer: weakref.ref[RelaySide | ClientSide]

    def on_connected(self, link: Link) -> Core:
        def begin() -> Core:
            return link.begin(self, dialer=self.dialer, ours=wire.Settings(), theirs=wire.Settings(early=0))

        layer: RelaySide | ClientSide
        if self.dialer:
            layer = ClientSide(link, begin, "relay.example", 443, "/fastrelay", tls=False)
        else:
            layer = RelaySide(link, begin, "/fastrelay", proxied=self.proxied)
        self.layer = weakref.ref(layer)
        return layer

    def on_closed(self, link: Link, error: Exception | None) -> None:
        self.closed.append(error if error is None else error.with_traceback(None))

    def on_open(self, stream: Stream, request: wire.Open) -> None: ...
    def on_expose(self, request: wire.Expose) -> None: ...
    def on_exposed(self, answer: wire.Exposed) -> None: ...
    def on_list(self) -> None: ...
    def on_listed(self, listed: wire.Listed) -> None: ...
    def on_pins(self, pins: tuple[bytes, ...]) -> None: ...
    def on_goaway(self, code: Code, text: str) -> None: ...
    def on_idle(self) -> None: ...


@asynccontextmanager
async def rig(
    *, dialer: bool = False, proxied: bool = False, limits: Limits = DEFAULTS
) -> AsyncIterator[tuple[Near, Far]]:
    """A link and its other end; the handshake has not begun. At the end nothing of the layer may be left, without the collector's help."""
    runtime = Runtime(limits)
    outside, inside = tcp_pair()
    near = Near(runtime, dialer=dialer, proxied=proxied)
    protocol = (
        ServerProtocol(subprotocols=[Subprotocol(wire.WEBSOCKET)], max_size=MAX_MESSAGE)
        if dialer
        else ClientProtocol(parse_uri("ws://relay/fastrelay"), subprotocols=[Subprotocol(wire.WEBSOCKET)])
    )
    far = Far(outside, protocol)
    gc.disable()
    try:
        await runtime.loop.connect_accepted_socket(lambda: near.link, inside)
        yield near, far
        outside.close()
        if not near.closed:
            near.link.abort(ConnectionAbortedError("the test is over"))
        await until(lambda: near.closed, "the link has ended")
        assert len(near.closed) == 1
        await until(lambda: near.layer() is None, "the layer is freed")
    finally:
        gc.enable()
        outside.close()
        await runtime.close()


async def greeted(far: Far) -> None:
    """The handshake of a client that the library plays; the session has said its first word."""
    assert isinstance(far.protocol, ClientProtocol)
    far.protocol.send_request(far.protocol.connect())
    await far.say()
    assert isinstance(await far.event(), Response)
    assert far.protocol.handshake_exc is None and far.protocol.subprotocol == wire.WEBSOCKET
    await far.frame(Kind.PING)


def test_a_tunnel_inside(run: Run) -> None:
    async def main() -> None:
        async with rig() as (_, far):
            await greeted(far)
            raw = pair.ping(b"abcdefgh") + pair.ping(b"ijklmnop")
            for at in range(0, len(raw), 5):  # boundaries of messages mean nothing
                far.protocol.send_binary(raw[at : at + 5], fin=True)
            await far.say()
            answers = [(await far.frame(Kind.PONG)).payload]
            while answers[-1] != b"ijklmnop":
                answers.append((await far.frame(Kind.PONG)).payload)
            assert answers[0] in (b"abcdefgh", b"ijklmnop")

    run(main())


def test_what_comes_behind_the_head_belongs_to_the_tunnel(run: Run) -> None:
    async def main() -> None:
        async with rig() as (_, far):
            raw = ASK.encode() + Frame(Opcode.BINARY, pair.ping(b"abcdefgh")).serialize(mask=True)
            for at in range(0, len(raw), 7):
                await far.send(raw[at : at + 7])
                await asyncio.sleep(0)
            data = await far.loop.sock_recv(far.sock, 4096)
            head, end, rest = data.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 101 ") and end
            assert b"sec-websocket-protocol: fastrelay.1" in head.lower() and b"extensions" not in head.lower()
            far.protocol = Protocol(far.protocol.side)
            far.protocol.receive_data(rest)
            far.events += far.protocol.events_received()
            assert (await far.frame(Kind.PONG)).payload == b"abcdefgh"

    run(main())


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (ASK.replace("GET", "BREW"), 405),
        (ASK.replace("/fastrelay", "/"), 404),
        (ASK.replace("/fastrelay", "/fastrelay/../fastrelay"), 404),
        (ASK.replace("/fastrelay", "http://relay/fastrelay"), 404),
        (ASK.replace("Host: relay", "Host: relay\r\nOrigin: https://evil.example"), 403),
        (ASK.replace("Host: relay", "Host: relay\r\nOrigin: null"), 403),
        (ASK.replace("Upgrade: websocket\r\n", ""), 426),
        (ASK.replace("Upgrade: websocket", "Upgrade: h2c"), 426),
        (ASK.replace("Connection: Upgrade", "Connection: close"), 426),
        (ASK.replace("HTTP/1.1", "HTTP/1.0"), 505),
        (ASK.replace("fastrelay.1", "chat"), 400),
        (ASK.replace("Sec-WebSocket-Protocol: fastrelay.1\r\n", ""), 400),
        (ASK.replace(KEY, ""), 400),
        (ASK.replace(KEY, KEY * 2), 400),
        (ASK.replace("Version: 13", "Version: 8"), 400),
        (ASK.replace("Host: relay", "Content-Length: 5"), 400),
        (ASK.replace("Host: relay", "Transfer-Encoding: chunked"), 400),
        (ASK.replace("Host: relay", "Host : relay"), 400),
        (ASK.replace("Host: relay", "Host: relay\r\n folded"), 400),
        (ASK.replace("Host: relay", "Host: rel\0ay"), 400),
        (ASK.replace(" /fastrelay HTTP/1.1", ""), 400),
        ("GET / HTTP/1.1\r\n\r\n", 404),
        ("SSH-2.0-OpenSSH_9.2\r\n\r\n", 400),
        ("\x16\x03\x01\x00\x05hello", 400),
        ("\x10\x00\x00\x02\x00\x00\x00\x00{}", 400),
        ("GET /fastrelay HTTP/1.1\r\n" + "A: b\r\n" * 200 + "\r\n", 431),
        ("GET /fastrelay HTTP/1.1\r\nCookie: " + "a" * MAX_HEAD, 431),
        ("GET /" + "a" * (MAX_HEAD + 100), 431),
    ],
)
def test_what_is_not_taken_is_answered(run: Run, said: str, status: int) -> None:
    async def main() -> None:
        async with rig() as (near, far):
            await far.send(said.encode("latin-1"))
            answer = await far.rest()
            assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer
            head, _, body = answer.partition(b"\r\n\r\n")
            assert b"connection: close" in head.lower()
            assert f"content-length: {len(body)}".encode() in head.lower()
            assert b"GOAWAY" not in answer and b"\x0a\x00" not in body
            far.sock.close()
            await until(lambda: near.closed, "the link has ended")
            error = near.closed[0]
            assert isinstance(error, HandshakeError) and error.status == status
            assert len(str(error)) < 250

    run(main())


def test_a_head_that_does_not_end(run: Run) -> None:
    async def main() -> None:
        async with rig(limits=Limits(handshake_time=0.1)) as (near, far):
            await far.send(ASK[:-2].encode())
            assert (await far.rest()).startswith(b"HTTP/1.1 408 ")
            far.sock.close()
            await until(lambda: near.closed, "the link has ended")
            assert isinstance(near.closed[0], LimitError) and near.closed[0].limit == "handshake-time"

    run(main())


def test_a_proxy_says_whose_it_is(run: Run) -> None:
    async def main(proxied: bool) -> str:
        async with rig(proxied=proxied) as (near, far):
            await far.send(ASK.replace("Host: relay", "X-Forwarded-For: 10.0.0.1, 192.0.2.7").encode())
            await far.loop.sock_recv(far.sock, 1)
            return near.link.peer

    assert run(main(True)) == "192.0.2.7"
    assert run(main(False)).startswith("127.0.0.1:")


def test_pings(run: Run) -> None:
    async def main() -> None:
        async with rig() as (_, far):
            await greeted(far)
            raw = b"".join(Frame(Opcode.PING, b"%d" % number).serialize(mask=True) for number in range(3))
            await far.send(raw)  # read at once, so the newest is answered alone
            answers: list[bytes] = []
            while not answers or answers[-1] != b"2":
                event = await far.event()
                assert isinstance(event, Frame)
                if event.opcode is Opcode.PONG:
                    answers.append(bytes(event.data))
            assert answers[-1] == b"2"

    run(main())


def test_a_ping_is_no_sign_of_life(run: Run) -> None:
    """It may be a proxy's, in front of a relay that is gone."""

    async def main() -> None:
        async with rig() as (near, far):
            await greeted(far)
            session = near.link.session
            assert session is not None
            heard = session.heard
            await far.send(
                Frame(Opcode.PING, b"?").serialize(mask=True) + Frame(Opcode.PONG, b"!").serialize(mask=True)
            )
            while (event := await far.event()) != Frame(Opcode.PONG, b"?"):
                assert isinstance(event, Frame)
            assert session.heard == heard
            far.protocol.send_binary(pair.pong(b"12345678"))
            await far.say()
            await until(lambda: session.heard > heard, "a message is one")

    run(main())


@pytest.mark.parametrize(
    "flood",
    [Frame(Opcode.PING, b"!"), Frame(Opcode.PONG, b"!"), Frame(Opcode.BINARY, b"")],
    ids=["PING", "PONG", "empty"],
)
def test_too_much_without_effect(run: Run, flood: Frame) -> None:
    async def main() -> None:
        async with rig(limits=Limits(flood_optional=(5, 1))) as (near, far):
            await greeted(far)
            await far.send(b"".join(flood.serialize(mask=True) for _ in range(20)))
            while True:
                event = await far.event()
                assert isinstance(event, Frame)
                if event.opcode is Opcode.BINARY and (found := frames(bytes(event.data))[-1]).kind == Kind.GOAWAY:
                    break
            assert wire.unpack_goaway(found.payload)[1] is Code.CALM
            assert (await far.until_close()).code == 4000 + Code.CALM
            far.sock.close()
            await until(lambda: near.closed, "the link has ended")
            assert isinstance(near.closed[0], LimitError) and near.closed[0].limit == "flood-optional"

    run(main())


@pytest.mark.parametrize("code", [Code.NO_ERROR, Code.PROTOCOL, Code.INTERNAL, Code.UNAUTHORIZED, Code.SUPERSEDED])
def test_a_goodbye_and_then_close(run: Run, code: Code) -> None:
    async def main() -> None:
        async with rig() as (near, far):
            await greeted(far)
            near.link.goodbye(ProtocolError(code, "why"))
            near.link.write(pair.ping())  # nothing more
            said = await far.frame(Kind.GOAWAY)
            assert wire.unpack_goaway(said.payload)[1:] == (code, "why")
            assert (await far.until_close()).code == CLOSE_CODES.get(code, 4000 + code)
            await far.say()  # the library answers

    run(main())


def test_an_end_that_both_want(run: Run) -> None:
    async def main() -> None:
        async with rig() as (near, far):
            await greeted(far)
            near.link.close()
            assert (await far.until_close()).code == 1000
            assert await far.rest() == b""
            await until(lambda: near.closed, "the link has ended")
            assert near.closed == [None]

    run(main())


@pytest.mark.parametrize(("code", "told"), [(1000, None), (1001, None), (None, "code 1005"), (1011, "code 1011")])
def test_close_that_arrives_is_the_end(run: Run, code: int | None, told: str | None) -> None:
    async def main() -> None:
        async with rig() as (near, far):
            await greeted(far)
            far.protocol.send_close(code)
            await far.say()
            answer = await far.until_close()
            assert answer.code == (code or 1005)
            await until(lambda: near.closed, "the link has ended")
            error = near.closed[0]
            assert error is None if told is None else isinstance(error, ConnectionAbortedError) and told in str(error)

    run(main())


@pytest.mark.parametrize("payload", [b"!", b"\x00\x00", b"\x03\xe8\xff"])
def test_close_without_sense(run: Run, payload: bytes) -> None:
    async def main() -> None:
        async with rig() as (_, far):
            await greeted(far)
            await far.send(Frame(Opcode.CLOSE, payload).serialize(mask=True))
            said = await far.frame(Kind.GOAWAY)
            assert wire.unpack_goaway(said.payload)[1] is Code.PROTOCOL
            assert (await far.until_close()).code == 1002

    run(main())


def test_a_text_message(run: Run) -> None:
    async def main() -> None:
        async with rig() as (_, far):
            await greeted(far)
            far.protocol.send_text(b"hello")
            await far.say()
            said = await far.frame(Kind.GOAWAY)
            assert wire.unpack_goaway(said.payload)[1] is Code.PROTOCOL
            assert (await far.until_close()).code == 1002

    run(main())


# --- the client's side ---------------------------------------------------------------------------------------------------


async def asked(far: Far) -> Request:
    """The request of the client."""
    assert isinstance(far.protocol, ServerProtocol)
    request = await far.event()
    assert isinstance(request, Request)
    return request


def test_a_client_asks_and_is_taken(run: Run) -> None:
    async def main() -> None:
        async with rig(dialer=True) as (near, far):
            request = await asked(far)
            assert (request.path, request.headers["Host"]) == ("/fastrelay", "relay.example:443")
            assert "Origin" not in request.headers and "Sec-WebSocket-Extensions" not in request.headers
            assert isinstance(far.protocol, ServerProtocol)
            far.protocol.send_response(far.protocol.accept(request))
            far.protocol.send_binary(pair.ping(b"abcdefgh"))
            await far.say()
            assert (await far.frame(Kind.PONG)).payload == b"abcdefgh"
            # What a link writes at once is a message, unless it is larger than one may be.
            size = 2 * MAX_MESSAGE + 5
            near.link.write(memoryview(pair.data(1, bytes(size))))
            got = 0
            sizes = []
            while got < size + 8:
                event = await far.event()
                assert isinstance(event, Frame) and event.opcode is Opcode.BINARY
                sizes.append(len(event.data))
                got += sizes[-1]
            assert sizes[-3:] == [MAX_MESSAGE, MAX_MESSAGE, 13]

    run(main())


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        (b"HTTP/1.1 404 Not Found\r\n\r\n", 404, "404 Not Found: check the path"),
        (b"HTTP/1.1 302 \x1b[31mred\r\nLocation: /\r\n\r\n", 302, "302 Found: use the address"),
        (b"HTTP/1.0 502 Bad Gateway\r\nContent-Length: 5\r\n\r\nhello", 502, "a proxy there does not reach"),
        (b"HTTP/1.1 599 Odd\r\n\r\n", 599, "599 with a status of its own"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 101, "is no relay"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", 0, "does not speak HTTP"),
        (b"\x10\x00\x00\x02", 0, "does not speak HTTP"),
        (b"HTTP/1.1 101 Switching Protocols\r\nA: " + b"a" * MAX_HEAD, 0, "says too much"),
    ],
)
def test_a_client_is_not_taken(run: Run, answer: bytes, status: int, words: str) -> None:
    async def main() -> None:
        async with rig(dialer=True) as (near, far):
            await asked(far)
            await far.send(answer)
            assert await far.rest() == b""  # it sends nothing more
            far.sock.close()
            await until(lambda: near.closed, "the link has ended")
            error = near.closed[0]
            assert isinstance(error, HandshakeError) and error.status == status
            assert words in error.text and error.text.isprintable()

    run(main())


def test_a_relay_that_does_not_take_the_subprotocol(run: Run) -> None:
    async def main() -> None:
        async with rig(dialer=True) as (near, far):
            request = await asked(far)
            assert isinstance(far.protocol, ServerProtocol)
            response = far.protocol.accept(request)
            del response.headers["Sec-WebSocket-Protocol"]
            far.protocol.send_response(response)
            await far.say()
            await far.rest()
            far.sock.close()
            await until(lambda: near.closed, "the link has ended")
            error = near.closed[0]
            assert isinstance(error, HandshakeError) and "no relay" in error.text

    run(main())
