"""Whom a request is for: every spelling of Host has one meaning, decided here."""

from __future__ import annotations

import base64
from hashlib import sha256
from typing import cast

import pytest

from fastrelay.errors import Code, MessageError
from fastrelay.front.http.hosts import Hosts
from fastrelay.front.http.messages import Requests
from fastrelay.front.http.own import Own
from fastrelay.front.http.way import Way
from fastrelay.net.notices import Notices
from fastrelay.networks import Networks
from fastrelay.roles.directory import Directory
from fastrelay.roles.services import Service
from fastrelay.roles.sites import Site
from fastrelay.roles.tunnel import Tunnel

LOGIN = sha256(b"alice:s\xc3\xa9cret").digest()


class Played:
    """In place of what takes part: a directory, a tunnel, and who is told of refusals."""

    def __init__(self) -> None:
        self.name, self.label = "home", "s-1"
        self.said: list[str] = []

    def say(self, key: str, event: str, text: str, **fields: object) -> None:
        self.said.append(event)

    def site(self, name: str, visitors: tuple[str, ...] = (), login: bytes = b"") -> Site:
        networks = Networks(visitors) if visitors else None
        return Site(cast("Tunnel", self), 1, name, 0.0, cast("Notices", self), networks, login)

    def pool(self, name: str) -> None:
        """There is none."""

    def service(self, name: str) -> Service | Code:
        if name == "away":
            return Code.AWAY
        if name == "db":
            return Service(cast("Tunnel", self), 1, name, "private", 0.0, cast("Notices", self))
        sites = {
            "web": self.site("web"),
            "www": self.site("www"),  # the relay's own name wins
            "mine": self.site("mine", ("192.0.2.0/24", "2001:db8::/32")),
            "secret": self.site("secret", (), LOGIN),
        }
        return sites.get(name, Code.NO_SERVICE)


def ask(host: str, *fields: str, path: str = "/", domain: str = "home.example", visitor: str = "192.0.2.9") -> Way:
    """Where a request with this Host goes."""
    requests = Requests()
    requests.take_head(
        memoryview("\r\n".join((f"GET {path} HTTP/1.1", f"Host: {host}", *fields, "", "")).encode("latin-1"))
    )
    names = frozenset(("localhost", "relay.example", "www.home.example", *([domain] if domain else [])))
    played = Played()
    hosts = Hosts(domain, names, cast("Directory", played), Own())
    try:
        return hosts.route(requests.head(), visitor)
    except MessageError as error:
        error.add_note(" ".join(played.said))
        raise


def refused(
    host: str, *fields: str, path: str = "/", domain: str = "home.example", visitor: str = "192.0.2.9"
) -> MessageError:
    with pytest.raises(MessageError) as caught:
        ask(host, *fields, path=path, domain=domain, visitor=visitor)
    return caught.value


@pytest.mark.parametrize(
    "host",
    [
        "web.home.example",
        "WEB.Home.EXAMPLE",
        "web.home.example.",
        "web.home.example:80",
        "web.home.example:65535",
        "web.home.example.:8080",
    ],
)
def test_a_service_by_its_name(host: str) -> None:
    way = ask(host)
    assert isinstance(way.backend, Site) and way.backend.name == "web"
    assert way.host == b"" and not way.without, "Host is passed on as it came"


@pytest.mark.parametrize(
    "host",
    [
        "nobody.home.example",
        "db.home.example",  # no HTTP service
        "web.example",
        "web.home.example.evil.example",
        "a.web.home.example",
        "webhome.example",
        ".home.example",
        "web..home.example",
        "web.home.example..",
        "xn--wb-eja.home.example",
        "home.example.home.example",
        "-.home.example",
        "relay.example.home.example",
        "1.2.3",
    ],
)
def test_nobody_has_this_name(host: str) -> None:
    error = refused(host)
    assert error.status == 404 and error.text.isprintable()


@pytest.mark.parametrize(
    "host",
    [
        "w\xe4b.home.example",
        "web.home.example:x",
        "web home.example",
        "web.home.example/",
        "user@web.home.example",
        "[::1",
        "",
        "::1",
    ],
)
def test_what_is_no_host(host: str) -> None:
    assert refused(host).status == 400


def test_a_service_that_is_away() -> None:
    error = refused("away.home.example")
    assert error.status == 502 and "not connected" in error.text


@pytest.mark.parametrize(
    "host",
    [
        "home.example",
        "HOME.example.",
        "home.example:8080",
        "relay.example",
        "www.home.example",
        "localhost:80",
        "192.0.2.1",
        "192.0.2.1:80",
        "[2001:db8::1]",
        "[::1]:80",
    ],
)
def test_the_relay_itself(host: str) -> None:
    error = refused(host, path="/healthz")
    assert (error.status, error.text, error.plain) == (200, "ok", True)
    assert refused(host, path="/healthz?x").status == 200
    assert refused(host, path="/").status == 404
    assert refused(host, path="/healthz/").status == 404
    assert refused(host, path="//healthz").status == 404


def test_the_path_of_a_service_is_its_own() -> None:
    assert isinstance(ask("web.home.example", path="/healthz").backend, Site)


def test_without_a_domain_there_are_no_services() -> None:
    assert refused("web.home.example", domain="").status == 404
    assert refused("web.", domain="").status == 404
    assert refused("localhost", path="/healthz", domain="").status == 200


@pytest.mark.parametrize(
    ("visitor", "may"),
    [("192.0.2.7", True), ("192.0.3.7", False), ("2001:db8::1", True), ("2001:db9::1", False), ("", False)],
)
def test_a_list_of_visitors(visitor: str, may: bool) -> None:
    if may:
        assert isinstance(ask("mine.home.example", visitor=visitor).backend, Site)
    else:
        error = refused("mine.home.example", visitor=visitor)
        assert error.status == 403 and error.__notes__ == ["visitor.denied"]


def basic(pair: bytes, scheme: str = "Basic") -> str:
    return f"Authorization: {scheme} {base64.b64encode(pair).decode()}"


@pytest.mark.parametrize("scheme", ["Basic", "basic", "BASIC", "Basic  "])
def test_a_login(scheme: str) -> None:
    way = ask(
        "secret.home.example",
        basic("alice:sécret".encode(), scheme.strip())
        if scheme.strip() == scheme
        else basic("alice:sécret".encode(), scheme),
    )
    assert isinstance(way.backend, Site) and way.without == {b"authorization"}, "it is for the relay alone"
    assert not ask("web.home.example", basic(b"alice:x")).without, "that of others is passed on"


@pytest.mark.parametrize(
    "fields",
    [
        (),
        (basic(b"alice:secret"),),
        (basic(b"alice"),),
        (basic(b""),),
        (basic("alice:sécret".encode(), "Bearer"),),
        ("Authorization: Basic",),
        ("Authorization: Basic !!!",),
        ("Authorization: Basic YWxpY2U6c8OpY3JldA",),  # without its padding
        (basic("alice:sécret".encode()), basic("alice:sécret".encode())),
        ("Proxy-" + basic("alice:sécret".encode()),),
    ],
)
def test_no_login(fields: tuple[str, ...]) -> None:
    error = refused("secret.home.example", *fields)
    assert error.status == 401
    assert error.fields == 'WWW-Authenticate: Basic realm="secret", charset="UTF-8"\r\n'
