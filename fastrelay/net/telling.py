"""An edge that tells its beginning and its end, for the audit log. It is made in place of a plain one only while somebody audits."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from fastrelay import log
from fastrelay.errors import Code
from fastrelay.net.edge import Edge

if TYPE_CHECKING:
    from fastrelay.mux.stream import Stream
    from fastrelay.net.link import Link


class Totals:
    """What the streams of one tunnel have carried, of those that told; `in` is from the visitors, `out` is to them."""

    def __init__(self) -> None:
        self._streams = self._in = self._out = 0

    def add(self, bytes_in: int, bytes_out: int) -> None:
        self._streams += 1
        self._in += bytes_in
        self._out += bytes_out

    def fields(self) -> dict[str, int]:
        """For an event; empty where nobody audits, and so nobody counts."""
        return {"streams": self._streams, "bytes_in": self._in, "bytes_out": self._out} if log.audited() else {}


class TellingEdge(Edge):
    """`on_joined` is called when there is a stream, and for each of these calls `on_parted` once: when the connection has taken or lost all.

    Without __slots__, so that it can be mixed with any edge that has some.
    """

    near: ClassVar[str]
    """What a reset of this side's connection is called."""
    far: ClassVar[str]
    """What a reset of the other side's connection is called."""

    _cause = ""
    _since: float

    def on_joined(self, stream: Stream) -> None:
        raise NotImplementedError

    def on_parted(self, stream: Stream, cause: str, seconds: float) -> None:
        """`cause` is one of README, "Audit log"; what went each way is in `stream.sent` and `stream.received`."""
        raise NotImplementedError

    def join(self, stream: Stream, link: Link) -> None:
        self._since = self._runtime.loop.time()
        reset = self._fd < 0
        over = reset or stream.ended
        self.on_joined(stream)
        super().join(stream, link)
        if over:
            self.on_parted(stream, self.near if reset else log.cause(link.error), 0.0)

    def on_reset(self, code: Code) -> None:
        self._first(self.far if code is Code.CONNECTION_RESET else log.CAUSES[code or Code.CANCEL])
        super().on_reset(code)

    def on_lost(self) -> None:
        self._first(log.cause(self.link.error))
        super().on_lost()

    def _fail_softly(self, stream: Stream) -> None:
        self._first(self.near)
        super()._fail_softly(stream)

    def _part(self, code: Code) -> None:
        stream = self.stream
        super()._part(code)
        if stream is not None:
            self._first(self.near if code is Code.CONNECTION_RESET else log.CAUSES[code])
            self.on_parted(stream, self._cause, self._runtime.loop.time() - self._since)

    def _first(self, cause: str) -> None:
        """What comes later is what the first cause has led to."""
        self._cause = self._cause or cause
