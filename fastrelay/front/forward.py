"""A visitor of a local port, or of the standard streams of a process, that leads to one target behind the relay."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fastrelay.errors import Code
from fastrelay.mux.stream import NOTHING
from fastrelay.net.edge import Edge
from fastrelay.net.link import address

if TYPE_CHECKING:
    from fastrelay.front.opener import Opener
    from fastrelay.net.runtime import Runtime


class ForwardVisitor(Edge):
    """Joined with a stream as soon as it is made; reset when there is none."""

    __slots__ = ("_accepted", "_opener", "_target", "_visitor")

    def __init__(self, runtime: Runtime, opener: Opener, target: str) -> None:
        super().__init__(runtime)
        self._opener = opener
        self._target = target
        self._accepted = False
        self._visitor = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._visitor = address(transport.get_extra_info("peername"))
        opened = self._opener.open(NOTHING, self._target, self._visitor)
        if opened is None:
            self.refuse()
        else:
            self.join(*opened)

    def on_accept(self) -> None:
        self._accepted = True

    def on_reset(self, code: Code) -> None:
        if not self._accepted:
            self._opener.missed(self._target, self._visitor, code)
        super().on_reset(code)


class DialVisitor(ForwardVisitor):
    """The one visitor of a process; `over` is done when nothing moves any more, with NO_ERROR if both directions have ended."""

    __slots__ = ("_code", "over")

    def __init__(self, runtime: Runtime, opener: Opener, target: str) -> None:
        super().__init__(runtime, opener, target)
        self._code = Code.CONNECTION_RESET
        self.over: asyncio.Future[tuple[Code, bool]] = runtime.loop.create_future()
        """The code, and whether the target was reached."""

    def on_reset(self, code: Code) -> None:
        self._code = code or Code.CANCEL
        Edge.on_reset(self, code)

    def _close(self) -> None:
        self._code = Code.NO_ERROR
        super()._close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if not self.over.done():
            self.over.set_result((self._code, self._accepted))
