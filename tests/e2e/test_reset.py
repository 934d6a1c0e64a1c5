"""A reset is a reset at the other end, behind the bytes that came before it; and what is cut never looks like a clean end.

With FASTRELAY_TEST_DIRECT=1 the visitor is connected to the target itself, and the same must hold.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.conftest import SPREAD
from tests.support import need
from tests.support.payload import Checker, Keystream
from tests.support.peers import (
    TIMEOUT,
    End,
    Pump,
    accept,
    background,
    exactly,
    handed_over,
    hang_up,
    knock,
    read_to_end,
    reset,
    send,
    send_for_ever,
    until,
)
from tests.support.processes import DIRECT, Link, Pair, Relay, Way

AT_ONCE = 1.0  # seconds; nothing is in the way of the reset
AFTER_DRAIN = 6.0  # two drains of 2 s, one in each process (protocol.md 9.1, 9.2)
FROM = ["visitor", "target"]


def ends(pair: Pair, who: str) -> tuple[socket.socket, socket.socket]:
    """The end that resets and the one that is told."""
    return (pair.visitor, pair.target) if who == "visitor" else (pair.target, pair.visitor)


def error_of(sock: socket.socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


@pytest.mark.parametrize("who", FROM)
def test_idle(link: Link, who: str) -> None:
    for _ in range(20):
        with link.pair() as pair:
            this, other = ends(pair, who)
            reset(this)
            assert hang_up(other, AT_ONCE)
            with pytest.raises(ConnectionResetError):
                other.recv(1)


@pytest.mark.parametrize("who", FROM)
@pytest.mark.parametrize("size", [1, 1000, 1_000_000])
def test_behind_data(link: Link, who: str, size: int) -> None:
    """Every byte that the kernel had taken before the reset arrives before it."""
    with link.pair() as pair:
        this, other = ends(pair, who)
        checker = Checker("before")
        reading = background(read_to_end, other, checker)
        send(this, Keystream("before"), size)
        handed_over(this)
        reset(this)
        assert reading.result(TIMEOUT) is End.RESET
        assert checker.received == size


@pytest.mark.parametrize("who", FROM)
def test_behind_data_that_is_read_late(link: Link, who: str) -> None:
    """The same with a reader that sleeps until the reset is there."""
    with link.pair() as pair:
        this, other = ends(pair, who)
        send(this, Keystream("late"), 50_000)
        handed_over(this)
        reset(this)
        assert hang_up(other, AFTER_DRAIN)
        checker = Checker("late")
        assert read_to_end(other, checker) is End.RESET
        assert checker.received == 50_000


@pytest.mark.parametrize("who", FROM)
def test_in_the_middle_of_a_flood(link: Link, who: str) -> None:
    """The one end floods and resets while the other reads: a right prefix, then the reset."""
    for turn in range(10):
        with link.pair() as pair:
            this, other = ends(pair, who)
            seed = ("flood", turn)
            checker = Checker(seed)
            reading = background(read_to_end, other, checker)
            send(this, Keystream(seed), 3_000_000)
            reset(this)
            assert reading.result(TIMEOUT) is End.RESET
            assert checker.received <= 3_000_000


@pytest.mark.parametrize("who", FROM)
def test_other_end_floods(link: Link, who: str) -> None:
    """The one end resets without reading what the other floods it with: the other's next send fails."""
    with link.pair() as pair:
        this, other = ends(pair, who)
        flooding = background(send_for_ever, other, Keystream("unread"))
        time.sleep(0.1)
        reset(this)
        assert isinstance(flooding.result(TIMEOUT), ConnectionError)


@pytest.mark.parametrize("way", SPREAD, indirect=True, ids=repr, scope="module")
def test_noticed_while_nobody_reads(link: Link) -> None:
    """One end floods until credit stops it and resets; the other end does not read, and is told all the same."""
    with link.pair() as first, link.pair() as second:  # both ways round at once, for it takes two drains
        floods = [ends(first, "visitor"), ends(second, "target")]
        with Pump([(this, Keystream("stuck")) for this, _ in floods]) as pump:
            until(pump.stuck, "the floods are stopped")
            sent = pump.sent
        for this, _ in floods:
            reset(this)
        for _, other in floods:
            assert hang_up(other, AFTER_DRAIN)
            checker = Checker("stuck")
            assert read_to_end(other, checker) is End.RESET
            assert 0 < checker.received <= sent


@pytest.mark.parametrize("who", FROM)
def test_flooded_end_resets_while_the_flood_is_stopped(link: Link, who: str) -> None:
    """The end that never read resets: the one whose flood stands still is told at once."""
    with link.pair() as pair:
        this, other = ends(pair, who)
        with Pump([(other, Keystream("stuck"))]) as pump:
            until(pump.stuck, "the flood is stopped")
        reset(this)
        assert hang_up(other, AT_ONCE)
        assert read_to_end(other, Checker("nothing")) is End.RESET


@pytest.mark.parametrize("who", FROM)
def test_after_its_own_end(link: Link, who: str) -> None:
    """An end that has ended its direction resets later: the other, which has seen the end, is told."""
    for _ in range(10):
        with link.pair() as pair:
            this, other = ends(pair, who)
            this.sendall(b"last words")
            this.shutdown(socket.SHUT_WR)
            assert exactly(other, 10) == b"last words"
            assert other.recv(1) == b""
            assert not hang_up(other, 0.02)
            reset(this)
            assert hang_up(other, AT_ONCE)
            assert error_of(other) in (errno.EPIPE, errno.ECONNRESET)


@pytest.mark.parametrize("who", FROM)
def test_after_the_other_end(link: Link, who: str) -> None:
    """An end whose peer has ended resets: the peer, which only waits for the answer, sees a reset and no end."""
    for _ in range(10):
        with link.pair() as pair:
            this, other = ends(pair, who)
            other.shutdown(socket.SHUT_WR)
            assert this.recv(1) == b""
            reset(this)
            assert read_to_end(other, Checker("nothing")) is End.RESET


@pytest.mark.parametrize("way_out", ["end", "words and end", "close", "words and close", "reset", "words and reset"])
def test_target_that_ends_at_once(link: Link, way_out: str) -> None:
    """A target that ends before the relay has told anybody that it is there: the visitor hears what it said, and how it ended."""
    words = b"no room" if "words" in way_out else b""
    for _ in range(50):
        with knock(link.address) as visitor, accept(link.listener) as target:
            target.sendall(words)
            if "reset" in way_out:
                handed_over(target)
                reset(target)
            elif "end" in way_out:
                target.shutdown(socket.SHUT_WR)
            else:
                target.close()
            heard, end = b"", End.EOF
            try:
                while piece := visitor.recv(100):
                    heard += piece
            except ConnectionResetError:
                end = End.RESET
            assert end is (End.RESET if "reset" in way_out else End.EOF)
            # As for any program, connect() itself may meet the reset, and then nobody could have read.
            assert heard == words or (end is End.RESET and not heard)


def test_visitor_that_resets_at_once(link: Link) -> None:
    """A visitor that speaks and resets while its target is only being joined: the target, which is there, hears it all the same."""
    for _ in range(100):
        with knock(link.address) as visitor, accept(link.listener) as target:
            visitor.sendall(b"never mind")
            handed_over(visitor)
            reset(visitor)
            assert exactly(target, 10) == b"never mind"
            assert read_to_end(target, Checker("nothing")) is End.RESET


# --- a target on a unix socket ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unix(way: Way, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    """A link whose target is a unix socket, which has no RST: an end with unread input is what comes closest."""
    home = tmp_path_factory.mktemp("unix")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(home / "target"))
        listener.listen()
        made = Link.__new__(Link)
        made.way, made.listener, made.relay = way, listener, None
        if DIRECT:
            need.missing("a visitor cannot reach a unix socket directly")
        made.relay = stack.enter_context(Relay(home, way, str(home / "target")))
        made.address = made.relay.addresses[0]
        yield made


def test_unix_target_ends(unix: Link) -> None:
    with unix.pair() as pair:
        send(pair.target, Keystream("unix"), 300_000)
        pair.target.close()
        checker = Checker("unix")
        assert read_to_end(pair.visitor, checker) is End.EOF
        assert checker.received == 300_000


def test_unix_target_ends_with_unread_input(unix: Link) -> None:
    with unix.pair() as pair:
        pair.visitor.sendall(b"a question")
        until(lambda: len(pair.target.recv(10, socket.MSG_PEEK)) == 10, "the question is there")
        send(pair.target, Keystream("unix"), 100_000)
        pair.target.close()
        checker = Checker("unix")
        assert read_to_end(pair.visitor, checker) is End.RESET
        assert checker.received == 100_000


def test_unix_target_of_a_visitor_that_resets(unix: Link) -> None:
    with unix.pair() as pair:
        pair.visitor.sendall(b"never mind")
        handed_over(pair.visitor)
        reset(pair.visitor)
        assert exactly(pair.target, 10) == b"never mind"
        assert hang_up(pair.target, AFTER_DRAIN)


# --- early answers ------------------------------------------------------------------------------------------------------


def early_answer(link: Link, turn: int) -> int:
    """The target answers without reading the request and closes; the visitor, still uploading, reads. How much it got."""
    size = 2_000_000
    with link.pair() as pair:
        uploading = background(send_for_ever, pair.visitor, Keystream(("request", turn)))
        checker = Checker(("answer", turn))
        reading = background(read_to_end, pair.visitor, checker)
        pair.target.recv(1)  # the upload has begun
        send(pair.target, Keystream(("answer", turn)), size)
        handed_over(pair.target)
        pair.target.close()  # with unread input: a reset
        reading.result(TIMEOUT)  # the end may be told to the upload instead
        assert isinstance(uploading.result(TIMEOUT), ConnectionError)
        return checker.received


def test_early_answer_arrives_whole(link: Link) -> None:
    times = 200
    got = [early_answer(link, turn) for turn in range(times)]
    whole = sum(size == 2_000_000 for size in got)
    print(f"\n{link.way}: {whole} of {times} early answers arrived whole, the smallest {min(got)} bytes")
    assert whole == times


# --- what is cut in the middle ------------------------------------------------------------------------------------------


def kill_server(link: Link) -> None:
    link.processes().server.kill()


def kill_client(link: Link) -> None:
    link.processes().client.kill()


def kill_tunnel(link: Link) -> None:
    ss = need.socket_kill()
    port = link.processes().server.address[1]
    subprocess.run([ss, "-K", "-t", "-n", "dport", "=", f":{port}"], check=True, capture_output=True, timeout=30)


@pytest.mark.parametrize("kill", [kill_server, kill_client, kill_tunnel])
def test_everything_on_a_lost_tunnel_is_reset(own_link: Link, kill: Callable[[Link], None]) -> None:
    """200 streams, some idle, some with data on the way, some half-closed, some flooding: all are reset, none ends cleanly."""
    with contextlib.ExitStack() as stack:
        own_link.processes()
        cut_200(own_link, kill, [stack.enter_context(own_link.pair()) for _ in range(200)])


def cut_200(link: Link, kill: Callable[[Link], None], pairs: list[Pair]) -> None:
    idle, answering, asking, ended = pairs[:80], pairs[80:120], pairs[120:160], pairs[160:180]
    floods = pairs[180:]
    for number, pair in enumerate(answering):
        send(pair.target, Keystream(("answer", number)), 30_000)
    for number, pair in enumerate(asking):
        send(pair.visitor, Keystream(("request", number)), 30_000)
    for pair in ended:
        pair.visitor.shutdown(socket.SHUT_WR)
        assert pair.target.recv(1) == b""
    with Pump([(pair.visitor, Keystream(("flood", number))) for number, pair in enumerate(floods)]) as pump:
        until(pump.stuck, "the floods are stopped")
        kill(link)
        start = time.monotonic()
        clean = 0
        for pair in pairs:
            for sock in (pair.visitor, pair.target):
                assert hang_up(sock, AFTER_DRAIN), "an end that was not told"
        told = time.monotonic() - start
    for number, pair in enumerate(answering):
        clean += read_to_end(pair.visitor, Checker(("answer", number))) is End.EOF
    for number, pair in enumerate(asking):
        clean += read_to_end(pair.target, Checker(("request", number))) is End.EOF
    for number, pair in enumerate(floods):
        clean += read_to_end(pair.target, Checker(("flood", number))) is End.EOF
    for pair in idle:
        clean += read_to_end(pair.visitor, Checker("idle")) is End.EOF
        clean += read_to_end(pair.target, Checker("idle")) is End.EOF
    for pair in ended:
        clean += read_to_end(pair.visitor, Checker("ended")) is End.EOF
        assert error_of(pair.target) in (errno.EPIPE, errno.ECONNRESET)
    print(f"\n{link.way}, {kill.__name__}: 200 streams cut, {clean} clean ends, all told after {told * 1000:.0f} ms")
    assert clean == 0
