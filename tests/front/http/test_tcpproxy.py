"""The head of POST /tcpproxy."""

from __future__ import annotations

import pytest

from fastrelay.errors import MessageError
from fastrelay.front.http import tcpproxy
from fastrelay.front.http.messages import Fields, Request

Field = tuple[bytes, bytes]
PORT: Field = (b"X-Target-Port", b"22")


def head(*fields: Field, version: str = "1.1") -> Request:
    return Request(b"POST", b"/tcpproxy", version, Fields.of(fields), b"relay.example", b"", True)


def refusal(*fields: Field, version: str = "1.1") -> tuple[int, str]:
    with pytest.raises(MessageError) as caught:
        tcpproxy.target(head(*fields, version=version))
    return caught.value.status, caught.value.text


@pytest.mark.parametrize(
    ("fields", "target"),
    [
        ((PORT,), "127.0.0.1:22"),
        (((b"x-target-port", b"65535"),), "127.0.0.1:65535"),
        (((b"X-TARGET-PORT", b"00022"),), "127.0.0.1:22"),
        ((PORT, (b"X-Target-Host", b"10.0.0.5")), "10.0.0.5:22"),
        ((PORT, (b"X-Target-Host", b"::1")), "[::1]:22"),
        ((PORT, (b"X-Target-Host", b"[::1]")), "[::1]:22"),
        ((PORT, (b"X-Target-Host", b"DB.example")), "db.example:22"),
    ],
)
def test_the_target(fields: tuple[Field, ...], target: str) -> None:
    assert tcpproxy.target(head(*fields)) == target


@pytest.mark.parametrize(
    "ports",
    [
        (),
        (b"",),
        (b"0",),
        (b"-1",),
        (b"65536",),
        (b"70000",),
        (b"ssh",),
        (b"2 2",),
        (b"2_2",),
        (b"\xb2",),
        (b"+22",),
        (b"22", b"22"),
    ],
)
def test_a_port_that_is_none(ports: tuple[bytes, ...]) -> None:
    assert refusal(*((b"X-Target-Port", port) for port in ports)) == (400, "invalid or missing X-Target-Port")


@pytest.mark.parametrize("hosts", [(b"",), (b"a b",), (b"\xff",), (b"x:22",), (b"a", b"a")])
def test_a_host_that_is_none(hosts: tuple[bytes, ...]) -> None:
    assert refusal(PORT, *((b"X-Target-Host", host) for host in hosts)) == (400, "invalid X-Target-Host")


def test_another_version_comes_before_the_port() -> None:
    assert refusal(version="1.0") == (500, "unexpected HTTP/1.0 request")


@pytest.mark.parametrize("name", [b"X-Buildlet-Proxy", b"X-Fastrelay-Client"])
def test_the_client(name: bytes) -> None:
    assert tcpproxy.client(Fields.of([(name, b"home")])) == "home"


def test_two_names_of_one_client_are_one() -> None:
    assert tcpproxy.client(Fields.of([(b"X-Buildlet-Proxy", b"home"), (b"X-Fastrelay-Client", b"home")])) == "home"


@pytest.mark.parametrize("fields", [[], [(b"X-Buildlet-Proxy", b"a"), (b"X-Fastrelay-Client", b"b")]])
def test_a_client_that_nobody_can_tell(fields: list[Field]) -> None:
    with pytest.raises(MessageError) as caught:
        tcpproxy.client(Fields.of(fields))
    assert caught.value.status == 400
