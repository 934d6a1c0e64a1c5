"""What clients expose: the part that every way in shares (protocol.md section 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

    def close(self) -> None:
        """Nobody comes in any more; those who are here go on."""

    def admits(self, host: str) -> bool:
        """Whether a visitor from this address may come."""
        return self.visitors is None or host in self.visitors

    def deny(self, visitor: str) -> None:
        """Tell of a visitor that was refused because it is not in the list."""
        tunnel, who = self.tunnel, self.who(visitor)
        self._notices.say(
            f"visitors of {self.name} of {tunnel.name}",
            "visitor.denied",
            f"Refused visitor {visitor} of {self.name} of {tunnel.name}: it is not in the list of visitors.",
            **who,
            rule="visitors",
        )

    def who(self, visitor: str) -> dict[str, object]:
        """A visitor, for events."""
        return {
            "name": self.tunnel.name,
            "session": self.tunnel.label,
            "service": self.name,
            "port": self.port or None,
            "visitor": visitor,
        }
