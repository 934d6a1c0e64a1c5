"""What clients expose: the part that every way in shares (protocol.md section 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastrelay.mux.stream import Outlet, Stream
from fastrelay.net.notices import Notices
from fastrelay.networks import Networks

if TYPE_CHECKING:
    from fastrelay.roles.tunnel import Tunnel


class Service:
    """A service of a client that is here: for everybody, or for visitors in `visitors` (protocol.md section 5.1).

    This one is reached by its name alone; `since` is when it was exposed, in unix time.
    """

    __slots__ = ("_notices", "kind", "name", "number", "port", "since", "tunnel", "visitors")

    def __init__(
        self,
        tunnel: Tunnel,
        number: int,
        name: str,
        kind: str,
        since: float,
        notices: Notices,
        visitors: Networks | None = None,
    ) -> None:
        self.tunnel = tunnel
        self.number = number
        self.name = name
        self.kind = kind
        self.since = since
        self.visitors = visitors
        self.port = 0
        self._notices = notices

    @property
    def title(self) -> str:
        """For sentences."""
        return f"{self.name} of {self.tunnel.name}"

    def open(self, outlet: Outlet, visitor: str) -> Stream | None:
        """A stream for a visitor; None where there is no room for it, which is told."""
        return self.tunnel.open(self, outlet, visitor)

    def close(self) -> None:
        """Nobody comes in any more; those who are here go on."""

    def admits(self, host: str) -> bool:
        """Whether a visitor from this address may come."""
        return self.visitors is None or host in self.visitors

    def deny(self, visitor: str) -> None:
        """Tell of a visitor that was refused because it is not in the list."""
        tell_denied(self._notices, self.title, self.who(visitor))

    def take(self) -> Service | None:
        """Who serves the next visitor."""
        return self

    def parts(self) -> list[Service]:
        """All who serve it."""
        return [self]

    def who(self, visitor: str) -> dict[str, object]:
        """A visitor, for events."""
        return {
            "name": self.tunnel.name,
            "session": self.tunnel.label,
            "service": self.name,
            "port": self.port or None,
            "visitor": visitor,
        }


def tell_denied(notices: Notices, title: str, who: dict[str, object]) -> None:
    """Of a visitor who is not in the list of a service."""
    notices.say(
        f"visitors of {title}",
        "visitor.denied",
        f"Refused visitor {who['visitor']} of {title}: it is not in the list of visitors.",
        **who,
        rule="visitors",
    )
