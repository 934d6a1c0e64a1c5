"""What a door reads in the head of a request: whether it is whole, and whose a connection is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrelay.net.heads import forwarded_for, head_size
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


@given(st.binary(max_size=100))
def test_any_bytes(said: bytes) -> None:
    forwarded_for(b"GET / HTTP/1.1\r\nX-Forwarded-For: " + said + b"\r\n\r\n")
    assert 0 < head_size(said) <= len(said) + 1
