"""Socket options, each with its reason. None of them is owed: where a system lacks one, connections work without it."""

from __future__ import annotations

import fcntl
import functools
import select
import socket
import struct
import termios
from collections.abc import Callable
from typing import TypeVar

from fastrelay.wire import UNACKED_TIME

T = TypeVar("T")
_Socket = socket.SocketType  # the bare type

LINGER_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing the socket, by the death of its process too, sends RST."""
LINGER_OFF = struct.pack("ii", 0, 0)

_BACKLOG = struct.Struct("=24xI")
"""tcpi_unacked in Linux' struct tcp_info, which is the length of the backlog where a socket listens."""
_OUT_OF_ORDER = struct.Struct("=224xI")
"""tcpi_rcv_ooopack in Linux' struct tcp_info."""


def tune_tunnel(sock: socket.socket) -> None:
    """TCP_USER_TIMEOUT belongs on tunnels and never on a visitor: it ends peers that merely do not read."""
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKED_TIME * 1000)
    except (OSError, AttributeError):
        pass  # not Linux


def limit_unsent(fd: int, size: int) -> None:
    """TCP_NOTSENT_LOWAT: the socket counts as full with so many bytes that the kernel has not sent yet."""
    _lend(fd, lambda sock: sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, size))


def disorder(fd: int) -> int:
    """How many packets have arrived out of order so far, which tells of losses before them; 0 where the system does not say."""
    info = _lend(fd, lambda sock: sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _OUT_OF_ORDER.size))
    if info is None or len(info) < _OUT_OF_ORDER.size:
        return 0  # not Linux, or older than 5.5
    return int(_OUT_OF_ORDER.unpack(info)[0])


def queued(fd: int) -> int:
    """How many connections wait in the backlog of a listening socket; 0 where the system does not say."""
    info = _lend(fd, lambda sock: sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BACKLOG.size))
    return 0 if info is None or len(info) < _BACKLOG.size else int(_BACKLOG.unpack(info)[0])


def unacknowledged(fd: int) -> int:
    """Bytes in a socket's send queue."""
    try:
        return int.from_bytes(fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)), "little")
    except OSError:
        return 0


def linger(fd: int, option: bytes) -> None:
    """Set SO_LINGER; a unix socket, or a connection that is already gone, keeps what it has."""
    _lend(fd, lambda sock: sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option))


def _lend(fd: int, use: Callable[[_Socket], T]) -> T | None:
    """`use` the descriptor as a socket; None where the system refuses.

    By way of the bare type: the socket that uvloop lends makes a new `socket.socket` for every call, which asks the kernel three times
    what it is.
    """
    try:
        sock = _Socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, fd)
    except OSError:
        return None
    try:
        return use(sock)
    except (OSError, AttributeError):
        return None
    finally:
        sock.detach()


def unpace(sock: socket.socket, address: object) -> None:
    """Send without pacing if `address`, where the socket is bound or what it talks to, is a loopback address.

    Pacing protects queues on a path, and within a machine there is none: where bbr is the default, its timers took 30 % of the CPU of a
    bulk stream. What a listener has, the connections that it accepts inherit.
    """
    if (
        isinstance(address, tuple)
        and (str(address[0]).startswith(("127.", "::ffff:127.")) or address[0] == "::1")
        and _paced()
    ):
        try:
            sock.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno"
            )  # which every kernel has and every user may set
        except OSError:
            pass


@functools.cache
def _paced() -> bool:
    """Whether this system's connections are paced unless they ask not to be."""
    try:
        with socket.socket() as sock:
            return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").startswith(b"bbr")
    except (OSError, AttributeError):
        return False


def wake_at(sock: socket.socket, size: int) -> None:
    """SO_RCVLOWAT: it is readable with so many bytes, or when it has ended, and not before."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)


def hung_up(sock: socket.socket) -> bool:
    """Whether the other side has closed the connection, whatever it said before."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))
