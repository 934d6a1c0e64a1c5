"""What a door reads in the head of a request: whether it is whole, and whose a connection is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrelay.net.heads import asks_for_tunnel, forwarded_for, head_size
from fastrelay.wire import MAX_HEAD

HEAD = b"GET /fastrelay HTTP/1.1\r\nHost: relay\r\n\r\n"


def test_a_head_is_waited_for() -> None:
    for size in range(len(HEAD)):
        assert head_size(HEAD[:size]) == size + 1
    assert head_size(HEAD) == head_size(HEAD + b"more") == len(HEAD)


@pytest.mark.parametrize("said", [b"\x16\x03\x01", b"\x10\x00\x00\x20", b" GET", b"\r\n", b"A" * (MAX_HEAD + 1)])
def test_what_cannot_become_a_head_is_not_waited_for(said: bytes) -> None:
    assert head_size(said) == len(said)


@pytest.mark.parametrize(
    ("fields", "address"),
    [
        ("", None),
        ("X-Forwarded-For: 192.0.2.7", "192.0.2.7"),
        ("x-forwarded-for:192.0.2.7", "192.0.2.7"),
        ("X-Forwarded-For: 10.0.0.1, 192.0.2.7", "192.0.2.7"),
        ("X-Forwarded-For: 10.0.0.1\r\nX-Forwarded-For: 10.0.0.2, 2001:db8::7", "2001:db8::7"),
        ("X-Forwarded-For: 192.0.2.7:51544", "192.0.2.7"),
        ("X-Forwarded-For: [2001:db8::7]:51544", "2001:db8::7"),
        ("X-Forwarded-For: unknown", None),
        ("X-Forwarded-For: 192.0.2.7, unknown", None),
        ("X-Forwarded-For: ", None),
        ("Y-X-Forwarded-For: 192.0.2.7", None),
    ],
)
def test_whose_a_connection_is(fields: str, address: str | None) -> None:
    assert forwarded_for(f"GET / HTTP/1.1\r\nHost: relay\r\n{fields}\r\n\r\n".encode()) == address


@pytest.mark.parametrize(
    ("line", "fields", "tunnel"),
    [
        ("GET /fastrelay HTTP/1.1", "Sec-WebSocket-Protocol: fastrelay.1", True),
        ("GET /fastrelay HTTP/1.1", "sec-websocket-protocol:chat, fastrelay.1", True),
        (
            "POST /fastrelay HTTP/1.0",
            "Sec-WebSocket-Protocol: fastrelay.1",
            True,
        ),  # which is told what is wrong with it
        ("GET /fastrelay/ HTTP/1.1", "Sec-WebSocket-Protocol: fastrelay.1", False),
        ("GET /fastrelay?x HTTP/1.1", "Sec-WebSocket-Protocol: fastrelay.1", False),
        ("GET /fastrelay HTTP/1.1", "Sec-WebSocket-Protocol: chat", False),
        ("GET /fastrelay HTTP/1.1", "Cookie: fastrelay.1", False),
        ("GET /fastrelay HTTP/1.1", "", False),
        ("/fastrelay", "Sec-WebSocket-Protocol: fastrelay.1", False),
    ],
)
def test_who_asks_for_a_tunnel(line: str, fields: str, tunnel: bool) -> None:
    assert asks_for_tunnel(f"{line}\r\nHost: relay\r\n{fields}\r\n\r\n".encode(), "/fastrelay") is tunnel


@given(st.binary(max_size=100))
def test_any_bytes(said: bytes) -> None:
    forwarded_for(b"GET / HTTP/1.1\r\nX-Forwarded-For: " + said + b"\r\n\r\n")
    asks_for_tunnel(said, "/fastrelay")
    assert 0 < head_size(said) <= len(said) + 1
