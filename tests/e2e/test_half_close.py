"""The four half-close cases of Go's CL 637939 (golang/go#35892), on raw sockets at both ends.

"server" is the target and "client" the visitor, as there. Closing the *read* side says nothing to the peer: the other direction must go on
as if nothing had happened. Closing the *write* side is an EOF at the peer, behind every byte, and the other direction goes on.

With FASTRELAY_TEST_DIRECT=1 the visitor is connected to the target itself, and the same must hold.
"""

from __future__ import annotations

import select
import socket
import time

import pytest

from tests.support.payload import Checker, Keystream
from tests.support.peers import TIMEOUT, End, background, read_to_end, reset, send_and_end
from tests.support.processes import Link

KIB = 1024
MIB = 1024 * KIB
SIZES = [0, 1, 64 * KIB, MIB, 16 * MIB, 64 * MIB]


def crosses(source: socket.socket, sink: socket.socket, seed: object, size: int) -> None:
    """`size` bytes and a clean end go from one end to the other, every byte right."""
    checker = Checker(seed)
    sending = background(send_and_end, source, Keystream(seed), size)
    assert read_to_end(sink, checker) is End.EOF
    assert checker.received == size
    sending.result(TIMEOUT)


def quiet(sock: socket.socket) -> bool:
    """Nothing has arrived: no byte, no end."""
    return not select.select([sock], [], [], 0)[0]


@pytest.mark.parametrize("size", SIZES)
def test_server_close_read(link: Link, size: int) -> None:
    with link.pair() as pair:
        pair.target.shutdown(socket.SHUT_RD)
        crosses(pair.target, pair.visitor, "answer", size)
        crosses_nothing(pair.visitor)


@pytest.mark.parametrize("size", SIZES)
def test_server_close_write(link: Link, size: int) -> None:
    with link.pair() as pair:
        crosses(pair.target, pair.visitor, "answer", size)
        assert quiet(pair.target)
        crosses(pair.visitor, pair.target, "request", size)


@pytest.mark.parametrize("size", SIZES)
def test_client_close_read(link: Link, size: int) -> None:
    with link.pair() as pair:
        pair.visitor.shutdown(socket.SHUT_RD)
        crosses(pair.visitor, pair.target, "request", size)
        crosses_nothing(pair.target)


@pytest.mark.parametrize("size", SIZES)
def test_client_close_write(link: Link, size: int) -> None:
    with link.pair() as pair:
        crosses(pair.visitor, pair.target, "request", size)
        assert quiet(pair.visitor)
        crosses(pair.target, pair.visitor, "answer", size)


def crosses_nothing(sock: socket.socket) -> None:
    """This end can still end its direction in order, though nobody reads there any more."""
    sock.shutdown(socket.SHUT_WR)


def test_both_directions_at_once(link: Link) -> None:
    """Two uploads that cross, each with its own end."""
    with link.pair() as pair:
        size = 4 * MIB + 12_345
        other = background(crosses, pair.target, pair.visitor, "answer", size)
        crosses(pair.visitor, pair.target, "request", size)
        other.result(TIMEOUT)


@pytest.mark.parametrize("toward", ["target", "visitor"])
def test_end_behind_a_reader_that_waits(link: Link, toward: str) -> None:
    """The end waits behind 50 MB for as long as the reader likes, and comes after the last byte."""
    size = 50_000_000
    with link.pair() as pair:
        source, sink = (pair.visitor, pair.target) if toward == "target" else (pair.target, pair.visitor)
        sending = background(send_and_end, source, Keystream("behind"), size)
        time.sleep(0.5)
        assert not sending.done()
        checker = Checker("behind")
        assert read_to_end(sink, checker) is End.EOF
        assert checker.received == size
        sending.result(TIMEOUT)


def test_visitor_that_leaves_without_a_word(link: Link) -> None:
    """Connect and close: a clean end at the target, and no harm."""
    for _ in range(20):
        with link.pair() as pair:
            pair.visitor.close()
            assert pair.target.recv(1) == b""
    with link.pair() as pair:
        reset(pair.visitor)
    with link.pair() as pair:
        crosses(pair.visitor, pair.target, "after", 1000)
        crosses(pair.target, pair.visitor, "after", 1000)
