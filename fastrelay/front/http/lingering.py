"""An edge that writes more, or less, than its stream has brought, and that ends on its own account."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastrelay.errors import Code
from fastrelay.net.edge import Edge

if TYPE_CHECKING:
    from fastrelay.mux.stream import Stream
    from fastrelay.net.link import Link
    from fastrelay.net.runtime import Runtime

LINGER_TIME: Final = 5.0
"""Seconds for a visitor to take more of its last answer, and then to end its connection."""
SMALL: Final = 16_384
"""Bytes of a body that are worth a copy, so that they leave with their head."""


class LingeringEdge(Edge):
    __slots__ = ("_extra",)

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime)
        self._extra = 0  # bytes in the backlog that the stream has not brought

    def join(self, stream: Stream, link: Link) -> None:
        self._extra = 0 if self._backlog is None else len(self._backlog)
        super().join(stream, link)

    def _emit(self, data: bytes | memoryview, taken: int) -> None:
        """Write what stands for so many bytes of the stream."""
        super().deliver(data if isinstance(data, memoryview) else memoryview(data))
        if self._backlog is not None:
            self._extra += len(data) - taken
            self._count()

    def on_writable(self) -> None:
        super().on_writable()
        if self._backlog is None:
            self._extra = 0
        else:
            self._count()
            self._linger()

    def _count(self) -> None:
        """Of the backlog what the stream has brought: it must not seem to have brought more, or its credit would go backwards."""
        if self.stream is not None and self._backlog is not None:
            self.stream.queued = max(0, len(self._backlog) - self._extra)

    def _end(self) -> None:
        super()._end()
        self._linger()

    def _output_over(self) -> None:
        super()._output_over()
        self._linger()

    def _linger(self) -> None:
        """Nothing follows what is still to be taken, and then read away: that has its time, from the last byte that was taken on."""
        if self._discarding and self.stream is None and self._fd >= 0:
            self._later(LINGER_TIME, lambda: self._give_up(Code.TIMEOUT))
