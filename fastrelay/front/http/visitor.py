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
from typing import TYPE_CHECKING, Final

from fastrelay.config import join_host
from fastrelay.errors import Code, MessageError
from fastrelay.front.http import heads
from fastrelay.front.http.lingering import SMALL, LingeringEdge
from fastrelay.front.http.messages import Request, Requests, Response, Responses
from fastrelay.front.http.pages import answer, failed
from fastrelay.front.http.way import SAFE, Asked, Behind, as_it_is
from fastrelay.mux.stream import NOTHING
from fastrelay.net.heads import last_address
from fastrelay.wire import HEADER_SIZE

if TYPE_CHECKING:
    from fastrelay.front.http.lobby import Lobby, Seat
    from fastrelay.front.http.way import Backend, Route, Tell, Way
    from fastrelay.net.runtime import Runtime

HEAD_TIME: Final = 10.0
"""Seconds from the first byte of a head to its last, and from a connection to its first head."""
IDLE_TIME: Final = 60.0
"""Seconds between two requests."""
ANSWER_TIME: Final = 60.0
"""Seconds from a request to the head of its answer, while nothing of either moves."""
_NEVER: Final = float("inf")


class HttpVisitor(LingeringEdge):
    __slots__ = (
        "_address",
        "_again",
        "_answering",
        "_asked",
        "_backend",
        "_behind",
        "_due",
        "_last",
        "_lobby",
        "_method",
        "_moved",
        "_next",
        "_patience",
        "_proxied",
        "_raw",
        "_refused",
        "_requests",
        "_responses",
        "_route",
        "_scheme",
        "_seat",
        "_tell",
        "_visitor",
        "_waits",
    )

    def __init__(self, runtime: Runtime, route: Route, scheme: str, lobby: Lobby, *, proxied: bool = False) -> None:
        """`proxied`: a proxy in front says in X-Forwarded-For of each request whose it is."""
        super().__init__(runtime)
        self._proxied = proxied
        self._route = route
        self._scheme = scheme
        self._lobby = lobby
        self._seat: Seat | None = None
        self._requests = Requests()
        self._responses = Responses()
        self._asked: deque[Asked] = deque()
        self._method = b""  # of the newest request
        self._answering = False  # the head of the oldest one's answer has been passed on
        self._backend: Backend | Behind | None = None  # of the stream
        self._patience = ANSWER_TIME  # with it, for the newest request
        self._tell: Tell = as_it_is  # in whose words a failure of it is told
        self._again: Way | None = None  # a request that may be sent once more
        self._next: Way | None = None  # a request that waits for those before it
        self._refused: MessageError | None = None  # what is said behind the last answer
        self._behind = b""  # what was read behind a request that waits
        self._waits = False
        self._last = False  # no more requests are read
        self._raw = False  # another protocol has taken over
        self._visitor = self._address = ""
        self._due = _NEVER  # when patience ends
        self._moved = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        if peer is None:  # it has gone before it could be asked
            self._abort()
            return
        host = peer[0]
        self._visitor = host.removeprefix("::ffff:") if host.count(".") == 3 else host
        self._address = f"[{self._visitor}]:{peer[1]}" if ":" in self._visitor else f"{self._visitor}:{peer[1]}"
        self._seat = self._lobby.arrive(self, self._visitor)
        self._wait(HEAD_TIME)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._seat is not None:
            self._lobby.leave(self, self._seat)
            self._seat = None
        super().connection_lost(exc)

    # --- from the lobby, and the backend -------------------------------------------------------------------------------

    def evict(self) -> None:
        self._give_up()

    def retire(self) -> None:
        if self._raw:
            return
        if self._asked:
            self._last = True
        else:
            self._finish()

    def on_withdrawn(self) -> None:
        if self._idle and not self._raw:
            self._leave()

    @property
    def _idle(self) -> bool:
        """Nothing of this visitor is under way."""
        return not self._asked and not self._requests.in_body

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
            size = self._body(data)
            if size == nbytes:
                super().buffer_updated(nbytes)  # bodies pass as they came, where they lie
            else:
                rest = bytes(data[size:])
                if size:
                    super().buffer_updated(size)
                self._read(rest)
        else:
            self._read(bytes(data))

    def _read(self, data: bytes) -> None:
        """Take what was read, up to a request that must wait."""
        requests = self._requests
        try:
            while data and not self._waits and not self._last:
                if requests.in_body:
                    size = self._body(data)
                    self._push(data[:size])
                else:
                    fresh = requests.between
                    size = requests.take_head(data)
                    if requests.whole:
                        self._request(requests.head())
                    elif fresh and not self._asked and self._method:  # the first head's time runs from the start
                        self._wait(HEAD_TIME)
                data = data[size:]
        except MessageError as error:
            self._refuse(error)
            return
        if self._waits and data:
            self._behind += data
            self._hold()

    def _body(self, data: bytes | memoryview) -> int:
        """How many of these bytes are of the body; 0 where it cannot be one, and its request is over."""
        requests = self._requests
        try:
            size = requests.take_body(data)
            if not requests.in_body and self._asked and not self._asked[-1].keep_alive:
                self._last = True
            return size
        except MessageError as error:
            if len(self._asked) == 1 and not self._answering:
                self._part(Code.CANCEL)
                self._say(error)
            else:
                self._give_up()
            self._last = True
            return 0

    def _request(self, head: Request) -> None:
        if not self._method and self._seat is not None:
            self._lobby.admit(self._seat)
        self._method = head.method
        if self._proxied and (said := head.fields.values(b"x-forwarded-for")) and (whose := last_address(said[-1])):
            self._visitor = whose
            self._address = join_host(whose, 0)
        way = self._route(head, self._visitor)
        if self._asked and way.backend != self._backend:
            self._next = way
            self._waits = True
        else:
            self._ask(way)

    def _ask(self, way: Way) -> None:
        """Pass a request on."""
        head = way.request
        self._asked.append(Asked(head.method, head.upgrade, head.keep_alive))
        if head.upgrade:
            self._waits = True
        if not head.keep_alive and not self._requests.in_body:
            self._last = True
        self._tell = way.tell
        self._patience = way.time or ANSWER_TIME
        self._wait(self._patience)
        raw = heads.request(head, self._visitor, self._scheme, host=way.host, without=way.without)
        if self.stream is not None and way.backend == self._backend:
            whole = not self._requests.in_body
            self._again = way if len(self._asked) == 1 and whole and head.method in SAFE else None
            self._moved = self.stream.moved + len(raw)
            self._push(raw)
            return
        self._again = None
        self._leave()
        self._moved = 0
        self._responses = Responses()
        self._stash = raw
        self._open(way)

    def _open(self, way: Way) -> None:
        """Get a stream for what is stashed. Raises MessageError."""
        backend = way.backend
        assert not isinstance(backend, Behind)
        stream = backend.open(NOTHING, self._address)
        if stream is None:
            self._asked.pop()
            raise MessageError(503, "The service takes no more visitors now: try again in a moment.")
        self._backend = backend
        backend.users.add(self)
        self.join(stream, backend.link)

    def _push(self, data: bytes) -> None:
        """Send as credit allows; reading goes on when all has left."""
        stream = self.stream
        if self._stash is None and stream is not None and 0 < len(data) <= stream.room():
            slab = self._runtime.edge_slab
            slab[HEADER_SIZE : HEADER_SIZE + len(data)] = data
            self.link.write(stream.seal(slab, len(data)))
        else:
            self._stash = data if self._stash is None else self._stash + data
            self.on_room()
        if stream is not None and self.link.blocked and not self._held:
            self._hold()
            self.link.waiting.append(self)

    def _leave(self) -> None:
        """Nothing more is wanted of this backend: its connection ends in order."""
        stream = self.stream
        if stream is not None:
            stream.fin()
            self._part(Code.NO_ERROR)
        self._stash = None

    def _part(self, code: Code) -> None:
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.users.discard(self)
        super()._part(code)

    def _read_on(self) -> None:
        if not self._waits:
            super()._read_on()

    def _input_over(self) -> None:
        if self._raw or self._fin_due:
            super()._input_over()
        elif self._requests.in_body:
            self._give_up()  # the request will never be whole
        elif not self._asked:
            self._finish()
        elif not self._waits:
            self._last = True  # the answers still come: many a server takes an end for a change of mind

    # --- from the stream -----------------------------------------------------------------------------------------------

    def deliver(self, piece: memoryview) -> None:
        if self._raw:
            self._emit(piece, len(piece))
            return
        responses = self._responses
        stream = self.stream
        try:
            while piece and self.stream is stream:
                taken, raw = 0, b""
                if not responses.in_body:
                    if not self._asked:
                        raise MessageError(502, "The service answered what nobody had asked.")
                    responses.bodiless = self._asked[0].method == b"HEAD"
                    taken = responses.take_head(piece)
                    if not responses.whole:
                        return
                    head = responses.head()
                    raw = self._response(head)
                    piece = piece[taken:]
                    if head.status == 101:
                        self._emit(raw, taken)
                        self._switch(piece)
                        return
                if responses.in_body and piece:
                    size = responses.take_body(piece)
                    if raw and size > SMALL:
                        self._emit(raw, taken)
                        taken, raw = 0, b""
                    self._emit(b"".join((raw, piece[:size])) if raw else piece[:size], taken + size)
                    piece = piece[size:]
                elif raw:
                    self._emit(raw, taken)
                if self._answering and not responses.in_body:
                    self._answered()
        except MessageError as error:
            told = error.text if error.status == 502 else "The service's answer is not HTTP/1.1."
            self._broken(MessageError(502, told))

    def _response(self, head: Response) -> bytes:
        """The head for the visitor. Raises MessageError for one that must not be passed on."""
        asked = self._asked[0]
        switched = head.status == 101
        if switched and (not asked.upgrade or head.upgrade.lower() != asked.upgrade.lower()):
            raise MessageError(502, "The service switched to a protocol that was not asked for.")
        self._again = None
        if head.status >= 200:
            self._answering = True
            self._due = _NEVER
            if not head.keep_alive:
                self._asked[0] = asked._replace(keep_alive=False)
        ends = self._last and len(self._asked) == 1 and self._refused is None
        if not self._asked[0].keep_alive or (ends and not switched):
            head = head._replace(keep_alive=False)
        return heads.response(head)

    def _answered(self) -> None:
        """An answer is over."""
        self._answering = False
        asked = self._asked.popleft()
        if not self._asked and self._refused is not None:
            self._refuse(self._refused)
            return
        if not asked.keep_alive or (self._last and not self._asked):
            self._finish()
            return
        self._wait(self._patience if self._asked else IDLE_TIME)
        if self._idle and self.stream is not None and self.stream.session.going_away:
            self._leave()
        if not self._waits or (self._asked and self._next is not None):
            return
        self._waits = False
        if self._next is not None:
            way, self._next = self._next, None
            self._route_again(way)
        self._catch_up()

    def _catch_up(self) -> None:
        """What was read meanwhile has its turn."""
        behind, self._behind = self._behind, b""
        self._read(behind)
        self.on_room()
        if self._eof and not self._waits and self._fd >= 0:
            self._input_over()

    def _switch(self, piece: memoryview) -> None:
        """A 101 has been passed on: what either side sent behind its head is of the other protocol."""
        self._raw = True
        self._due = _NEVER
        if piece:
            self._emit(piece, len(piece))
        self._asked.clear()
        self._waits = False
        behind, self._behind = self._behind, b""
        if behind:
            self._push(behind)
        if self._eof:
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
            self._broken(MessageError(502, "The service ended its connection without an answer."))

    def on_reset(self, code: Code) -> None:
        if self._raw:
            super().on_reset(code)
        else:
            self._broken(failed(code))

    def on_lost(self) -> None:
        if self._raw:
            super().on_lost()
        else:
            self._broken(failed(Code.NO_ERROR))

    # --- ends ----------------------------------------------------------------------------------------------------------

    def _broken(self, error: MessageError) -> None:
        """The target's connection is of no more use. One that nobody waits for may end; half an answer must not look whole."""
        if self._answering:
            self._give_up()
            return
        self._part(Code.CANCEL)
        self._stash = None
        if self._again is not None:  # it was idle for too long, and ended while this was on its way
            self._asked.clear()
            self._route_again(self._again)
        elif self._asked:
            self._say(self._tell(error))
        elif self._requests.in_body:
            self._finish()
        else:
            self._responses = Responses()

    def _route_again(self, way: Way) -> None:
        try:
            self._ask(way)
        except MessageError as error:
            self._refuse(error)

    def _refuse(self, error: MessageError) -> None:
        """Answer with a page and end, behind the answers that are still to come."""
        if self._asked:
            self._refused = error
            self._last = True
        else:
            self._say(error)

    def _say(self, error: MessageError) -> None:
        page = answer(error)
        if (self._asked[0].method if self._asked else self._method) == b"HEAD":
            page = page[: page.index(b"\r\n\r\n") + 4]
        self._emit(page, 0)
        self._finish()

    def _finish(self) -> None:
        """The last answer has been written: end in order, which needs the visitor's input to be read away."""
        self._last = True
        self._asked.clear()
        self._behind = b""
        if self._requests.in_body:  # what is left of it goes nowhere
            self._part(Code.CANCEL)
        self._leave()
        self._due = _NEVER
        if self._failed:  # while there was no stream to tell
            self._abort()
        self._end()

    # --- time ----------------------------------------------------------------------------------------------------------

    def _wait(self, seconds: float) -> None:
        """Be patient for so long from now on. One timer serves all waits of a connection: requests are more often than it fires."""
        now = self._runtime.loop.time()
        self._due = now + seconds
        if self._timer is None or self._timer.when() > self._due:
            self._later(seconds, self._time_over)

    def _time_over(self) -> None:
        self._timer = None
        now = self._runtime.loop.time()
        if self._due == _NEVER or self._answering:
            return
        moved = 0 if self.stream is None else self.stream.moved
        if moved != self._moved and not self._idle:
            self._moved = moved
            self._due = max(self._due, now + self._patience)
        if now < self._due:
            self._later(self._due - now, self._time_over)
            return
        self._due = _NEVER
        if self._asked:
            self._part(Code.CANCEL)
            self._say(self._tell(MessageError(504, "The service did not answer in time.")))
        elif not self._requests.between:
            self._refuse(MessageError(408, "The request did not come in time."))
        else:
            self._finish()
