"""The relay's own paths, on its own host names: what is asked of the relay itself, and not of a service."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fastrelay.errors import MessageError

if TYPE_CHECKING:
    from fastrelay.front.http.messages import Request
    from fastrelay.front.http.way import Way

Handler = Callable[["Request", str], "Way"]
"""Answers a request of a visitor (its address without port): with the way that it goes, or a MessageError."""


class Own:
    """A table of paths. One that ends in "/" is for all that is below it."""

    def __init__(self) -> None:
        self._handlers: dict[bytes, Handler] = {}
        self.add(b"/healthz", _healthy)

    def add(self, path: bytes, handler: Handler) -> None:
        self._handlers[path] = handler

    def __call__(self, request: Request, visitor: str) -> Way:
        """Raises MessageError."""
        path = request.target.partition(b"?")[0]
        handler = self._handlers.get(path) or self._handlers.get(path[: path.find(b"/", 1) + 1])
        if handler is None:
            raise MessageError(404, "This is a fastrelay relay, and there is nothing under this path.")
        return handler(request, visitor)


def _healthy(request: Request, visitor: str) -> Way:
    """For load balancers: whoever gets this answer has a relay that takes requests."""
    if request.method not in (b"GET", b"HEAD"):
        raise MessageError(405, "Only GET and HEAD are served here.", fields="Allow: GET, HEAD\r\n")
    raise MessageError(200, "ok", plain=True)
