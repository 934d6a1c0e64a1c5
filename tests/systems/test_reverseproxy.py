"""Go's net/http/httputil.ReverseProxy: what happens to Upgrade (golang/go#35892), rule by rule, and what a reverse proxy is trusted with besides.

Real processes, and raw sockets at both ends.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.support import peers
from tests.support.payload import Checker, Keystream
from tests.support.peers import End, background, read_to_end, send_and_end
from tests.support.web import DOMAIN, Web, head, request, switched, upgrade

MIB = 1 << 20


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with Web(tmp_path_factory.mktemp("web")) as one:
        yield one


def joined(web: Web, tls: bool = False) -> tuple[socket.socket, socket.socket]:
    """Visitor and target behind a 101."""
    visitor = web.visitor(tls)
    visitor.sendall(upgrade())
    target = web.target()
    head(target)
    target.sendall(switched())
    assert head(visitor).startswith(b"HTTP/1.1 101 ")
    return visitor, target


def crosses(source: socket.socket, sink: socket.socket, size: int) -> None:
    """`size` bytes and a clean end go from one to the other."""
    checker = Checker(size)
    sending = background(send_and_end, source, Keystream(size), size)
    assert read_to_end(sink, checker) is End.EOF
    assert checker.received == size
    sending.result(peers.TIMEOUT)


# --- the six rules ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "answered", "status"),
    [
        ("websocket", "websocket", 101),
        ("WebSocket", "websocket", 101),
        ("websocket", "h2c", 502),
        ("websocket", "", 502),
        ("websocket", "web\xe4socket", 502),
    ],
)
def test_1_the_types_must_match_in_any_case(web: Web, asked: str, answered: str, status: int) -> None:
    with web.visitor() as visitor:
        visitor.sendall(upgrade(asked))
        with web.target() as target:
            assert f"\r\nUpgrade: {asked}\r\nConnection: upgrade\r\n".encode() in head(target)
            line = f"Upgrade: {answered}\r\n" if answered else ""
            target.sendall(f"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\n{line}\r\n".encode("latin-1"))
            assert head(visitor).startswith(b"HTTP/1.1 %d " % status)


def test_1_what_was_not_asked_for_is_not_switched_to(web: Web) -> None:
    with web.visitor() as visitor:
        visitor.sendall(request())
        with web.target() as target:
            head(target)
            target.sendall(switched())
            assert head(visitor).startswith(b"HTTP/1.1 502 ")


def test_2_a_visitor_that_gives_up_closes_the_target(web: Web) -> None:
    """While the answer is awaited, by a reset: an end may only mean that it has nothing more to say."""
    with web.visitor() as visitor:
        visitor.sendall(upgrade())
        with web.target() as target:
            head(target)
            peers.reset(visitor)
            assert peers.hang_up(target)


def test_3_the_head_is_passed_on_and_bytes_behind_either_head_are(web: Web) -> None:
    with web.visitor() as visitor:
        visitor.sendall(upgrade() + b"early bird")
        with web.target() as target:
            head(target)
            target.sendall(
                b"HTTP/1.1 101 Here we go\r\nConnection: Upgrade, X-Hop\r\nX-Hop: 1\r\nUpgrade: echo/1\r\nX-End: 2\r\n\r\nfirst words"
            )
            assert head(visitor) == (
                b"HTTP/1.1 101 Here we go\r\nX-End: 2\r\nUpgrade: echo/1\r\nConnection: upgrade\r\n\r\n"
            )
            assert peers.exactly(visitor, 11) == b"first words"
            assert peers.exactly(target, 10) == b"early bird"


@pytest.mark.parametrize("size", [0, 65_536, 4 * MIB])
@pytest.mark.parametrize("first", ["visitor", "target"])
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_4_an_end_of_one_direction_leaves_the_other_running(web: Web, first: str, size: int, tls: bool) -> None:
    visitor, target = joined(web, tls)
    with visitor, target:
        ends = (visitor, target) if first == "visitor" else (target, visitor)
        crosses(*ends, size)
        crosses(ends[1], ends[0], size)


@pytest.mark.parametrize("first", ["visitor", "target"])
@pytest.mark.parametrize("size", [0, 65_536])
def test_5_an_error_ends_both(web: Web, first: str, size: int) -> None:
    visitor, target = joined(web)
    one, two = (visitor, target) if first == "visitor" else (target, visitor)
    with one, two:
        peers.send(one, Keystream(size), size)
        peers.handed_over(one)
        peers.reset(one)
        received = Checker(size)
        assert read_to_end(two, received) is End.RESET
        assert received.received == size


def test_6_no_http_error_ever_after_the_101(web: Web) -> None:
    visitor, target = joined(web)
    with visitor:
        target.sendall(b"half a sen")
        peers.handed_over(target)
        peers.reset(target)
        assert peers.exactly(visitor, 10) == b"half a sen"
        with pytest.raises(ConnectionResetError):
            visitor.recv(1)


def test_6_a_refused_upgrade_is_an_answer_like_any_other(web: Web) -> None:
    with web.visitor() as visitor:
        visitor.sendall(upgrade() + request("/next"))
        with web.target() as target:
            head(target)
            target.sendall(b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno")
            assert head(visitor).startswith(b"HTTP/1.1 403 No\r\n") and peers.exactly(visitor, 2) == b"no"
            assert head(target).startswith(b"GET /next ")
            target.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            assert head(visitor).startswith(b"HTTP/1.1 204 ")


# --- what else a reverse proxy does -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_who_asks_is_said_and_what_is_of_one_hop_is_not(web: Web, tls: bool) -> None:
    with web.visitor(tls) as visitor:
        fields = (
            "Connection: keep-alive, x-own",
            "X-Own: 1",
            "Keep-Alive: 9",
            "TE: trailers, gzip",
            "X-Forwarded-For: 10.0.0.1",
            "X-Forwarded-Host: bank.example",
            "Forwarded: for=x",
            "Cookie: a=b",
        )
        visitor.sendall(request("/x?y", *fields))
        with web.target() as target:
            scheme = "https" if tls else "http"
            assert head(target).decode() == (
                f"GET /x?y HTTP/1.1\r\nHost: web.{DOMAIN}\r\nCookie: a=b\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Host: web.{DOMAIN}\r\n"
                f"X-Forwarded-Proto: {scheme}\r\nForwarded: for=127.0.0.1;host=web.{DOMAIN};proto={scheme}\r\nTE: trailers\r\n\r\n"
            )
            target.sendall(b"HTTP/1.1 204 No Content\r\nKeep-Alive: 5\r\nX-End: 1\r\n\r\n")
            assert head(visitor) == b"HTTP/1.1 204 No Content\r\nX-End: 1\r\n\r\n"


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_keep_alive_and_pipelining(web: Web, tls: bool) -> None:
    with web.visitor(tls) as visitor:
        visitor.sendall(request("/1") + request("/2"))
        with web.target() as target:
            for number in (1, 2):
                assert head(target).startswith(b"GET /%d " % number)
            target.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n2"
            )
            for number in b"12":
                head(visitor)
                assert visitor.recv(1)[0] == number
            visitor.sendall(request("/3"))
            assert head(target).startswith(b"GET /3 ")
            target.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            assert head(visitor).startswith(b"HTTP/1.1 204 ")


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_bodies_pass_as_they_come(web: Web, tls: bool) -> None:
    """A byte of a body is there before the next is sent, in both directions."""
    with web.visitor(tls) as visitor:
        visitor.sendall(request("/", "Content-Length: 3", method="POST"))
        with web.target() as target:
            head(target)
            for byte in b"abc":
                visitor.sendall(bytes([byte]))
                assert target.recv(9) == bytes([byte])
            target.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            head(visitor)
            for chunk in (b"1\r\nx\r\n", b"2;ext\r\nyz\r\n", b"0\r\nT: 1\r\n\r\n"):
                target.sendall(chunk)
                assert peers.exactly(visitor, len(chunk)) == chunk


@pytest.mark.parametrize("direction", ["down", "up"])
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_large_bodies_are_not_kept(web: Web, direction: str, tls: bool, long: int) -> None:
    """What the one side has sent, while the other reads nothing, is bounded by windows and sockets; and then all of it arrives."""
    size = (100 if long else 24) * MIB
    before = web.server.rss(), web.client.rss()
    with web.visitor(tls) as visitor:
        visitor.sendall(request("/", *([f"Content-Length: {size}"] if direction == "up" else []), method="POST"))
        with web.target() as target:
            head(target)
            source, sink = (visitor, target) if direction == "up" else (target, visitor)
            if direction == "down":
                target.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
                head(visitor)
            sending = background(peers.send, source, Keystream(direction), size)
            checker = Checker(direction)
            peers.read(sink, checker, MIB)
            assert not sending.done()
            peers.read(sink, checker, size - MIB)
            sending.result(peers.TIMEOUT)
    grown = [(after - old) / 1024 for after, old in zip((web.server.rss(), web.client.rss()), before, strict=True)]
    assert max(grown) < 16, f"{grown} MiB more for a body of {size // MIB} MiB"
