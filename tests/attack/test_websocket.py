"""WebSocket by hand, broken in every way, and heads that never end: every connection is ended, and nobody else notices."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from tests.attack.client import login
from tests.attack.conftest import Field
from tests.attack.frames import Code, Frame, Kind, Splitter, Token, ping
from tests.attack.line import Line
from tests.attack.test_strangers import MAX_GREETINGS
from tests.fuzz.mutate import Peer, mutate
from tests.support import need
from tests.support.peers import TIMEOUT, Address, background, until
from tests.support.processes import BEST, Server, Way

PROXIED = Way(False, BEST.loop, websocket=True)
THREADS = 4
PATIENCE = 5.0
BINARY = 0x2


def head(source: str) -> bytes:
    """A handshake, as a proxy would pass it on."""
    return (
        "GET /fastrelay HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Protocol: fastrelay.1\r\nX-Forwarded-For: {source}\r\n\r\n"
    ).encode()


def message(payload: bytes, first: int = 0x80 | BINARY) -> bytes:
    """A masked frame (RFC 6455, section 5.2)."""
    mask, size = os.urandom(4), len(payload)
    if size < 126:
        length = bytes((0x80 | size,))
    else:
        length = struct.pack(">BH", 0xFE, size) if size < 65_536 else struct.pack(">BQ", 0xFF, size)
    return bytes((first,)) + length + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


class Unframed(Splitter):
    """What comes in HTTP and messages, cut into frames of the tunnel."""

    def __init__(self) -> None:
        super().__init__()
        self.status = 0  # of the answer to the handshake
        self.closed = 0  # the code of Close
        self._web = bytearray()

    def feed(self, chunk: bytes) -> list[Frame]:
        web = self._web
        web += chunk
        if not self.status:
            if (end := web.find(b"\r\n\r\n")) < 0:
                return []
            self.status = int(web[9:12])
            del web[: end + 4]
        found: list[Frame] = []
        while self.status == 101 and len(web) >= 2:
            short = web[1]
            assert short < 0x80, "a relay does not mask"
            at = 2 + {126: 2, 127: 8}.get(short, 0)
            size = int.from_bytes(web[2:at]) if at > 2 else short
            if len(web) < at + size:
                break
            payload = bytes(web[at : at + size])
            if web[0] == 0x88:
                self.closed = int.from_bytes(payload[:2])
            elif web[0] == 0x80 | BINARY:
                found += super().feed(payload)
            del web[: at + size]
        return found


class WebLine(Line):
    """A line inside a WebSocket; `raw` sends what is none."""

    def __init__(self, address: Address, source: str, asked: bytes | None = None) -> None:
        super().__init__(socket.create_connection(address, TIMEOUT))
        self._splitter = self.heard_in = Unframed()
        self.raw(head(source) if asked is None else asked)

    def raw(self, said: bytes) -> None:
        super().send(said)

    def send(self, raw: bytes, *, deaf: bool = False, timeout: float = TIMEOUT) -> int:
        return super().send(message(raw), deaf=deaf, timeout=timeout)


def broken_head(line: WebLine, random: Random, source: str) -> None:
    raw = bytearray(head(source))
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(raw))
        match random.randrange(4):
            case 0:
                raw[at] = random.randrange(256)
            case 1:
                del raw[at : at + random.randint(1, 30)]
            case 2:
                raw[at:at] = random.choice((b"\r\n", b"\0", b" ", b"\r\nOrigin: x\r\n", b"a" * 9000))
            case _:
                raw += random.randbytes(random.randint(1, 100))
    line.raw(bytes(raw))


def broken_frames(line: WebLine, random: Random) -> None:
    """Messages of which one to three things are broken, their heads, their masks or what they carry."""
    peer = Peer(random, dialer=True)
    frames = [peer.frame()[:4000] for _ in range(random.choice((1, 2, 5)))]
    if random.random() < 0.3:
        mutate(random, frames)
    said = [bytearray(message(one, random.choice((0x82, 0x82, 0x82, 0x02, 0x80)))) for one in frames]
    said.insert(random.randint(0, len(said)), bytearray(message(b"?", random.choice((0x88, 0x89, 0x8A, 0x81, 0x83)))))
    broken = random.choice(said)
    broken[random.randrange(min(len(broken), 14))] = random.randrange(256)
    line.raw(b"".join(said))


def attack(field: Field, numbers: range) -> Counter[str]:
    ends: Counter[str] = Counter()
    for number in numbers:
        random = Random(number)
        source = f"10.{number % 200}.{number // 200 % 250}.{1 + number // 50_000}"
        kind = number % 3
        with WebLine(field.address, source, b"" if kind == 0 else None) as line:
            if kind == 0:
                broken_head(line, random, source)
            else:
                if kind == 1:
                    login(line, field.token, f"web-{numbers.start}")
                broken_frames(line, random)
            line.half_close()
            assert line.to_end(PATIENCE), f"seed {number}: it stands after {PATIENCE} s"
            assert not line.goaway or line.goaway[1] != Code.INTERNAL, f"seed {number}: {line.goaway}"
            code = Code(line.goaway[1]).name if line.goaway and line.goaway[1] in list(Code) else ""
            status = line.heard_in.status
            ends[code or (f"status {status}" if status not in (0, 101) else line.ended)] += 1
    return ends


@pytest.mark.slow
@pytest.mark.parametrize("field", [PROXIED], ids=repr, indirect=True, scope="module")
def test_malformed_websockets(field: Field, long: int) -> None:
    """Heads, frames before the login, and frames behind it."""
    number = 10_000 * long or 240
    files = field.server.files()
    with field.neighbours.watch() as seen:
        parts = [range(first, number, THREADS) for first in range(THREADS)]
        ends = sum((work.result(3600) for work in [background(attack, field, part) for part in parts]), Counter[str]())
        until(lambda: field.server.files() <= files, "every connection is closed", TIMEOUT)
    assert sum(ends.values()) == number
    assert ends["PROTOCOL"] > number / 10 and ends["status 400"] and len(ends) > 4, f"too little was broken: {ends}"
    print(f"\n{number} connections ({', '.join(f'{count} {why}' for why, count in ends.most_common())}); {seen}")


@pytest.mark.slow
@pytest.mark.parametrize("field", [PROXIED], ids=repr, indirect=True, scope="module")
def test_too_much_without_effect(field: Field) -> None:
    """Pings, which are answered when there is time, and messages of nothing, until the session ends."""
    with field.neighbours.watch():
        for first in (0x89, 0x8A, 0x82):
            with WebLine(field.address, "10.0.0.1") as line:
                login(line, field.token, "flood")
                for _ in range(100):
                    line.raw(message(b"", first) * 100)
                    if line.goaway or line.ended:
                        break
                while not line.heard_in.closed and not line.ended:
                    line.read(PATIENCE)
                assert line.goaway and line.goaway[1] == Code.CALM and line.heard_in.closed == 4000 + Code.CALM


@pytest.mark.slow
def test_heads_that_never_end(tmp_path: Path, long: int) -> None:
    """More than may be here, some at once and some a byte at a time: a client of an address of its own gets in all the while."""
    need.files(4096)
    number = 3000 * long or 1100
    with Server(tmp_path, PROXIED, "--limit", "handshake-time=2s") as relay:
        token = Token.parse(relay.token())
        files, memory = relay.files(), relay.rss()
        with contextlib.ExitStack() as stack:
            lines = []
            for at in range(number):
                line = stack.enter_context(WebLine(relay.address, "", b""))
                with contextlib.suppress(OSError):
                    line.raw(head(f"10.9.{at % 50}.1")[: 40 + at % 150])
                lines.append(line)
            assert relay.files() - files <= MAX_GREETINGS + 20
            times = []
            for turn in range(5):
                began = time.monotonic()
                with WebLine(relay.address, f"192.0.2.{turn}") as good:
                    login(good, token, "good")
                    good.send(ping())
                    good.until(1, Kind.PONG)
                times.append(time.monotonic() - began)
                for line in lines[-100:]:
                    with contextlib.suppress(OSError):
                        line.raw(b"a")
            assert max(times) < 2
            until(lambda: relay.files() - files < 10, "all have had their time", 10)
        grown = relay.rss() - memory
        print(f"\n{number} heads that do not end: a good client in at most {max(times):.2f} s, +{grown / 1024:.0f} MiB")
        assert grown < 20 * 1024
