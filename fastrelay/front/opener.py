"""What every local door asks for: a stream to a named target, through whatever tunnel stands now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

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
