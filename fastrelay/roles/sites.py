"""Services with a host name, which the HTTP front of a relay leads to (protocol.md section 5.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from fastrelay import wire
from fastrelay.auth import read_login
from fastrelay.config import LABEL
from fastrelay.net.notices import Notices
from fastrelay.networks import Networks
from fastrelay.policy import Key
from fastrelay.roles.registry import Offer
from fastrelay.roles.services import Service

if TYPE_CHECKING:
    from fastrelay.mux.stream import Outlet, Stream
    from fastrelay.net.link import Link
    from fastrelay.roles.tunnel import Tunnel


class Sites:
    """Where services are under `domain`: `scheme` and `port` are those of the front that visitors should use."""

    def __init__(self, domain: str, scheme: str, port: int, own: frozenset[str]) -> None:
        self.domain = domain
        self.own = own
        """Host names of the relay itself, which no service gets."""
        self._scheme = scheme
        self._port = "" if port == {"http": 80, "https": 443}[scheme] else f":{port}"

    def host(self, name: str) -> str:
        """Of a service; "" where it can have none."""
        host = f"{name}.{self.domain}"
        return host if LABEL.fullmatch(name) and host not in self.own else ""

    def url(self, name: str) -> str:
        """What visitors type."""
        return f"{self._scheme}://{self.host(name)}{self._port}"


def refuse_site(sites: Sites | None, request: wire.Expose, key: Key) -> Offer | None:
    """Why a client with this key may not have an HTTP service."""
    if sites is None:
        return Offer((), "no-front", "this relay serves no HTTP; start it with --http and --domain")
    host = sites.host(request.name)
    if not host:
        return Offer((), "bad-request", f"{request.name!r} cannot be the first part of a host name here")
    if refusal := key.refuse_host(host):
        return Offer((), "not-granted", refusal.text, refusal.rule)
    try:
        read_login(request.login)
    except ValueError as error:
        return Offer((), "bad-request", f"the login is wrong: {error}")
    return None


class User(Protocol):
    def on_withdrawn(self) -> None:
        """The service takes nothing new: streams on which nothing is under way are to end."""


class Site(Service):
    """One HTTP service. `login` is the SHA-256 of the `user:password` that visitors must show, b"" for none."""

    __slots__ = ("login", "users")

    def __init__(
        self,
        tunnel: Tunnel,
        number: int,
        name: str,
        since: float,
        notices: Notices,
        visitors: Networks | None,
        login: bytes,
    ) -> None:
        super().__init__(tunnel, number, name, "http", since, notices, visitors)
        self.login = login
        self.users: set[User] = set()

    def close(self) -> None:
        for user in list(self.users):
            user.on_withdrawn()

    @property
    def link(self) -> Link:
        return self.tunnel.link

    def open(self, outlet: Outlet, visitor: str) -> Stream | None:
        """A stream to it, None when the client takes no more; `visitor` is an address with a port."""
        return self.tunnel.open(self, outlet, visitor)
