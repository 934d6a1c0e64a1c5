"""Tokens that are shown whole, and the streams that somebody has by them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastrelay.auth import Token, Verifier, holds
from fastrelay.errors import Code, ProtocolError
from fastrelay.roles import keyring
from fastrelay.roles.keyring import Keyring
from fastrelay.state import ServerState
from fastrelay.state.tokens import new_token
from tests.support.grants import make_token, revoke
from tests.support.pair import Pair, Tap


@pytest.fixture
def state(tmp_path: Path) -> ServerState:
    made = ServerState.open(tmp_path / "r")
    made.close()
    return made


@pytest.fixture
def ring(state: ServerState) -> Iterator[Keyring]:
    loop = asyncio.new_event_loop()
    yield Keyring(loop, state, list, lambda: None)
    loop.close()


def why(ring: Keyring, text: str, now: float = 0.0) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        ring.bearer(text, now)
    assert caught.value.code is Code.UNAUTHORIZED
    return caught.value


def test_a_token_is_held_against_what_is_kept_of_it() -> None:
    one, other = new_token(), new_token()
    assert holds(one, Verifier.of(one))
    assert not holds(Token(one.key_id, other.secret), Verifier.of(one))
    assert not holds(one, None)
    assert not holds(one, Verifier(one.key_id, cert=bytes(32)))


def test_who_shows_a_token_has_its_key(ring: Keyring, state: ServerState) -> None:
    token = make_token(state.path, "me", expires=1000.0)
    assert ring.bearer(token.text(), 999.0).label == "me", "it was made just now"
    pinned = Token(token.key_id, token.secret, (bytes(32),))
    assert ring.bearer(pinned.text(), 0.0).label == "me", "its pins are for tunnels"
    assert why(ring, token.text(), 1000.0).fields["rule"] == "expires"


def test_what_is_no_valid_token(ring: Keyring, state: ServerState) -> None:
    token = make_token(state.path, "me")
    unknown = why(ring, new_token().text())
    wrong = why(ring, Token(token.key_id, bytes(32)).text())
    assert unknown.text == wrong.text == "the token is not valid on this relay"
    for text in ("", "fr1", "nonsense", token.text()[:-1], "\x00", "fr1." + "." * 5000):
        assert why(ring, text).text == "that is no token of fastrelay"
    revoke(state.path, "me")
    ring.refresh()
    assert why(ring, token.text()).text == unknown.text


def test_streams_end_with_their_token(ring: Keyring, state: ServerState) -> None:
    pair = Pair()
    one, other = make_token(state.path, "one"), make_token(state.path, "other")
    taps = []
    for token in (one, other):
        stream = pair.listener.session.open(tap := Tap(), 1, "192.0.2.7:1")
        assert stream is not None
        tap.stream = stream
        ring.lend(ring.bearer(token.text(), 0.0), stream)
        taps.append(tap)
    revoke(state.path, "one")
    ring.refresh()
    assert [tap.code for tap in taps] == [Code.UNAUTHORIZED, None]


def test_streams_that_are_over_are_forgotten(ring: Keyring, state: ServerState) -> None:
    pair = Pair()
    key = ring.bearer(make_token(state.path, "me").text(), time.time())
    for _ in range(20 * keyring._SWEEP_AT):
        stream = pair.listener.session.open(Tap(), 1, "192.0.2.7:1")
        assert stream is not None
        ring.lend(key, stream)
        stream.reset(Code.CANCEL)
        pair.pump()
    assert len(ring._loans) <= keyring._SWEEP_AT
