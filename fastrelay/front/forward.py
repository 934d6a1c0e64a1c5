"""A visitor of a local port that leads to one target behind the relay."""

from __future__ import annotations

import asyncio

from fastrelay.front.opener import Opener
from fastrelay.mux.stream import NOTHING
from fastrelay.net.edge import Edge
from fastrelay.net.link import address
from fastrelay.net.runtime import Runtime


class ForwardVisitor(Edge):
    """Joined with a stream as soon as it is made; reset when there is none."""

    __slots__ = ("_opener", "_target")

    def __init__(self, runtime: Runtime, opener: Opener, target: str) -> None:
        super().__init__(runtime)
        self._opener = opener
        self._target = target

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        opened = self._opener.open(NOTHING, self._target, address(transport.get_extra_info("peername")))
        if opened is None:
            self.refuse()
        else:
            self.join(*opened)
