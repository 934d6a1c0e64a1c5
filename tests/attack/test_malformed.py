"""Thousands of connections that break one frame or one step of the handshake each: every one is ended, and nobody else notices."""

from __future__ import annotations

import contextlib
import socket
import time
from collections import Counter
from random import Random
from typing import NamedTuple

import pytest

from tests.attack.client import attacker, auth, binding, connect, hello
from tests.attack.conftest import PLAIN, Field
from tests.attack.frames import Code, Kind, frame
from tests.attack.line import Line
from tests.fuzz.mutate import Peer, mutate
from tests.support.peers import TIMEOUT, background, until
from tests.support.processes import BEST

THREADS = 4
PATIENCE = 5.0
"""Seconds within which a connection must have ended that says no more: it has done all that it will, and closed its side."""


class Done(NamedTuple):
    """What came of some connections: how they ended, and how many frames were sent on them."""

    ends: Counter[str]
    frames: int
    mutated: int


def sources(seed: int) -> str:
    """An address of this machine for each connection, as if thousands of them came."""
    return f"127.{1 + seed % 200}.{seed // 200 % 250}.{1 + seed // 50_000}"


def broken_handshake(field: Field, line: Line, random: Random) -> tuple[int, int]:
    """One of the two frames before WELCOME is broken, or has company, or comes at the wrong time; frames, and how many were broken."""
    bound = binding(line)
    ours = hello(bound)
    sequence = [frame(Kind.HELLO, 0, ours)]
    if random.random() < 0.5:
        line.send(sequence[0])
        words, _ = auth(field.token, ours, line.frame(Kind.HELLO).payload, bound, f"mal-{random.randrange(8)}", "mal")
        sequence = [words]
    if random.random() < 0.3:
        sequence.insert(random.randint(0, 1), Peer(random, dialer=True).frame())
    touched = 0
    if random.random() < 0.3:
        raw = bytearray(sequence[0])
        raw[random.randrange(len(raw))] = random.choice(b'"{}[]:,\\0123456789aA_-\xff')
        sequence[0] = bytes(raw)
        touched = 1
    while not touched:
        touched = mutate(random, sequence)
    line.send(b"".join(sequence))
    return len(sequence), touched


def broken_session(field: Field, line: Line, random: Random) -> tuple[int, int]:
    """Frames of a client, one to three things about them broken."""
    peer = Peer(random, dialer=True)
    sequence = [peer.frame() for _ in range(random.choice((1, 2, 3, 5)))]
    touched = 0
    while not touched:
        touched = mutate(random, sequence)
    line.send(b"".join(sequence))
    return len(sequence), touched


def attack(field: Field, numbers: range, tls: bool) -> Done:
    ends: Counter[str] = Counter()
    count = mutated = 0
    for number in numbers:
        random = Random(number)
        before = number % 2 == 0
        source = sources(number)
        with (
            connect(field.address, tls=tls, source=source)
            if before
            else attacker(field.address, field.token, f"mal-{number % THREADS}", tls=tls, source=source)
        ) as line:
            sent, touched = (broken_handshake if before else broken_session)(field, line, random)
            line.half_close()
            ended = line.to_end(PATIENCE)
            assert ended, f"seed {number}: it stands after {PATIENCE} s"
            assert not line.goaway or line.goaway[1] != Code.INTERNAL, f"seed {number}: {line.goaway}"
            code = Code(line.goaway[1]).name if line.goaway and line.goaway[1] in list(Code) else ""
            ends[code or ("a reset" if ended == "reset" else "an end")] += 1
            count += sent
            mutated += touched
    return Done(ends, count, mutated)


@pytest.mark.slow
@pytest.mark.parametrize("field", [PLAIN, BEST], ids=repr, indirect=True, scope="module")
def test_malformed_connections(field: Field, long: int) -> None:
    """Half before authentication, half after it."""
    tls = field.server.way.tls
    number = 10_000 * long or 150
    files = field.server.files()
    start = time.monotonic()
    with field.neighbours.watch() as seen:
        parts = [range(first, number, THREADS) for first in range(THREADS)]
        # Each thread has names of its own: a session takes the place of an older one of the same name.
        done = [work.result(3600) for work in [background(attack, field, part, tls) for part in parts]]
        until(lambda: field.server.files() <= files, "every connection is closed", TIMEOUT)
    took = time.monotonic() - start
    ends: Counter[str] = sum((one.ends for one in done), Counter())
    assert sum(ends.values()) == number
    assert ends["PROTOCOL"] > number / 10 and len(ends) > 4, f"too little was broken: {ends}"
    said = ", ".join(f"{count} {why}" for why, count in ends.most_common())
    print(
        f"\n{field.server.way}: {number} connections, {sum(one.frames for one in done)} frames, "
        f"{sum(one.mutated for one in done)} of them broken, in {took:.1f} s ({said}); {seen}"
    )


@pytest.mark.slow
def test_connections_that_only_come_and_go(field: Field, long: int) -> None:
    """Nothing said at all: closed, reset, or half a header."""
    number = 10_000 * long or 200
    files = field.server.files()
    with field.neighbours.watch() as seen:
        for n in range(number):
            with contextlib.suppress(ConnectionError), connect(field.address, tls=False, source=sources(n)) as line:
                if n % 3:
                    line.send(b"\x10\x00\x00"[: n % 4])
                if n % 2:
                    line.reset()
        until(lambda: field.server.files() <= files, "every connection is closed", TIMEOUT)
    print(f"\n{number} connections that said nothing; {seen}")


@pytest.mark.slow
def test_a_goodbye_is_not_answered(field: Field) -> None:
    """Least of all with a stranger's own words."""
    with connect(field.address, tls=False) as line:
        line.send(frame(Kind.GOAWAY, 0, bytes(7) + b"\x05words"))
        assert line.to_end()
        assert not line.heard


@pytest.mark.slow
def test_it_is_the_handshake_of_protocol_md(field: Field) -> None:
    """What the attackers know of it lets them in: with it they are refused for what they then do."""
    with attacker(field.address, field.token, "honest") as line:
        assert line.alive()
        line.sock.shutdown(socket.SHUT_WR)
        assert line.to_end() == "eof"
        assert line.goaway is None
