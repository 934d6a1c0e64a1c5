"""Visitors of the HTTP front of whom the audit log is told: of each stream that one gets, its beginning and its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from fastrelay.front.http.seeker import Seeker
from fastrelay.front.http.tls import HttpsVisitor
from fastrelay.roles.sites import Site
from fastrelay.roles.visitors import ToldVisitor

if TYPE_CHECKING:
    from fastrelay.mux.stream import Stream
    from fastrelay.roles.tunnel import Tunnel


class _Told(ToldVisitor):
    """Mixed with a visitor. A stream has the client that it goes through, and the service if it is one's."""

    def on_joined(self, stream: Stream) -> None:
        visitor = cast("Seeker", self)
        service, client = visitor._backend, cast("Tunnel", stream.session.owner)
        title = client.title
        who: dict[str, object] = {"name": client.name, "session": client.label, "visitor": visitor._address}
        if isinstance(service, Site):
            title, who = service.title, service.who(visitor._address)
        self._cause = ""
        self.introduce(title, who, client.totals)
        super().on_joined(stream)


class ToldVisitorHttp(_Told, Seeker):
    """Without TLS."""


class ToldVisitorHttps(_Told, HttpsVisitor):
    """With TLS."""
