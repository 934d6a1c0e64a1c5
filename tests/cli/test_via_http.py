"""`fastrelay forward --via-http`: what is typed, and what it says."""

from __future__ import annotations

import click
import pytest

from fastrelay.auth import Token
from fastrelay.cli import cli
from fastrelay.config import Front, parse_front
from fastrelay.errors import UsageError

TOKEN = Token("k3yID_-0", bytes(32)).text()
PLACE = "home/10.0.0.5:5432"
URL = "https://relay.example.com"


@pytest.mark.parametrize(
    ("text", "front"),
    [
        ("https://relay.example.com", Front("relay.example.com", 443, True)),
        ("HTTPS://Relay.Example.com:8443/", Front("relay.example.com", 8443, True)),
        ("https://[2001:db8::7]/a/b/", Front("2001:db8::7", 443, True, "/a/b")),
        ("http://127.0.0.1:8080", Front("127.0.0.1", 8080, False)),
        ("http://localhost", Front("localhost", 80, False)),
    ],
)
def test_the_url_of_a_front(text: str, front: Front) -> None:
    assert parse_front(text) == front


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("relay.example.com", "begins with https:// or http://"),
        ("ftp://relay.example.com", "begins with https:// or http://"),
        ("https://", "the host is missing"),
        ("https://relay.example.com:0", "is not a port"),
        ("https://relay.example.com:70000", "is not a port"),
        ("https://relay.example.com/a?b", "The path '/a?b' is not understood"),
        ("https://b\xfccher.example", "is not a host name"),
        ("http://relay.example.com", "in plaintext"),
    ],
)
def test_what_is_no_such_url(text: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_front(text)
    assert why in str(caught.value) and str(caught.value).endswith(".")


def test_a_password_in_the_url_is_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        parse_front("https://me:secret@relay.example.com")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "token", "why"),
    [
        ((URL,), TOKEN, "It takes NAME and, if you like, LOCAL."),
        ((URL, PLACE, "15432", "more"), TOKEN, "It takes NAME and, if you like, LOCAL."),
        ((URL, "db"), TOKEN, "Over HTTP no private service is reached, such as 'db': name CLIENT/HOST:PORT."),
        ((URL, "home/10.0.0.5"), TOKEN, "The place 'home/10.0.0.5' is not understood"),
        ((URL, PLACE), None, "There is no token"),
        ((URL, PLACE), "nonsense", "The token is not a token of fastrelay"),
        ((URL, PLACE, "--client-cert", "x", "--client-key", "y"), TOKEN, "A call over HTTP shows a token only"),
        (("http://relay.example.com", PLACE), TOKEN, "in plaintext"),
    ],
)
def test_what_is_refused(monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], token: str | None, why: str) -> None:
    monkeypatch.delenv("FASTRELAY_TOKEN_FILE", raising=False)
    monkeypatch.delenv("FASTRELAY_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("FASTRELAY_TOKEN", token)
    with pytest.raises((UsageError, click.UsageError)) as caught:
        cli.main(["forward", "--via-http", *words], standalone_mode=False)
    assert why in str(caught.value)
    assert token is None or token not in str(caught.value)
