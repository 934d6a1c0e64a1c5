"""An HTTP service that several clients serve: the stream of a visitor is the first one's that accepts it (protocol.md section 5.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastrelay.errors import Code
from fastrelay.front.http.pages import failed
from fastrelay.front.http.way import Behind
from fastrelay.roles.pools import Asking

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastrelay.errors import MessageError
    from fastrelay.mux.stream import Stream
    from fastrelay.net.link import Link
    from fastrelay.roles.pools import Member, Pool
    from fastrelay.roles.sites import User


class Pooled(Behind):
    """Equal to any other of the same pool: further requests of a connection stay with the client that has its stream."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @property
    def users(self) -> set[User]:
        """Told when any client of the pool withdraws: who waits for nothing opens another stream for its next request."""
        return self._pool.users

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pooled) and other._pool is self._pool

    def __hash__(self) -> int:
        return hash(self._pool)

    def search(
        self, visitor: str, found: Callable[[Stream, Link], None], failed: Callable[[MessageError], None]
    ) -> _Search:
        return _Search(self._pool, visitor, found, failed)


class _Search:
    """Asks one client after the other."""

    def __init__(
        self,
        pool: Pool,
        visitor: str,
        found: Callable[[Stream, Link], None],
        failed: Callable[[MessageError], None],
    ) -> None:
        self._found = found
        self._failed = failed
        self._asking = Asking(pool.runtime, pool, visitor, self._met, self._not_met)

    def look(self) -> None:
        self._asking.ask()

    def cancel(self) -> None:
        self._asking.cancel()

    def _met(self, member: Member, stream: Stream, stopped: bool) -> None:
        if stopped:  # it does not want to hear the request
            stream.reset(Code.CANCEL)
            self._failed(failed(Code.CANCEL))
        else:
            self._found(stream, member.tunnel.link)

    def _not_met(self, code: Code, cause: str) -> None:
        self._failed(failed(code))
