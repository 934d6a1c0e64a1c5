"""What every local door asks for: a stream to a named target, through whatever tunnel stands now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from fastrelay.dialling import MOST

if TYPE_CHECKING:
    from fastrelay.errors import Code
    from fastrelay.mux.stream import Outlet, Stream
    from fastrelay.net.link import Link


class Opener(Protocol):
    def open(self, outlet: Outlet, target: str, visitor: str) -> tuple[Stream, Link] | None:
        """A stream to `target` (protocol.md section 6.4) and its tunnel; None while there is no tunnel, or it takes no more.

        `outlet` hears of what becomes of it; `visitor` is told to the target's side.
        """

    def missed(self, target: str, visitor: str, code: Code) -> None:
        """A stream to `target` was refused, and the visitor could not be told why."""


class Through:
    """An opener for which every target is a place behind one client, which resolves names itself (protocol.md section 6.6)."""

    __slots__ = ("_client", "_opener")

    def __init__(self, opener: Opener, client: str) -> None:
        self._opener = opener
        self._client = client

    def open(self, outlet: Outlet, target: str, visitor: str) -> tuple[Stream, Link] | None:
        """The same for a place, HOST:PORT; None as well for one that is too long to be asked for."""
        through = self._through(target)
        return self._opener.open(outlet, through, visitor) if len(through.encode()) <= MOST else None

    def missed(self, target: str, visitor: str, code: Code) -> None:
        self._opener.missed(self._through(target), visitor, code)

    def _through(self, target: str) -> str:
        return f"{self._client}/{target}"
