"""What a ClientHello asks for: as OpenSSL says it, and as anybody might."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrelay.net.hello import NOTHING, Asked, asked


def said(host: str | None, protocols: list[str]) -> bytes:
    """What a client says first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if protocols:
        context.set_alpn_protocols(protocols)
    out = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=host).do_handshake()
    return out.read()


@pytest.mark.parametrize(
    ("host", "protocols", "found"),
    [
        ("Web.Home.Test", ["h2", "http/1.1"], Asked("web.home.test", (b"h2", b"http/1.1"))),
        ("relay", ["fastrelay/1"], Asked("relay", (b"fastrelay/1",))),
        ("127.0.0.1", [], NOTHING),  # addresses are not named
        (None, ["http/1.1"], Asked("", (b"http/1.1",))),
    ],
)
def test_what_openssl_asks_for(host: str | None, protocols: list[str], found: Asked) -> None:
    hello = said(host, protocols)
    assert asked(hello) == found
    assert asked(hello + b"more") == found
    for size in range(len(hello) - 1):
        assert asked(hello[:size]) == NOTHING


@given(st.data())
def test_a_broken_one(data: st.DataObject) -> None:
    hello = bytearray(said("web.home.test", ["h2"]))
    for _ in range(data.draw(st.integers(1, 4))):
        hello[data.draw(st.integers(0, len(hello) - 1))] = data.draw(st.integers(0, 255))
    host, protocols = asked(bytes(hello))
    assert host.isascii() and len(protocols) < len(hello)


@given(st.binary(max_size=200))
def test_any_bytes(raw: bytes) -> None:
    asked(raw)
    asked(b"\x16\x03\x01\x00\xff\x01\x00\x00\xfb" + raw)
