"""A stream to a target through a client that dials it: found among those that may, waited for, and under TLS where that is asked for.

    Reaches ──▶ Reach ──open──▶ the least loaded client
                  │  denied, full, gone: the next one, or later again
                  └──ACCEPT──▶ TLS ──▶ found

Nothing is sent to a target before its client has accepted the stream, so a refusal costs nothing but time. Reaches wait each for itself.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from fastrelay.errors import Code
from fastrelay.mux.stream import NOTHING, Outlet, Stream
from fastrelay.net.tls import ends_count
from fastrelay.net.tls_stream import start_tls

if TYPE_CHECKING:
    from fastrelay.mux.session import Session
    from fastrelay.net.link import Link
    from fastrelay.net.runtime import Runtime

LOOK_EVERY: Final = 0.05
"""Seconds between two looks at whether a client has come, or has room again."""

_NOT_HERE: Final = frozenset((Code.DIAL_DENIED, Code.DIAL_FORBIDDEN, Code.NO_SERVICE))
"""This client does not dial that; another may."""
_NOT_NOW: Final = frozenset((Code.LIMIT, Code.SHUTDOWN, Code.CONNECTION_RESET))
"""This client takes no stream now; another may, or this one later."""


class Dialler(Protocol):
    """A client that is here."""

    link: Link
    session: Session

    def open_through(self, target: str, outlet: Outlet, visitor: str) -> Stream | None:
        """A stream to what the client is to dial; None when it takes no more."""


Found = Callable[[Stream, "Link"], None]
Failed = Callable[[Code, str], None]
"""Why there is no stream: AWAY without a client, LIMIT without room, else what the client has answered; and what TLS says, if it was that."""


@dataclass(frozen=True)
class Wanted:
    """`clients` are those that may be asked, as they are now; `tls` is the name that the target must have a certificate for, "" for no TLS;
    `wait` is for how many seconds a client is waited for. `opened` is told of each stream.
    """

    clients: Callable[[], Sequence[Dialler]]
    target: str
    tls: str
    wait: float
    opened: Callable[[Stream], None]


class Reaches:
    """All searches of one relay."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._context: ssl.SSLContext | None = None
        self._turn = 0
        self._waiting: dict[Reach, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def context(self) -> ssl.SSLContext:
        """For targets: the CAs of this machine decide."""
        if self._context is None:  # reading them takes a moment, which only who needs them spends
            self._context = ends_count(ssl.create_default_context())
            self._context.set_alpn_protocols(["http/1.1"])
        return self._context

    def in_turn(self, clients: Sequence[Dialler]) -> list[Dialler]:
        """The least loaded first; of equals another one each time."""
        self._turn += 1
        cut = self._turn % len(clients) if clients else 0
        return sorted((*clients[cut:], *clients[:cut]), key=lambda one: len(one.session.streams))

    def wait(self, reach: Reach) -> None:
        self._waiting[reach] = None
        if self._timer is None:
            self._timer = self.runtime.loop.call_later(LOOK_EVERY, self._look)

    def forget(self, reach: Reach) -> None:
        self._waiting.pop(reach, None)
        if not self._waiting and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        waiting, self._waiting = list(self._waiting), {}
        for reach in waiting:
            reach.look()


class Reach:
    """One search: `begin`, then `found` or `failed` is called once, unless `cancel` comes first. The outlet of a stream until it is accepted."""

    __slots__ = (
        "_busy",
        "_deadline",
        "_dialler",
        "_failed",
        "_found",
        "_give_up_tls",
        "_no",
        "_reaches",
        "_stream",
        "_visitor",
        "_wanted",
    )

    def __init__(self, reaches: Reaches, wanted: Wanted, visitor: str, found: Found, failed: Failed) -> None:
        self._reaches = reaches
        self._wanted = wanted
        self._visitor = visitor
        self._found = found
        self._failed = failed
        self._deadline = reaches.runtime.loop.time() + wanted.wait
        self._no: dict[Dialler, Code] = {}  # who said no, and why
        self._busy: set[Dialler] = set()  # who had no room since the last look
        self._dialler: Dialler | None = None
        self._stream: Stream | None = None
        self._give_up_tls: Callable[[], None] | None = None

    def look(self) -> None:
        """Ask a client, wait for one, or fail."""
        self._busy.clear()
        self._next()

    def cancel(self) -> None:
        """Nobody wants it any more."""
        self._reaches.forget(self)
        give_up, self._give_up_tls = self._give_up_tls, None
        stream, self._stream = self._stream, None
        if give_up is not None:
            give_up()
        elif stream is not None:
            stream.detach()
            stream.reset(Code.CANCEL)

    def _next(self) -> None:
        clients = self._wanted.clients()
        for dialler in self._reaches.in_turn([one for one in clients if one not in self._no]):
            if dialler in self._busy:
                continue
            stream = dialler.open_through(self._wanted.target, NOTHING, self._visitor)
            if stream is None or stream.ended:  # the tunnel may have failed under the OPEN of this very stream
                continue
            self._wanted.opened(stream)
            self._dialler, self._stream = dialler, stream
            stream.attach(self)
            return
        answers = {self._no.get(one, Code.LIMIT) for one in clients} or {Code.AWAY}
        never = answers <= _NOT_HERE
        if never or self._reaches.runtime.loop.time() >= self._deadline:
            self._failed(
                next((code for code in (Code.LIMIT, Code.DIAL_FORBIDDEN) if code in answers), max(answers)), ""
            )
        else:
            self._reaches.wait(self)

    def _over(self) -> Dialler | None:
        """The stream is over, or is no more ours."""
        self._stream = None
        dialler, self._dialler = self._dialler, None
        return dialler

    def _tls_done(self, stream: Stream | None, code: Code, why: str) -> None:
        self._give_up_tls = None
        dialler = self._over()
        if stream is not None and dialler is not None:
            self._found(stream, dialler.link)
        else:
            self._failed(code, why)

    # --- from the stream -----------------------------------------------------------------------------------------------

    def on_accept(self) -> None:
        stream, dialler = self._stream, self._dialler
        if stream is None or dialler is None:
            return
        if self._wanted.tls:
            context = self._reaches.context
            self._give_up_tls = start_tls(stream, dialler.link, context, self._wanted.tls, self._tls_done)
        else:
            self._over()
            self._found(stream, dialler.link)

    def on_reset(self, code: Code) -> None:
        dialler = self._over()
        if dialler is None:
            return
        if code in _NOT_HERE:
            self._no[dialler] = code
        elif code in _NOT_NOW:
            self._busy.add(dialler)
        else:
            self._failed(code, "")
            return
        self._next()

    def on_lost(self) -> None:
        self.on_reset(Code.CONNECTION_RESET)

    def on_stop(self) -> None:
        stream = self._stream
        if stream is not None:
            stream.abort(Code.CANCEL)

    def deliver(self, piece: memoryview) -> None:
        """Nothing comes before ACCEPT."""

    def on_fin(self) -> None:
        """Nor an end."""

    def on_room(self) -> None:
        """Nothing waits to be sent."""
