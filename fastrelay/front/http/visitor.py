"""A visitor of the HTTP front: an edge that reads heads on the way, and joins each request with the stream of whoever serves it.

    visitor ──▶ Requests ──▶ route ──▶ heads.request ──▶ stream ──▶ target
    visitor ◀── heads.response ◀── Responses ◀── stream ◀── target

A stream, and the target's connection behind it, is kept from one request to the next as long as they go to the same backend. Requests wait
for each other only where the backend changes, and behind an upgrade until it is answered. After a 101 nothing is read any more: from there
on this is an Edge like any other, half-close and reset included.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from fastrelay.errors import Code, MessageError
from fastrelay.front.http import heads
from fastrelay.front.http.messages import Request, Requests, Response, Responses
from fastrelay.front.http.pages import failed, page
from fastrelay.mux.stream import NOTHING, Outlet, Stream
from fastrelay.net.edge import Edge
from fastrelay.wire import HEADER_SIZE

if TYPE_CHECKING:
    from fastrelay.net.link import Link
    from fastrelay.net.runtime import Runtime

HEAD_TIME: Final = 10.0
"""Seconds from the first byte of a head to its last, and to the first head of a connection."""
IDLE_TIME: Final = 60.0
"""Seconds between two requests."""
ANSWER_TIME: Final = 60.0
"""Seconds from a request to the head of its answer, while nothing of either moves."""


class Backend(Protocol):
    """Whoever serves a request: equal ones may serve the next on the same connection."""

    @property
    def link(self) -> Link: ...

    def open(self, outlet: Outlet, visitor: str) -> Stream | None:
        """A stream to it, None when there can be none now."""


@dataclass(frozen=True)
class Way:
    """Where a request goes, and how its head is written: see `heads.request`."""

    backend: Backend
    request: Request
    host: bytes = b""
    without: frozenset[bytes] = frozenset()


Route = Callable[[Request, str], Way]
"""Decides where a request of a visitor goes. Raises MessageError with what to answer instead."""


class _Asked(NamedTuple):
    """A request whose answer is not over."""

    method: bytes
    upgrade: bytes
    keep_alive: bool


class HttpVisitor(Edge):
    __slots__ = (
        "_answering",
        "_asked",
        "_backend",
        "_behind",
        "_last",
        "_next",
        "_raw",
        "_requests",
        "_responses",
        "_route",
        "_scheme",
        "_visitor",
        "_waits",
    )

    def __init__(self, runtime: Runtime, route: Route, scheme: str) -> None:
        super().__init__(runtime)
        self._route = route
        self._scheme = scheme
        self._requests = Requests()
        self._responses = Responses()
        self._asked: deque[_Asked] = deque()
        self._answering = False  # the head of the oldest one's answer has been passed on
        self._backend: Backend | None = None  # of the stream
        self._next: Way | None = None  # a request that waits for those before it
        self._behind = b""  # what was read behind a request that waits
        self._waits = False
        self._last = False  # no more requests are read
        self._raw = False  # another protocol has taken over
        self._visitor = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        host = transport.get_extra_info("peername")[0]
        self._visitor = host.removeprefix("::ffff:") if host.count(".") == 3 else host
        self._later(HEAD_TIME, self._silent)

    # --- from the visitor ----------------------------------------------------------------------------------------------

    def buffer_updated(self, nbytes: int) -> None:
        if self._raw:
            super().buffer_updated(nbytes)
            return
        data = self._runtime.edge_slab[HEADER_SIZE : HEADER_SIZE + nbytes]
        stream = self.stream
        if self._last or self._discarding:
            return
        if self._waits:
            self._behind += data
            self._hold()
        elif self._requests.in_body and self._stash is None and stream is not None and stream.room() >= nbytes:
            try:
                size = self._requests.take_body(data)
            except MessageError as error:
                self._refuse(error)
                return
            if size == nbytes:
                super().buffer_updated(nbytes)  # bodies pass as they came, where they lie
            else:
                rest = bytes(data[size:])
                super().buffer_updated(size)
                self._read(memoryview(rest))
        else:
            self._read(memoryview(bytes(data)))

    def _read(self, data: memoryview) -> None:
        """Take what was read, up to a request that must wait."""
        requests = self._requests
        try:
            while data and not self._waits and not self._last:
                if requests.in_body:
                    size = requests.take_body(data)
                    self._push(bytes(data[:size]))
                else:
                    size = requests.take_head(data)
                    if requests.whole:
                        self._request(requests.head())
                    elif not self._asked:
                        self._later(HEAD_TIME, self._silent)
                data = data[size:]
        except MessageError as error:
            self._refuse(error)
            return
        if self._waits and data:
            self._behind += data
            self._hold()

    def _request(self, head: Request) -> None:
        way = self._route(head, self._visitor)
        if self._asked and way.backend != self._backend:
            self._next = way
            self._waits = True
        else:
            self._ask(way)

    def _ask(self, way: Way) -> None:
        """Pass a request on."""
        head = way.request
        self._asked.append(_Asked(head.method, head.upgrade, head.keep_alive))
        if head.upgrade:
            self._waits = True
        if not head.keep_alive and not self._requests.in_body:
            self._last = True
        self._later(ANSWER_TIME, self._silent)
        raw = heads.request(head, self._visitor, self._scheme, host=way.host, without=way.without)
        if self.stream is not None and way.backend == self._backend:
            self._push(raw)
            return
        self._leave()
        stream = way.backend.open(NOTHING, self._visitor)
        if stream is None:
            raise MessageError(503, "The service takes no more visitors now: try again in a moment.")
        self._backend = way.backend
        self._responses = Responses()
        self._stash = raw
        self.join(stream, way.backend.link)

    def _push(self, data: bytes) -> None:
        """Send as credit allows; reading goes on when all has left."""
        self._stash = data if self._stash is None else self._stash + data
        self.on_room()

    def _leave(self) -> None:
        """Nothing more is wanted of this backend: its connection ends in order."""
        stream = self.stream
        if stream is not None:
            stream.fin()
            self._part(Code.NO_ERROR)
        self._stash = None
        self._backend = None

    def _read_on(self) -> None:
        if not self._waits:
            super()._read_on()

    def _input_over(self) -> None:
        if self._raw or self._fin_due:
            super()._input_over()
        elif not self._asked:
            self._finish()
        else:
            self._last = True  # the answers still come: many a server takes an end for a change of mind

    # --- from the stream -----------------------------------------------------------------------------------------------

    def deliver(self, piece: memoryview) -> None:
        if self._raw:
            super().deliver(piece)
            return
        responses = self._responses
        stream = self.stream
        try:
            while piece and self.stream is stream:
                if responses.in_body:
                    size = responses.take_body(piece)
                    super().deliver(piece[:size])
                    if responses.between:
                        self._answered()
                else:
                    if not self._asked:
                        raise MessageError(502, "The service answered what nobody had asked.")
                    responses.bodiless = self._asked[0].method == b"HEAD"
                    size = responses.take_head(piece)
                    if responses.whole and self._response(responses.head()):
                        self._switch(piece[size:])
                        return
                piece = piece[size:]
        except MessageError as error:
            self._broken(502, error.text if error.status == 502 else "The service's answer is not HTTP/1.1.")

    def _response(self, head: Response) -> bool:
        """Pass a head on; whether another protocol begins behind it."""
        asked = self._asked[0]
        switched = head.status == 101
        if switched and (not asked.upgrade or head.upgrade.lower() != asked.upgrade.lower()):
            raise MessageError(502, "The service switched to a protocol that was not asked for.")
        if head.status >= 200:
            self._answering = True
            self._stop_clock()
            if not head.keep_alive:
                self._asked[0] = asked._replace(keep_alive=False)
        if not self._asked[0].keep_alive:
            head = head._replace(keep_alive=False)
        super().deliver(memoryview(heads.response(head)))
        if self._answering and self._responses.between:
            self._answered()
        return switched

    def _answered(self) -> None:
        """An answer is over."""
        self._answering = False
        asked = self._asked.popleft()
        if not asked.keep_alive or (self._last and not self._asked):
            self._finish()
            return
        self._later(ANSWER_TIME if self._asked else IDLE_TIME, self._silent)
        if not self._waits or (self._asked and self._next is not None):
            return
        self._waits = False
        try:
            if self._next is not None:
                way, self._next = self._next, None
                self._ask(way)
        except MessageError as error:
            self._refuse(error)
            return
        behind, self._behind = self._behind, b""
        self._read(memoryview(behind))
        self.on_room()

    def _switch(self, piece: memoryview) -> None:
        """A 101 has been passed on: what either side sent behind its head is of the other protocol."""
        self._raw = True
        self._stop_clock()
        if piece:
            super().deliver(piece)
        self._asked.clear()
        self._waits = False
        behind, self._behind = self._behind, b""
        if behind:
            self._push(behind)
        elif self._eof:
            super()._input_over()
        else:
            self.on_room()

    def on_fin(self) -> None:
        if self._raw:
            super().on_fin()
        elif self._responses.until_end:
            self._asked[0] = self._asked[0]._replace(keep_alive=False)
            self._answered()
        else:
            self._broken(502, "The service ended its connection without an answer.")

    def on_reset(self, code: Code) -> None:
        if self._raw:
            super().on_reset(code)
        else:
            self._broken(*failed(code))

    def on_lost(self) -> None:
        if self._raw:
            super().on_lost()
        else:
            self._broken(*failed(Code.NO_ERROR))

    # --- ends ----------------------------------------------------------------------------------------------------------

    def _broken(self, status: int, text: str) -> None:
        """The target's connection is of no more use. A connection that nobody waits for may end; half an answer must not look whole."""
        if self._answering:
            self._give_up()
            return
        idle = not self._asked
        self._part(Code.CANCEL)
        self._backend = None
        self._stash = None
        if idle:
            self._responses = Responses()
        else:
            self._refuse(MessageError(status, text))

    def _refuse(self, error: MessageError) -> None:
        """Answer with a page and end, behind the answers that are still to come."""
        if self._answering or len(self._asked) > 1:
            self._give_up()  # a page would stand in the middle of another answer
            return
        super().deliver(memoryview(page(error.status, error.text)))
        self._finish()

    def _finish(self) -> None:
        """The last answer has been written: end in order, which needs the visitor's input to be read away."""
        self._last = True
        self._asked.clear()
        self._behind = b""
        self._leave()
        self._stop_clock()
        self._end()

    def _silent(self) -> None:
        """A time is over."""
        if self._answering:
            return
        if self._asked:
            self._part(Code.CANCEL)
            self._asked.clear()
            self._refuse(MessageError(504, "The service did not answer in time."))
        elif not self._requests.between:
            self._refuse(MessageError(408, "The request did not come in time."))
        else:
            self._finish()

    def _stop_clock(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
