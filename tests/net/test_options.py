"""Socket options: what is asked for is what the system says back, and nothing fails where it is not to be had."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastrelay.net import options
from fastrelay.net.listen import listen
from fastrelay.net.options import LINGER_OFF, LINGER_RESET, disorder, limit_unsent, linger, tune_tunnel, unpace
from fastrelay.wire import UNACKED_TIME
from tests.support.tunnel import tcp_pair

LOOPBACK = ("127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1")
ELSEWHERE = ("192.0.2.1", "0.0.0.0", "::", "2001:db8::1", "::ffff:192.0.2.1", "12.7.0.1")


def congestion(sock: socket.socket) -> bytes:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.socket() as one:
        yield one


@pytest.fixture
def joined() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, two = tcp_pair()
    with one, two:
        yield one, two


@pytest.fixture
def local() -> Iterator[socket.socket]:
    """A socket that has no TCP options at all."""
    with socket.socket(socket.AF_UNIX) as one:
        yield one


# --- pacing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", LOOPBACK)
def test_within_a_machine_nothing_is_paced(monkeypatch: pytest.MonkeyPatch, sock: socket.socket, host: str) -> None:
    monkeypatch.setattr(options, "_paced", lambda: True)
    unpace(sock, (host, 80))
    assert congestion(sock) == b"reno"


@pytest.mark.parametrize("host", ELSEWHERE)
def test_on_a_path_the_system_decides(monkeypatch: pytest.MonkeyPatch, sock: socket.socket, host: str) -> None:
    monkeypatch.setattr(options, "_paced", lambda: True)
    before = congestion(sock)
    unpace(sock, (host, 80))
    assert congestion(sock) == before


def test_what_is_not_paced_stays_as_it_is(monkeypatch: pytest.MonkeyPatch, sock: socket.socket) -> None:
    monkeypatch.setattr(options, "_paced", lambda: False)
    before = congestion(sock)
    unpace(sock, ("127.0.0.1", 80))
    assert congestion(sock) == before


@pytest.mark.parametrize("address", ["", "/run/target.sock", None, b"\0abstract"])
def test_what_has_no_host_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, sock: socket.socket, local: socket.socket, address: object
) -> None:
    monkeypatch.setattr(options, "_paced", lambda: True)
    before = congestion(sock)
    unpace(sock, address)
    unpace(local, address)
    assert congestion(sock) == before


def test_connections_inherit_it_from_their_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "_paced", lambda: True)
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        listener.setblocking(True)
        accepted, _ = listener.accept()
        with accepted:
            assert congestion(accepted) == b"reno"


def test_the_system_is_asked_once() -> None:
    default = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text(encoding="ascii")
    options._paced.cache_clear()
    assert options._paced() is default.startswith("bbr")
    options._paced()
    assert options._paced.cache_info().hits == 1


# --- ends --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", [LINGER_RESET, LINGER_OFF], ids=["reset", "off"])
def test_how_a_connection_ends(joined: tuple[socket.socket, socket.socket], option: bytes) -> None:
    one, two = joined
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
    linger(one.fileno(), option)
    assert one.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == option, "and it is still open"
    one.close()
    two.setblocking(True)
    if option == LINGER_OFF:
        assert two.recv(1) == b""
    else:
        with pytest.raises(ConnectionResetError):
            two.recv(1)


def test_how_what_is_gone_ends_is_nobodys_business(local: socket.socket) -> None:
    linger(local.fileno(), LINGER_RESET)
    assert local.fileno() >= 0
    with socket.socket() as gone:
        number = gone.fileno()
    linger(number, LINGER_RESET)


# --- limits and figures ------------------------------------------------------------------------------------------------


def test_a_tunnel_is_given_up_when_nobody_answers(sock: socket.socket) -> None:
    tune_tunnel(sock)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == UNACKED_TIME * 1000


@pytest.mark.parametrize("size", [1, 16_384, 262_144, 8_388_608])
def test_the_limit_of_what_is_unsent(sock: socket.socket, size: int) -> None:
    limit_unsent(sock.fileno(), size)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == size


def test_nothing_is_out_of_order_on_loopback(joined: tuple[socket.socket, socket.socket]) -> None:
    one, two = joined
    for sock in joined:
        packets = disorder(sock.fileno())
        assert type(packets) is int and packets == 0
    one.setblocking(True)
    for _ in range(20):
        one.sendall(bytes(10_000))
        two.recv(20_000)
    assert disorder(two.fileno()) == 0


class Kernel:
    """A socket of a system whose struct tcp_info has `size` bytes: each word holds its own number."""

    def __init__(self, size: int) -> None:
        self.info = b"".join(struct.pack("=I", number) for number in range(size // 4))

    def __call__(self, family: int, kind: int, protocol: int, fd: int) -> Kernel:
        return self

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert (level, option) == (socket.IPPROTO_TCP, socket.TCP_INFO)
        return self.info[:size]

    def detach(self) -> None:
        """Nothing to close."""


@pytest.mark.parametrize(("size", "packets"), [(104, 0), (224, 0), (228, 56), (232, 56), (280, 56)])
def test_the_figure_is_where_linux_has_it(monkeypatch: pytest.MonkeyPatch, size: int, packets: int) -> None:
    """Behind 224 bytes since 5.5; older systems say less."""
    monkeypatch.setattr(options, "_Socket", Kernel(size))
    assert disorder(0) == packets


def test_options_that_are_not_to_be_had_are_done_without(monkeypatch: pytest.MonkeyPatch, local: socket.socket) -> None:
    monkeypatch.setattr(options, "_paced", lambda: True)
    tune_tunnel(local)
    limit_unsent(local.fileno(), 16_384)
    unpace(local, ("127.0.0.1", 80))
    assert disorder(local.fileno()) == 0


@pytest.mark.parametrize("name", ["TCP_USER_TIMEOUT", "TCP_NOTSENT_LOWAT", "TCP_INFO", "TCP_CONGESTION"])
def test_so_are_options_that_python_does_not_know(
    monkeypatch: pytest.MonkeyPatch, sock: socket.socket, name: str
) -> None:
    monkeypatch.delattr(socket, name)
    options._paced.cache_clear()
    tune_tunnel(sock)
    limit_unsent(sock.fileno(), 16_384)
    unpace(sock, ("127.0.0.1", 80))
    assert disorder(sock.fileno()) == 0
    options._paced.cache_clear()


def test_how_many_wait_in_the_backlog() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=10) as listener:
        waiting = [socket.create_connection(listener.getsockname()) for _ in range(3)]
        assert options.queued(listener.fileno()) == 3
        listener.accept()[0].close()
        assert options.queued(listener.fileno()) == 2
        for sock in waiting:
            sock.close()
    assert options.queued(0) == 0, "no socket"
