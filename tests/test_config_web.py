"""What a person types of HTTP services and the front, and what is refused."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from fastrelay.config import PortRange, Public, ServerConfig, assign_logins, parse_expose, parse_public
from fastrelay.errors import UsageError


@pytest.mark.parametrize(
    ("spec", "name", "target", "full"),
    [
        ("web=http://8000", "web", "localhost:8000", "web=http://localhost:8000"),
        ("http://8000", "http-8000", "localhost:8000", "http-8000=http://localhost:8000"),
        ("web=HTTP://10.0.0.5:80/", "web", "10.0.0.5:80", "web=http://10.0.0.5:80"),
        ("http://[::1]:80", "http-80", "[::1]:80", "http-80=http://[::1]:80"),
        ("web=http://unix:/run/x.sock", "web", "unix:/run/x.sock", "web=http://unix:/run/x.sock"),
        (
            "http://unix:/run/my_web.sock",
            "unix-my-web-sock",
            "unix:/run/my_web.sock",
            "unix-my-web-sock=http://unix:/run/my_web.sock",
        ),
    ],
)
def test_expose(spec: str, name: str, target: str, full: str) -> None:
    exposure = parse_expose(spec)
    assert (exposure.name, exposure.kind, exposure.port, str(exposure.target)) == (name, "http", 0, target)
    assert str(exposure) == full and parse_expose(full) == exposure


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("web=http://80:8000", "has no public port"),
        ("web=https://8000", "'https' is not known"),
        ("my.web=http://8000", "part of a host name"),
        ("my_web=http://8000", "part of a host name"),
        ("web-=http://8000", "part of a host name"),
        ("web=http://localhost:8000/path", "is not a port"),
        ("web=http://localhost", "port of the local service"),
        ("web=http://", "port of the local service"),
    ],
)
def test_expose_refused(spec: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse_expose(spec)


def test_logins() -> None:
    found = assign_logins(["alice:s:e=cret", "web=bob:x"], ["web", "api"])
    assert found == {"web": sha256(b"bob:x").digest(), "api": sha256(b"alice:s:e=cret").digest()}
    assert assign_logins(["web=bob:é"], ["web", "api"]) == {"web": sha256("bob:é".encode()).digest()}
    assert assign_logins([], ["web"]) == {}


@pytest.mark.parametrize("spec", ["secret", ":secret", "alice:", "", "web=:secret", "web=secret", "other=a:secret"])
def test_logins_refused(spec: str) -> None:
    with pytest.raises(UsageError) as caught:
        assign_logins([spec], ["web"])
    assert "secret" not in str(caught.value)


def test_a_login_is_given_once_and_to_http() -> None:
    with pytest.raises(UsageError, match="twice for the service 'web'"):
        assign_logins(["web=a:b", "web=a:c"], ["web"])
    from dataclasses import replace

    with pytest.raises(UsageError, match="only HTTP services"):
        replace(parse_expose("ssh=22"), login=bytes(32))
    assert "login" not in repr(replace(parse_expose("web=http://80"), login=bytes(32)))


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("http://web.home.example", "web.home.example", 80),
        ("https://web.home.example", "web.home.example", 443),
        ("https://web.home.example:8443", "web.home.example", 8443),
    ],
)
def test_public(url: str, host: str, port: int) -> None:
    assert parse_public(url) == Public(url, host, port)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "web.home.example",
            "ftp://web",
            "http://",
            "http://web/",
            "http://web.example:0",
            "http://web.example:65536",
        ),
        *(
            "http://web .example",
            "http://WEB.example",
            "http://web.example:80x",
            "http://u@web",
            "http://$(reboot)",
            "http://a\n.b",
            "http://a..b",
        ),
    ],
)
def test_what_a_relay_may_not_say(url: str) -> None:
    with pytest.raises(ValueError):
        parse_public(url)


def server(**web: Any) -> ServerConfig:
    return ServerConfig("::", 7443, PortRange(20000, 20999), "", Path("state"), None, None, False, **web)


CERT = {"http_cert": Path("a.crt"), "http_key": Path("a.key")}
HTTP, HTTPS = {"http": ("::", 80)}, {"https": ("::", 443)}


@pytest.mark.parametrize(
    "web",
    [
        {},
        HTTP,
        HTTP | {"domain": "home.example"},
        HTTPS | CERT,
        HTTP | HTTPS | CERT | {"domain": "a.b.example"},
        HTTP | {"domain": "lan"},
    ],
)
def test_fronts(web: dict[str, Any]) -> None:
    server(**web)


@pytest.mark.parametrize(
    ("web", "why"),
    [
        (HTTPS, "--http-cert"),
        (CERT, "--https"),
        (HTTP | CERT, "--https"),
        ({"domain": "home.example"}, "--http or --https"),
        (HTTP | {"domain": "192.0.2.1"}, "not a name in DNS"),
        (HTTP | {"domain": "::1"}, "not a name in DNS"),
        (HTTP | {"domain": "a_b.example"}, "not a name in DNS"),
        (HTTP | {"domain": "*.example"}, "is not a host name"),
        (HTTP | {"domain": "x" * 63 + "." + "y" * 63 + "." + "z" * 63 + ".example"}, "is not a host name"),
    ],
)
def test_fronts_refused(web: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        server(**web)
