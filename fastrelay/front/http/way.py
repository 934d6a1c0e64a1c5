"""Where a request goes: what a visitor of the HTTP front asks, and who answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, Protocol

from fastrelay.roles.sites import User

if TYPE_CHECKING:
    from fastrelay.errors import MessageError
    from fastrelay.front.http.messages import Request
    from fastrelay.mux.stream import Outlet, Stream
    from fastrelay.net.link import Link

SAFE: Final = frozenset((b"GET", b"HEAD", b"OPTIONS"))
"""Methods of requests that are sent once more when the target ended an idle connection just then (RFC 9110, 9.2.2)."""


class Backend(Protocol):
    """Whoever serves a request: equal ones may serve the next on the same connection."""

    @property
    def users(self) -> set[User]:
        """Those who have a stream of it."""

    @property
    def link(self) -> Link: ...

    def open(self, outlet: Outlet, visitor: str) -> Stream | None:
        """A stream to it, None when there can be none now. `visitor` is told to the target's side."""


class Search(Protocol):
    """For a stream. It tells what it has found, or that there is nothing, once; unless `cancel` comes first."""

    def look(self) -> None: ...
    def cancel(self) -> None: ...


class Behind:
    """A backend behind a client, which has to be found and to accept first."""

    _users: ClassVar[set[User]] = set()

    @property
    def users(self) -> set[User]:
        """Those who have a stream of it. Unless a derived class does, nobody tells them anything: it withdraws by ending."""
        return self._users

    def search(
        self, visitor: str, found: Callable[[Stream, Link], None], failed: Callable[[MessageError], None]
    ) -> Search:
        raise NotImplementedError


class Raw(NamedTuple):
    """What a visitor is told who asked for the stream itself: that it has it now, or that it sent something before it was told."""

    switched: bytes
    hasty: bytes


Tell = Callable[["MessageError"], "MessageError"]
"""Puts a failure in the words of a door."""


def as_it_is(error: MessageError) -> MessageError:
    return error


class Way(NamedTuple):
    """The way of one request, and how its head is written: see `heads.request`. With `raw` nothing of it is passed on.

    `time` is for how many seconds the head of the answer is waited for, 0 for as long as for any. `tell` puts what goes wrong on the way in
    the words of this door.
    """

    backend: Backend | Behind
    request: Request
    host: bytes = b""
    without: frozenset[bytes] = frozenset()
    time: float = 0.0
    tell: Tell = as_it_is
    raw: Raw | None = None


class Asked(NamedTuple):
    """A request whose answer is not over."""

    method: bytes
    upgrade: bytes
    keep_alive: bool


Route = Callable[["Request", str], Way]
"""Decides where a request of a visitor goes, whose address (without port) it is told. Raises MessageError with what to answer instead."""
