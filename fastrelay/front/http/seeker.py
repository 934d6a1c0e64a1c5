"""A visitor whose requests may go to what has to be found first: a target behind a client. See `way.Behind`.

While it is looked for, nothing more is read than what came with the request, and nothing is sent to anybody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastrelay.errors import Code, MessageError
from fastrelay.front.http.visitor import HttpVisitor
from fastrelay.front.http.way import Behind

if TYPE_CHECKING:
    from fastrelay.front.http.lobby import Lobby
    from fastrelay.front.http.way import Raw, Route, Search, Way
    from fastrelay.mux.stream import Stream
    from fastrelay.net.link import Link
    from fastrelay.net.runtime import Runtime


class Seeker(HttpVisitor):
    __slots__ = ("_search", "_sought")

    def __init__(self, runtime: Runtime, route: Route, scheme: str, lobby: Lobby, *, proxied: bool = False) -> None:
        super().__init__(runtime, route, scheme, lobby, proxied=proxied)
        self._search: Search | None = None
        self._sought: Way | None = None  # what it is for

    def _open(self, way: Way) -> None:
        backend = way.backend
        if not isinstance(backend, Behind):
            super()._open(way)
            return
        self._backend = backend
        self._waits = True
        self._sought = way
        self._search = backend.search(self._address, self._found, self._not_found)
        self._search.look()

    def _found(self, stream: Stream, link: Link) -> None:
        self._search = None
        way, self._sought = self._sought, None
        if way is not None and way.raw is not None:
            self._take_over(way.raw, stream, link)
            return
        self.join(stream, link)
        if self.stream is not None and self._backend is not None:
            self._backend.users.add(self)
            self._moved = self.stream.moved
        if self._asked and not self._asked[-1].upgrade:
            self._waits = False
            self._catch_up()

    def _take_over(self, raw: Raw, stream: Stream, link: Link) -> None:
        """The visitor asked for the stream itself: the two become one connection, if it has waited to be told so."""
        self._stash = None
        if self._behind or self._requests.in_body:
            stream.reset(Code.CANCEL)
            self._emit(raw.hasty, 0)
            self._finish()
            return
        self._emit(raw.switched, 0)
        self.join(stream, link)
        self._switch(memoryview(b""))

    def _not_found(self, error: MessageError) -> None:
        self._search = None
        self._part(Code.CANCEL)
        self._stash = None
        self._say(error)

    def _part(self, code: Code) -> None:
        search, self._search = self._search, None
        if search is not None:
            search.cancel()
        super()._part(code)
