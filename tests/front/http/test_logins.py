"""Who asks: one Authorization, read in one way."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrelay.front.http.logins import basic, password, token
from fastrelay.front.http.messages import Fields


def login(user: str, secret: str) -> bytes:
    return b"Basic " + base64.b64encode(f"{user}:{secret}".encode())


@given(st.text(st.characters(exclude_characters=":", codec="utf-8")), st.text())
def test_user_and_password(user: str, secret: str) -> None:
    fields = Fields.of([(b"AUTHORIZATION", login(user, secret))])
    assert basic(fields) == f"{user}:{secret}".encode()
    assert password(fields) == secret


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ([], ""),
        ([(b"Authorization", b"Bearer fr1.a.b")], "fr1.a.b"),
        ([(b"authorization", b"bearer  fr1.a.b ")], "fr1.a.b"),
        ([(b"Authorization", login("any", "fr1.a.b"))], "fr1.a.b"),
        ([(b"Authorization", login("", "a:b"))], "a:b"),
        ([(b"Authorization", b"Bearer")], ""),
        ([(b"Authorization", b"Digest fr1.a.b")], ""),
        ([(b"Authorization", b"Basic !!!")], ""),
        ([(b"Authorization", b"Basic " + base64.b64encode(b"no colon"))], ""),
        ([(b"Authorization", b"Basic " + base64.b64encode(b"a:\xff"))], ""),
        ([(b"Authorization", b"Bearer a"), (b"Authorization", b"Bearer a")], ""),
        ([(b"Proxy-Authorization", b"Bearer a")], ""),
    ],
)
def test_the_token_that_is_shown(fields: list[tuple[bytes, bytes]], text: str) -> None:
    assert token(Fields.of(fields)) == text
