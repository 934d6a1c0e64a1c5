"""A visitor of the local SOCKS5 and HTTP CONNECT proxy: an edge that says where it wants to go, and is told whether it got there."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Final

from fastrelay.config import join_host
from fastrelay.errors import AskError, Code
from fastrelay.front.ask import Ask
from fastrelay.front.opener import Opener
from fastrelay.mux.stream import NOTHING
from fastrelay.net.edge import Edge
from fastrelay.net.link import address
from fastrelay.net.runtime import Runtime
from fastrelay.wire import HEADER_SIZE

ASK_TIME: Final = 10.0
"""Seconds until a program must have said what it wants."""


class ProxyVisitor(Edge):
    __slots__ = ("_answered", "_ask", "_opener", "_target", "_visitor")

    def __init__(self, runtime: Runtime, opener: Opener) -> None:
        super().__init__(runtime)
        self._opener = opener
        self._ask = Ask()
        self._answered = False
        self._visitor = ""
        self._target = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._visitor = address(transport.get_extra_info("peername"))
        self._later(ASK_TIME, self._too_slow)

    def buffer_updated(self, nbytes: int) -> None:
        if self.stream is not None or self._answered:
            super().buffer_updated(nbytes)
            return
        ask = self._ask
        try:
            self._say(ask.feed(bytes(self._runtime.edge_slab[HEADER_SIZE : HEADER_SIZE + nbytes])))
        except AskError as error:
            self._tell(str(error))
            self._refuse(error.reply)
            return
        if ask.target is None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._target = join_host(*ask.target)
        opened = self._opener.open(NOTHING, self._target, self._visitor)
        if opened is None:
            self._refuse(ask.answer(Code.LIMIT))
            return
        self._stash = ask.rest or None  # sent at once, for a target that takes early data
        self.join(*opened)

    def on_accept(self) -> None:
        self._answered = True
        self._say(self._ask.answer(Code.NO_ERROR))

    def on_reset(self, code: Code) -> None:
        if self._answered:
            super().on_reset(code)
        else:
            self._part(Code.NO_ERROR)
            self._opener.missed(self._target, self._visitor, code)
            self._refuse(self._ask.answer(code))

    def on_lost(self) -> None:
        if self._answered:
            super().on_lost()
        else:
            self.on_reset(Code.CONNECTION_RESET)

    def _say(self, data: bytes) -> None:
        """Nothing else has been written yet, so the socket has room for it."""
        if data and self._fd >= 0:
            with contextlib.suppress(OSError):
                os.write(self._fd, data)

    def _too_slow(self) -> None:
        self._tell(f"it has not said within {ASK_TIME:g} s what it wants")
        self._give_up()

    def _tell(self, why: str) -> None:
        text = f"Refused {self._visitor} at the proxy: {why}."
        self._runtime.notices.say("proxy", "proxy.refused", text, visitor=self._visitor)

    def _refuse(self, last: bytes) -> None:
        self._answered = True
        self._say(last)
        self._end()
