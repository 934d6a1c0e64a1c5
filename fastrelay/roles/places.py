"""Places that a client dials for others: found by policy and directory, as services are (protocol.md section 6.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastrelay.config import read_through
from fastrelay.dialling import Place
from fastrelay.errors import Code
from fastrelay.mux.stream import Outlet, Stream
from fastrelay.policy import Key

if TYPE_CHECKING:
    from fastrelay.roles.directory import Directory
    from fastrelay.roles.tunnel import Tunnel


class Distant:
    """A place behind a client that is here: for visitors what a service of it is."""

    __slots__ = ("name", "tunnel")

    def __init__(self, tunnel: Tunnel, place: Place) -> None:
        self.tunnel = tunnel
        self.name = str(place)

    def open(self, outlet: Outlet, visitor: str) -> Stream | None:
        return self.tunnel.open_through(self.name, outlet, visitor)

    def who(self, visitor: str) -> dict[str, object]:
        """A visitor, for events."""
        return {
            "name": self.tunnel.name,
            "session": self.tunnel.label,
            "visitor": visitor,
        }


def find(directory: Directory, key: Key, text: str) -> Distant | tuple[Code, str]:
    """What a client with this key names as CLIENT/HOST:PORT; or the code that it is told, and the rule that said no, "" for none."""
    try:
        client, place = read_through(text)
    except ValueError:
        return Code.NO_SERVICE, ""
    if no := key.refuse_dial(client, place):
        return Code.DENIED, no.rule
    found = directory.client(client)
    return (found, "") if isinstance(found, Code) else Distant(found, place)
