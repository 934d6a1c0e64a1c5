"""Listening sockets, and the door for tunnels, where TLS begins before anything else is said."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import socket
import ssl
import time
from collections.abc import Callable
from typing import Protocol

from fastrelay.errors import Code, ProtocolError, RefusedError
from fastrelay.limits import Limits
from fastrelay.net.balancers import Address, Balancers, Renamed
from fastrelay.net.gate import End, Gate, Reached, Stranger, source_of
from fastrelay.net.heads import forwarded_for, head_size
from fastrelay.net.link import Link, address
from fastrelay.net.options import LINGER_RESET, hung_up, unpace, wake_at
from fastrelay.net.runtime import Runtime
from fastrelay.net.tally import PERIOD, Tally
from fastrelay.networks import Networks
from fastrelay.wire import GOODBYE_TIME, MAX_HEAD

BACKLOG = 65_535
"""As much as the system allows (net.core.somaxconn, usually 4096): with the usual 100, a stall of 0.4 s loses two thirds of 1,000 visitors."""
_ACCEPTS_PER_TURN = 8
"""Fewer than a source may have: a crowd must not push out in one turn those who were about to get through."""
_COME_BACK = 0.1
"""Seconds until the next try when no descriptor was left."""
_RECORD_HEAD = 5
_HANDSHAKE = b"\x16"
_CLIENT_HELLO = 1
_LINES_PER_SOURCE = 10
"""Refusals of one source that get a line of their own in a period; the others are counted."""


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket on `host` and `port` (0: any); "::" takes IPv4 as well. Raises OSError.

    Connections that it accepts are reset when the process dies (SO_LINGER is inherited).
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if host == "::" and not socket.has_dualstack_ipv6():
        family, host = socket.AF_INET, "0.0.0.0"
    address = socket.getaddrinfo(host, port, family if ":" in host else 0, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)[0]
    sock = socket.socket(address[0], socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        unpace(sock, address[4])
        if address[0] == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
        sock.bind(address[4])
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


class Porter(Protocol):
    """Whom a tunnel door tells what happened to strangers; it is not told more often than a log can bear."""

    def refused(self, who: str, error: Exception | None, first: bytes) -> None:
        """A connection did not become a session; `first` is what it said first, as far as that is known."""

    def limited(self, limit: str, source: str, count: int) -> None:
        """A limit on strangers was reached, or, with `count`, was so often since that was said last; `source` "" stands for several."""

    def refused_more(self, source: str, count: int) -> None:
        """So many more of a source were refused; `source` "" stands for several."""


class Knock(Stranger):
    """A connection to the tunnel port, until it is admitted or closed."""

    __slots__ = ("address", "behind", "link", "lowat", "reading", "sock", "stands", "timer")

    timer: asyncio.TimerHandle

    def __init__(self, sock: socket.socket, who: Address, behind: bool) -> None:
        super().__init__(source_of(str(who[0])))
        self.sock = sock
        self.address = address(who)
        self.behind = who if behind else None  # whom a load balancer has named
        self.link: Link | None = None
        self.reading = False  # the loop tells when there is more to read
        self.lowat = 1  # that is so many bytes
        self.stands = False  # TLS included: from now on the link closes it


Others = Callable[[bytes, socket.socket, Address | None], bool]
"""Whether it takes a connection from here; asked with its ClientHello, or its head behind a proxy, none of which is read, and with whom a load
balancer has named."""


class TunnelDoor:
    """Where clients connect. Nothing is begun for a connection before its ClientHello is there and it is its turn (`net.gate`): one in TLS
    costs many times as much as one that waits. Whoever made the door tells it when a link is admitted or has ended.
    """

    def __init__(
        self,
        runtime: Runtime,
        sock: socket.socket,
        context: ssl.SSLContext | None,
        make: Callable[[], Link],
        porter: Porter,
        limits: Limits,
        balancers: Networks | None = None,
        proxied: bool = False,
    ) -> None:
        """Connections from `balancers` begin with a PROXY header. `proxied`: a proxy in front ends TLS, and says in HTTP whose they are."""
        self._runtime = runtime
        self._balancers = None if balancers is None else Balancers(runtime, balancers)
        self._sock = sock
        self._proxied = proxied
        self.others: Others | None = None
        """Who may take a connection that is not for a tunnel."""
        self.context = context
        """For handshakes from now on; those that have begun go on with the one they have."""
        self._make = make
        self._porter = porter
        self.gate: Gate[Knock] = Gate(limits)
        self._links: dict[Link, Knock] = {}
        self._tally = Tally()
        self._sum_up: asyncio.TimerHandle | None = None
        self._turn: asyncio.TimerHandle | None = None
        self._turn_at = float("inf")
        self._held: set[Knock] = set()  # not greeted yet
        runtime.loop.add_reader(sock.fileno(), self._accept)

    @property
    def port(self) -> int:
        return int(self._sock.getsockname()[1])

    def close(self) -> None:
        """Nobody comes in any more, and those who wait are closed; those who are being greeted go on."""
        if self._sock.fileno() >= 0:
            self._runtime.loop.remove_reader(self._sock.fileno())
            self._sock.close()
        if self._balancers is not None:
            self._balancers.close()
        for knock in list(self._held):
            self._send_away(knock)
            self.gate.end(knock, End.UNFINISHED, time.monotonic())
        if self._turn is not None:
            self._turn.cancel()
        if self._sum_up is not None:
            self._sum_up.cancel()
            self._tell_sums()

    def admitted(self, link: Link) -> None:
        """A link's peer has proved who it is."""
        knock = self._links.pop(link)
        knock.timer.cancel()
        now = time.monotonic()
        self.gate.end(knock, End.ADMITTED, now)
        self._come_again(now)

    def ended(self, link: Link, error: Exception | None) -> None:
        """A link that was not admitted is gone."""
        knock = self._links.pop(link, None)
        if knock is not None:
            self._over(knock, error, _how(error), link.first_bytes)

    # --- before it is greeted ------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                sock, who = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    self._runtime.reached("files", "the tunnel port", self._runtime.files)
                else:
                    self._tell_refusal("", "", error, b"")
                self._pause()
                return
            sock.setblocking(False)
            if self._balancers is None:
                self._knock(sock, who, who)
            else:
                self._balancers.hear(sock, who, functools.partial(self._knock, sock, who))

    def _knock(self, sock: socket.socket, peer: Address, who: Address | None) -> None:
        """`who` is there, whose socket says `peer`; None for nobody."""
        if who is None:
            return
        knock = Knock(sock, who, behind=who is not peer)
        knock.timer = self._runtime.loop.call_later(self._runtime.limits.handshake_time, self._late, knock)
        goes = self.gate.arrive(knock, time.monotonic())
        self._held.add(knock)
        if goes is not None:
            self._send_away(goes)
        self._hear(knock)
        self._tell_news()

    def _pause(self) -> None:
        """No descriptor was left: come back in a moment instead of spinning."""
        loop, fd = self._runtime.loop, self._sock.fileno()
        loop.remove_reader(fd)

        def again() -> None:
            if self._sock.fileno() == fd:
                loop.add_reader(fd, self._accept)

        loop.call_later(_COME_BACK, again)

    def _hear(self, knock: Knock) -> None:
        """See whether it has said enough to be greeted; what it said stays where it is."""
        most = MAX_HEAD if self._proxied else self.gate.limits.max_client_hello
        error: Exception | None = None
        try:
            said = knock.sock.recv(_RECORD_HEAD + most, socket.MSG_PEEK)
            wanted = _client_hello(said, most) if self.context else head_size(said) if self._proxied else 1
            if len(said) >= wanted:
                self._stop_reading(knock)
                if self.others is not None and self.others(said, knock.sock, knock.behind):
                    self._part(knock)
                    return
                if self._proxied and (whose := forwarded_for(said)) is not None:
                    knock.address = whose
                    self.gate.known_as(knock, source_of(whose), time.monotonic())
                goes = self.gate.speak(knock, time.monotonic())
                if goes is not None:
                    self._send_away(goes)
                self._next(knock)
                return
            if said and not hung_up(knock.sock):
                self._read(knock, wanted)
                return
        except BlockingIOError:
            self._read(knock, 1)
            return
        except OSError as failure:
            error = failure
        except ProtocolError as failure:
            error = failure
            self._runtime.reached("max-client-hello", knock.source)
        self._send_away(knock)
        self._over(knock, error, End.UNFINISHED)

    def _part(self, knock: Knock) -> None:
        """It is another door's from now on."""
        knock.timer.cancel()
        self._held.discard(knock)
        now = time.monotonic()
        self.gate.end(knock, End.UNFINISHED, now)
        self._come_again(now)

    def _read(self, knock: Knock, wanted: int) -> None:
        """Be told when so much is there, not of every byte of it; or when it hangs up."""
        if knock.lowat != wanted:
            knock.lowat = wanted
            wake_at(knock.sock, wanted)
        if not knock.reading:
            knock.reading = True
            self._runtime.loop.add_reader(knock.sock.fileno(), self._hear, knock)

    def _stop_reading(self, knock: Knock) -> None:
        if knock.reading:
            knock.reading = False
            self._runtime.loop.remove_reader(knock.sock.fileno())
        if knock.lowat != 1:
            knock.lowat = 1
            with contextlib.suppress(OSError):
                wake_at(knock.sock, 1)

    def _next(self, fresh: Knock | None = None) -> None:
        """Greet those whose turn it is; `fresh` has spoken just now."""
        gate = self.gate
        now = time.monotonic()
        while (knock := gate.candidate(now)) is not None:
            if knock is not fresh and hung_up(knock.sock):  # it did not wait for its turn, which is then another's
                self._send_away(knock)
                self._over(knock, None, End.UNFINISHED)
                continue
            goes = gate.begin(knock, now)
            if goes is not None:
                self._send_away(goes)
            self._held.discard(knock)
            self._runtime.spawn(self._runtime.loop.create_task(self._greet(knock)))
        self._come_again(now)

    def _come_again(self, now: float) -> None:
        """Greet the next ones as soon as it is their turn."""
        due = self.gate.due(now)
        if due is not None and now + due < self._turn_at:
            if self._turn is not None:
                self._turn.cancel()
            self._turn_at = now + due
            self._turn = self._runtime.loop.call_later(due, self._next_turn)

    def _next_turn(self) -> None:
        self._turn_at = float("inf")
        self._next()
        self._tell_news()

    # --- while it is greeted -------------------------------------------------------------------------------------------

    async def _greet(self, knock: Knock) -> None:
        def link() -> asyncio.BaseProtocol:
            knock.link = made = self._make()
            self._links[made] = knock
            return made if knock.behind is None else Renamed(made, knock.behind)

        sock, context = knock.sock, self.context
        try:
            with contextlib.suppress(OSError):
                # SO_LINGER of the listener is for visitors: a tunnel's GOAWAY must not be cut off by a reset.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(8))
            patience = self._runtime.limits.handshake_time
            timeouts = {"ssl_handshake_timeout": patience, "ssl_shutdown_timeout": GOODBYE_TIME} if context else {}
            await self._runtime.loop.connect_accepted_socket(link, sock, ssl=context, **timeouts)
            knock.stands = True
        except asyncio.CancelledError:
            knock.timer.cancel()
            raise
        except (OSError, ssl.SSLError, TimeoutError) as error:
            sock.close()
            if knock.link is not None:
                self._links.pop(knock.link, None)
            self._over(knock, error, End.UNFINISHED)

    def _late(self, knock: Knock) -> None:
        """Its time is over, whatever it has done with it."""
        self._runtime.reached("handshake-time", knock.source)
        if knock.stands and knock.link is not None:
            knock.link.too_slow()  # which says so, and tells us when it has ended
            return
        self._send_away(knock)
        self._over(knock, TimeoutError(), End.SLOW)

    # --- the end -------------------------------------------------------------------------------------------------------

    def _send_away(self, knock: Knock) -> None:
        """Close it, in whatever state it is."""
        knock.timer.cancel()
        self._stop_reading(knock)
        if knock in self._held:
            self._held.discard(knock)
            knock.sock.close()
        elif knock.stands and knock.link is not None:
            knock.link.abort(ConnectionAbortedError("others came while it was silent"))
        else:  # in TLS: a handshake ends cleanly only by itself, on the end of its input
            with contextlib.suppress(OSError):
                knock.sock.shutdown(socket.SHUT_RDWR)

    def _over(self, knock: Knock, error: Exception | None, how: End, first: bytes = b"") -> None:
        knock.timer.cancel()
        if knock.gone:
            return
        now = time.monotonic()
        self.gate.end(knock, how, now)
        self._come_again(now)
        self._tell_refusal(knock.source, knock.address, error, first)
        self._tell_news()

    # --- what is told --------------------------------------------------------------------------------------------------

    def _tell_refusal(self, source: str, who: str, error: Exception | None, first: bytes) -> None:
        if self._tell("", source, _LINES_PER_SOURCE):
            self._porter.refused(who, error, first)

    def _tell_news(self) -> None:
        news = self.gate.news
        for what, who in news:
            source = "" if what is Reached.ALL else who  # of all, it matters that it is reached, not by whom
            if self._tell(what.value, source, 1):
                self._porter.limited(what.value, source, 0)
        news.clear()

    def _tell(self, what: str, source: str, first: int) -> bool:
        if self._sock.fileno() < 0:
            return False  # the end of the relay is no refusal
        if self._sum_up is None:
            self._sum_up = self._runtime.loop.call_later(PERIOD, self._tell_sums)
        return self._tally.tell(what, source, first)

    def _tell_sums(self) -> None:
        self._sum_up = None
        for what, source, count in self._tally.sums():
            if what:
                self._porter.limited(what, source, count)
            else:
                self._porter.refused_more(source, count)


def _how(error: Exception | None) -> End:
    """How a link ended that was not admitted. What the other side says itself of the reason counts for nothing."""
    if isinstance(error, ProtocolError) and not isinstance(error, RefusedError):
        if error.code is Code.UNAUTHORIZED:
            return End.REFUSED
        if error.code is Code.TIMEOUT:
            return End.SLOW
    return End.UNFINISHED


def _client_hello(said: bytes, most: int) -> int:
    """How many bytes must be there, when these are, for TLS to begin: a whole ClientHello (RFC 8446, 4.1.2 and 5.1), and of what is none, a byte.

    Raises ProtocolError if it is in pieces or in a record above `most` bytes. TLS itself would take up to 128 KiB, and keep them three times.
    """
    if said[:1] != _HANDSHAKE:
        return 1
    if len(said) < _RECORD_HEAD + 4:
        return _RECORD_HEAD + 4
    record, kind, length = int.from_bytes(said[3:5]), said[5], int.from_bytes(said[6:9])
    if kind != _CLIENT_HELLO:
        return 1
    if record > most or record < 4 + length:
        raise ProtocolError(Code.FRAME_SIZE, f"its ClientHello is not one record of at most {most} bytes")
    return _RECORD_HEAD + record
