"""Where a request goes: what a visitor of the HTTP front asks, and who answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from fastrelay.roles.sites import User

if TYPE_CHECKING:
    from fastrelay.front.http.messages import Request
    from fastrelay.mux.stream import Outlet, Stream
    from fastrelay.net.link import Link


class Backend(Protocol):
    """Whoever serves a request: equal ones may serve the next on the same connection."""

    @property
    def users(self) -> set[User]:
        """Those who have a stream of it."""

    @property
    def link(self) -> Link: ...

    def open(self, outlet: Outlet, visitor: str) -> Stream | None:
        """A stream to it, None when there can be none now. `visitor` is told to the target's side."""


@dataclass(frozen=True, slots=True)
class Way:
    """The way of one request, and how its head is written: see `heads.request`."""

    backend: Backend
    request: Request
    host: bytes = b""
    without: frozenset[bytes] = frozenset()


Route = Callable[["Request", str], Way]
"""Decides where a request of a visitor goes, whose address (without port) it is told. Raises MessageError with what to answer instead."""
