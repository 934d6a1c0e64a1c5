"""What the audit log is told about the targets of a client: one connection for each stream that the relay opens."""

from __future__ import annotations

import asyncio
import socket

from fastrelay import log
from fastrelay.config import Target
from fastrelay.errors import Code
from fastrelay.mux.stream import Stream
from fastrelay.net.link import Link
from fastrelay.net.runtime import Runtime
from fastrelay.net.telling import TellingEdge, Totals


class TargetEdge(TellingEdge):
    """The connection to a target."""

    near, far = "target-reset", "visitor-reset"

    def __init__(self, runtime: Runtime, sock: socket.socket, asked: Asked) -> None:
        super().__init__(runtime, sock)
        self._asked = asked

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._asked.connected = True

    def on_joined(self, stream: Stream) -> None:
        self._asked.opened(stream)

    def on_parted(self, stream: Stream, cause: str, seconds: float) -> None:
        self._asked.closed(stream, cause, seconds)


class Asked:
    """One visitor's wish for a target: that of a `service`, or without one what was named to be dialled."""

    def __init__(self, session: str, target: Target, service: str | None, visitor: str, totals: Totals) -> None:
        self._text = f"{target} for visitor {visitor}{f' of {service}' if service else ''}"
        self._who = _who(session, target, service, visitor)
        self._totals = totals
        self.connected = False

    def make(self, runtime: Runtime, sock: socket.socket) -> TargetEdge:
        return TargetEdge(runtime, sock, self)

    def opened(self, stream: Stream) -> None:
        log.note("target.opened", f"Connected {self._text}.", **self._who, stream=stream.id)

    def closed(self, stream: Stream, cause: str, seconds: float) -> None:
        self._totals.add(stream.received, stream.sent)
        log.note(
            "target.closed",
            f"Closed {self._text}: {cause}.",
            **self._who,
            stream=stream.id,
            bytes_in=stream.received,
            bytes_out=stream.sent,
            seconds=round(seconds, 6),
            cause=cause,
        )

    def missed(self, stream: Stream, code: Code, link: Link) -> None:
        """The dial has ended, and target and stream were not joined."""
        cause = log.CAUSES[code]
        if code is Code.CONNECTION_RESET:
            cause = TargetEdge.far
        elif code is Code.CANCEL:
            cause = log.cause(link.error)
        if self.connected:  # the stream went in the last moment; what it had sent before was delivered
            self.opened(stream)
            self.closed(stream, cause, 0.0)
            return
        log.note(
            "target.refused",
            f"Did not connect {self._text}: {cause}.",
            **self._who,
            stream=stream.id,
            bytes_in=stream.received,
            cause=cause,
        )


def _who(session: str, target: Target, service: str | None, visitor: str) -> dict[str, object]:
    return {"session": session, "service": service, "target": str(target), "visitor": visitor}
