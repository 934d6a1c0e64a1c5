"""fastrelay.auth: both sides of the handshake, its vector in protocol.md section 14, and everything that must be refused."""

from __future__ import annotations

import base64
import contextlib
import functools
import gc
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrelay import wire
from fastrelay.auth import (
    ClientLogin,
    RelayLogin,
    Token,
    Verifier,
    client_key,
    client_proof,
    relay_proof,
    server_key,
    transcript,
)
from fastrelay.errors import Code, ProtocolError, UsageError

PROTOCOL = (Path(__file__).resolve().parent.parent / "protocol.md").read_text(encoding="utf-8")
TOKEN = Token("k3yID_-0", bytes(range(32)), (b"p" * 32,))
SEED = b"seed" * 8
BINDING = b"b" * 32

key_ids = st.text("ABCXYZabcxyz0189_-", min_size=8, max_size=8)
secrets = st.binary(min_size=32, max_size=32)
tokens = st.builds(Token, key_ids, secrets, st.lists(secrets, max_size=2).map(tuple))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def client(
    token: Token = TOKEN,
    *,
    name: str = "home",
    instance: str = "inst-1",
    binding: bytes | None = BINDING,
    nonce: bytes = b"c" * 32,
    settings: wire.Settings | None = None,
    agent: str = "test/1",
) -> ClientLogin:
    return ClientLogin(token, name, instance, binding, nonce, settings or wire.Settings(), agent)


def relay(
    *known: Token, binding: bytes | None = BINDING, nonce: bytes = b"s" * 32, settings: wire.Settings | None = None
) -> RelayLogin:
    verifiers = {token.key_id: Verifier.of(token) for token in known or (TOKEN,)}
    return RelayLogin(verifiers.get, SEED, binding, nonce, settings or wire.Settings(), "relay/1")


def refused(code: Code, step: Callable[[], object]) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        step()
    assert caught.value.code is code
    return caught.value


def changed(payload: bytes, **members: Any) -> bytes:
    """A JSON payload with other members."""
    return json.dumps(json.loads(payload) | members).encode()


# --- the vector of protocol.md section 14 ------------------------------------------------------------------------------


def vector() -> dict[str, str]:
    table = PROTOCOL[PROTOCOL.index("Proof, with `binding` = `none`:") : PROTOCOL.index("Token: key id")]
    rows = re.findall(r"^\| (\S+) \| (.+) \|$", table, re.MULTILINE)
    return {name: value for name, value in rows if name != "name" or value != "value"}


def test_vector() -> None:
    row = vector()
    secret = bytes.fromhex(row["secret"])
    verifier = Verifier.of(Token(row["key_id"], secret))
    t = transcript(
        row["HELLO_c"].encode(), row["HELLO_s"].encode(), row["key_id"], row["name"], row["instance"], binding=None
    )
    assert client_key(secret).hex() == row["client_key"]
    assert verifier.stored_key.hex() == row["stored_key"]
    assert verifier.server_key.hex() == server_key(secret).hex() == row["server_key"]
    assert t.hex() == row["t"]
    assert client_proof(secret, t).hex() == row["AUTH.proof"]
    assert relay_proof(server_key(secret), t).hex() == row["WELCOME.proof"]


def test_vector_hellos_are_what_the_logins_say() -> None:
    row = vector()
    one = client(binding=None, agent="vector/1")
    assert json.loads(one.hello()) == json.loads(row["HELLO_c"])
    other = relay(binding=None)
    assert json.loads(changed(other.hello(one.hello()), agent="vector/1")) == json.loads(row["HELLO_s"])


def test_vector_token() -> None:
    text = re.search(r"^    (fr1\.\S+)$", PROTOCOL, re.MULTILINE)
    assert text is not None
    assert Token.parse(text[1]) == TOKEN
    assert TOKEN.text() == text[1]


# --- a login -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binding", [BINDING, None])
def test_login(binding: bytes | None) -> None:
    mine, theirs = wire.Settings(max_data=20_000), wire.Settings(early=0, max_streams=7)
    one = client(binding=binding, settings=mine)
    other = relay(binding=binding, settings=theirs)
    auth = other.auth(one.auth(other.hello(one.hello())))
    welcome = one.welcome(other.welcome("s-1", "relay.example.com"))
    assert (auth.key_id, auth.name, auth.instance) == ("k3yID_-0", "home", "inst-1")
    assert (welcome.session, welcome.host) == ("s-1", "relay.example.com")
    assert (other.peer.settings, other.peer.agent) == (mine, "test/1")
    assert (one.peer.settings, one.peer.agent) == (theirs, "relay/1")


def test_host_may_be_left_out() -> None:
    one, other = client(), relay()
    other.auth(one.auth(other.hello(one.hello())))
    payload = other.welcome("s-1", "")
    assert b"host" not in payload
    assert one.welcome(payload).host == ""


@given(tokens, tokens, secrets, secrets)
def test_login_of_any_token_among_others(token: Token, another: Token, nonce_c: bytes, nonce_s: bytes) -> None:
    one, other = client(token, nonce=nonce_c), relay(another, token, nonce=nonce_s)
    other.auth(one.auth(other.hello(one.hello())))
    one.welcome(other.welcome("s", ""))


def test_unknown_features_and_members_are_ignored() -> None:
    one, other = client(), relay()
    hello = changed(one.hello(), features=["warp"], colour="red", versions=[1, 9])
    assert other.hello(hello)
    assert other.peer.features == ["warp"]


def test_a_long_agent_is_cut() -> None:
    one, other = client(agent="x" * 100), relay()
    other.hello(one.hello())
    assert other.peer.agent == "x" * 64


# --- a client that must not come in ------------------------------------------------------------------------------------


def test_wrong_secret_and_unknown_id_are_the_same() -> None:
    seen = set()
    for token in (Token(TOKEN.key_id, b"x" * 32), Token("unknown0", TOKEN.secret)):
        one, other = client(token), relay()
        payload = one.auth(other.hello(one.hello()))
        error = refused(Code.UNAUTHORIZED, functools.partial(other.auth, payload))
        assert "fastrelay token show" in error.text
        seen.add(wire.pack_goaway(0, error.code, error.text))
    assert len(seen) == 1


@pytest.mark.slow
def test_wrong_secret_and_unknown_id_take_the_same_time() -> None:
    """20,000 of each, in turn: the 99.9 % bands of their medians (by order statistics) are within a microsecond of each other."""
    number = 20_000
    verifiers = {token.key_id: Verifier.of(token) for token in (TOKEN, Token("other_id", bytes(32)))}
    random = Random(1)
    hello = client().hello()
    taken: dict[str, list[int]] = {TOKEN.key_id: [], "unknown_": []}
    gc.disable()
    try:
        for _ in range(number):
            for key_id in random.sample(sorted(taken), 2):
                login = RelayLogin(verifiers.get, SEED, BINDING, random.randbytes(32), wire.Settings(), "relay/1")
                login.hello(hello)
                proof = base64.urlsafe_b64encode(random.randbytes(32)).rstrip(b"=").decode()
                auth = wire.pack_json(wire.Auth(key_id=key_id, proof=proof, name="home", instance="inst-1"))
                start = time.perf_counter_ns()
                with contextlib.suppress(ProtocolError):
                    login.auth(auth)
                taken[key_id].append(time.perf_counter_ns() - start)
    finally:
        gc.enable()
    known, unknown = (sorted(times) for times in taken.values())
    rank = round(3.29 * number**0.5 / 2)
    low, high = number // 2 - rank, number // 2 + rank
    print(
        f"medians {known[number // 2] / 1000:.2f} and {unknown[number // 2] / 1000:.2f} µs, "
        f"the difference is from {known[low] - unknown[high]} to {known[high] - unknown[low]} ns"
    )
    assert known[low] - unknown[high] > -1000 and known[high] - unknown[low] < 1000


def test_the_made_up_keys_of_an_unknown_id_let_nobody_in() -> None:
    """Even who knows the seed, and so the made-up keys, is refused: there is no verifier."""
    one, other = client(), RelayLogin(lambda _: None, SEED, BINDING, b"s" * 32, wire.Settings(), "relay/1")
    payload = one.auth(other.hello(one.hello()))
    refused(Code.UNAUTHORIZED, lambda: other.auth(payload))


@pytest.mark.parametrize("proof", ["", "x", "A" * 43, "A" * 44, "+" * 43, "é" * 43, "=" * 43])
def test_malformed_proof(proof: str) -> None:
    one, other = client(), relay()
    payload = changed(one.auth(other.hello(one.hello())), proof=proof)
    refused(Code.UNAUTHORIZED, lambda: other.auth(payload))


@pytest.mark.parametrize("key_id", ["", "k", "é" * 8, "k3yID_-0 ", "x" * 3000])
def test_malformed_key_id_is_an_unknown_one(key_id: str) -> None:
    one, other = client(), relay()
    payload = changed(one.auth(other.hello(one.hello())), key_id=key_id)
    refused(Code.UNAUTHORIZED, lambda: other.auth(payload))


def test_replay() -> None:
    """AUTH of one login is worth nothing in another, whichever side's nonce is new."""
    one, other = client(), relay()
    hello = one.hello()
    recorded = one.auth(other.hello(hello))
    other.auth(recorded)
    again = relay(nonce=b"t" * 32)
    again.hello(hello)
    refused(Code.UNAUTHORIZED, lambda: again.auth(recorded))
    fresh = relay()
    fresh.hello(client(nonce=b"d" * 32).hello())
    refused(Code.UNAUTHORIZED, lambda: fresh.auth(recorded))


@pytest.mark.parametrize(
    "members",
    [{"settings": {"max_data": 16384}}, {"agent": "other/1"}, {"features": ["x"]}, {"versions": [1, 2]}, {"x": 1}],
)
def test_changed_hello_of_the_client(members: dict[str, Any]) -> None:
    one, other = client(), relay()
    payload = one.auth(other.hello(changed(one.hello(), **members)))
    refused(Code.UNAUTHORIZED, lambda: other.auth(payload))


@pytest.mark.parametrize("members", [{"settings": {"max_data": 16384}}, {"agent": "other/1"}, {"features": ["x"]}])
def test_changed_hello_of_the_relay(members: dict[str, Any]) -> None:
    one, other = client(), relay()
    payload = one.auth(changed(other.hello(one.hello()), **members))
    refused(Code.UNAUTHORIZED, lambda: other.auth(payload))


@pytest.mark.parametrize("members", [{"name": "work"}, {"instance": "inst-2"}])
def test_changed_auth(members: dict[str, Any]) -> None:
    one, other = client(), relay()
    payload = changed(one.auth(other.hello(one.hello())), **members)
    refused(Code.UNAUTHORIZED, lambda: other.auth(payload))


def test_name_and_instance_cannot_be_shifted_into_each_other() -> None:
    one, other = client(name="ab", instance="c"), relay()
    payload = changed(one.auth(other.hello(one.hello())), name="a", instance="bc")
    refused(Code.UNAUTHORIZED, lambda: other.auth(payload))


@pytest.mark.parametrize(
    ("seen", "own", "words"),
    [
        (b"x" * 32, BINDING, "sees another certificate"),
        (None, BINDING, "leave out --behind-proxy"),
        (BINDING, None, "connect with wss:// and --behind-proxy"),
    ],
)
def test_other_binding(seen: bytes | None, own: bytes | None, words: str) -> None:
    error = refused(Code.UNAUTHORIZED, lambda: relay(binding=own).hello(client(binding=seen).hello()))
    assert words in error.text


def test_binding_that_was_changed_on_the_way() -> None:
    """Who ends TLS in the middle and corrects the binding in HELLO is betrayed by the proof."""
    one, other = client(binding=b"x" * 32), relay()
    right = json.loads(client().hello())["binding"]
    payload = one.auth(other.hello(changed(one.hello(), binding=right)))
    refused(Code.UNAUTHORIZED, lambda: other.auth(payload))


@pytest.mark.parametrize("name", ["A", "-a", ".a", "a b", "ä", "a" * 64, "a\n"])
def test_name_in_auth(name: str) -> None:
    one, other = client(name=name), relay()
    payload = one.auth(other.hello(one.hello()))
    refused(Code.PROTOCOL, lambda: other.auth(payload))


def test_a_client_that_serves_nothing_has_no_name() -> None:
    one, other = client(name=""), relay()
    auth = other.auth(one.auth(other.hello(one.hello())))
    assert auth.name == ""
    one.welcome(other.welcome("s", ""))


@pytest.mark.parametrize("instance", ["", "a b", "ä", "a" * 65, "a\n", "a."])
def test_instance_in_auth(instance: str) -> None:
    one, other = client(instance=instance), relay()
    payload = one.auth(other.hello(one.hello()))
    refused(Code.PROTOCOL, lambda: other.auth(payload))


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({"versions": [2, 3]}, Code.VERSION),
        ({"versions": [0, 0]}, Code.VERSION),
        ({"versions": [10**25, 10**25]}, Code.VERSION),
        ({"versions": [2, 1]}, Code.PROTOCOL),
        ({"versions": [1]}, Code.PROTOCOL),
        ({"versions": "1"}, Code.PROTOCOL),
        ({"nonce": ""}, Code.PROTOCOL),
        ({"nonce": "A" * 42}, Code.PROTOCOL),
        ({"nonce": "A" * 42 + "B"}, Code.PROTOCOL),
        ({"nonce": "A" * 42 + "="}, Code.PROTOCOL),
        ({"nonce": "!" + "A" * 42}, Code.PROTOCOL),
        ({"nonce": "/" * 42 + "8"}, Code.PROTOCOL),
        ({"agent": "x" * 65}, Code.PROTOCOL),
        ({"settings": {"max_data": 1}}, Code.PROTOCOL),
        ({"binding": ""}, Code.UNAUTHORIZED),
        ({"binding": "None"}, Code.UNAUTHORIZED),
        ({"binding": "é"}, Code.UNAUTHORIZED),
    ],
)
def test_hello_of_the_client(members: dict[str, Any], code: Code) -> None:
    refused(code, lambda: relay().hello(changed(client().hello(), **members)))


# --- a relay that must not be trusted ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({"version": 0}, Code.VERSION),
        ({"version": 2}, Code.VERSION),
        ({"version": 10**25}, Code.VERSION),
        ({"version": "1"}, Code.PROTOCOL),
        ({"nonce": "A"}, Code.PROTOCOL),
        ({"agent": "x" * 65}, Code.PROTOCOL),
        ({"settings": {"max_streams": 0}}, Code.PROTOCOL),
    ],
)
def test_hello_of_the_relay(members: dict[str, Any], code: Code) -> None:
    one = client()
    payload = changed(relay().hello(one.hello()), **members)
    refused(code, lambda: one.auth(payload))


def test_a_relay_that_does_not_know_the_token() -> None:
    one = client()
    one.auth(relay().hello(one.hello()))
    forged = relay(Token(TOKEN.key_id, b"x" * 32))
    thief = client(Token(TOKEN.key_id, b"x" * 32))
    forged.auth(thief.auth(forged.hello(thief.hello())))
    error = refused(Code.UNAUTHORIZED, lambda: one.welcome(forged.welcome("s", "")))
    assert "does not know the token" in error.text


@pytest.mark.parametrize("proof", ["", "A" * 43, "é", "x" * 43])
def test_malformed_proof_of_the_relay(proof: str) -> None:
    one, other = client(), relay()
    other.auth(one.auth(other.hello(one.hello())))
    payload = changed(other.welcome("s", ""), proof=proof)
    refused(Code.UNAUTHORIZED, lambda: one.welcome(payload))


def test_the_clients_own_proof_is_not_the_relays() -> None:
    one, other = client(), relay()
    auth = json.loads(one.auth(other.hello(one.hello())))
    refused(Code.UNAUTHORIZED, lambda: one.welcome(json.dumps({"proof": auth["proof"], "session": "s"}).encode()))


@pytest.mark.parametrize(
    "host",
    [
        "relay.example.com -oProxyCommand=x", "-oProxyCommand=x", "x;id", "$(id)", "`id`", "a b", "[::1]", "relay:22", "a/b", "Relay",
        "x" * 254,
    ],
)  # fmt: skip
def test_host_that_would_spoil_a_command(host: str) -> None:
    one, other = client(), relay()
    other.auth(one.auth(other.hello(one.hello())))
    payload = other.welcome("s", host)
    refused(Code.PROTOCOL, lambda: one.welcome(payload))


@pytest.mark.parametrize("host", ["relay.example.com", "localhost", "192.0.2.7", "2001:db8::7", "fe80::1%eth0"])
def test_hosts_that_are_hosts(host: str) -> None:
    one, other = client(), relay()
    other.auth(one.auth(other.hello(one.hello())))
    assert one.welcome(other.welcome("s", host)).host == host


def test_host_that_would_spoil_a_terminal() -> None:
    one, other = client(), relay()
    other.auth(one.auth(other.hello(one.hello())))
    payload = other.welcome("s", "\x1b[2J")
    refused(Code.PROTOCOL, lambda: one.welcome(payload))


# --- garbage -----------------------------------------------------------------------------------------------------------


def after_hello() -> RelayLogin:
    other = relay()
    other.hello(client().hello())
    return other


def after_auth() -> ClientLogin:
    one = client()
    one.auth(relay().hello(one.hello()))
    return one


STEPS: list[tuple[Callable[[], Callable[[bytes], object]], bytes]] = [
    (lambda: relay().hello, client().hello()),
    (lambda: after_hello().auth, client().auth(relay().hello(client().hello()))),
    (lambda: client().auth, relay().hello(client().hello())),
    (lambda: after_auth().welcome, wire.pack_json(wire.Welcome(proof="x", session="s"))),
]


@pytest.mark.parametrize(("step", "legal"), STEPS)
@given(data=st.data())
def test_garbage(step: Callable[[], Callable[[bytes], object]], legal: bytes, data: st.DataObject) -> None:
    members = sorted(json.loads(legal))
    payload = data.draw(
        st.binary(max_size=200)
        | json_values.map(lambda value: json.dumps(value).encode())
        | st.dictionaries(st.sampled_from(members), json_values).map(lambda other: changed(legal, **other))
        | st.integers(0, len(legal)).map(lambda cut: legal[:cut])
    )
    with contextlib.suppress(ProtocolError):
        step()(payload)


@pytest.mark.parametrize(("step", "legal"), STEPS)
def test_deep_garbage(step: Callable[[], Callable[[bytes], object]], legal: bytes) -> None:
    payload = legal[:-1] + b',"x":' + b"[" * 1800 + b"]" * 1800 + b"}"
    refused(Code.PROTOCOL, lambda: step()(payload))


# --- tokens ------------------------------------------------------------------------------------------------------------


@given(tokens)
def test_token_round_trip(token: Token) -> None:
    assert Token.parse(token.text()) == token


@given(tokens, st.data())
def test_white_space_is_dropped(token: Token, data: st.DataObject) -> None:
    text = token.text()
    cut = data.draw(st.integers(0, len(text)))
    assert Token.parse(f"\n {text[:cut]}\r\n  {text[cut:]}\t") == token


@given(tokens)
def test_secrets_are_in_no_repr(token: Token) -> None:
    verifier = Verifier.of(token)
    shown = "".join((f"{token}{token!r}{verifier}{verifier!r}", repr(client(token)), repr(relay(token)), repr([token])))
    assert token.text() not in shown
    for raw in (token.secret, client_key(token.secret), verifier.stored_key, verifier.server_key):
        assert repr(raw)[2:-1] not in shown and raw.hex() not in shown
    assert token.text().split(".")[2] not in shown
    assert repr(token) == f"fr1.{token.key_id}.…"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("password", "begins with fr1"),
        ("fr2.k3yID_-0.{secret}", "begins with fr1"),
        ("{secret}", "begins with fr1"),
        ("fr1", "parts"),
        ("fr1.", "parts"),
        ("fr1.{secret}", "parts"),
        ("fr1.k3yID_-0.{secret}.{secret}.{secret}.{secret}", "parts"),
        ("fr1.k3y.{secret}", "key id"),
        ("fr1.k3yID!-0.{secret}", "key id"),
        ("fr1.k3yID_-0.", "secret"),
        ("fr1.k3yID_-0.{short}", "secret"),
        ("fr1.k3yID_-0.{secret}=", "secret"),
        ("fr1.k3yID_-0.{short}9", "secret"),
        ("fr1.k3yID_-0.{secret}.", "pin"),
        ("fr1.k3yID_-0.{secret}.{short}", "pin"),
        ("fr1.k3yID_-0.{secret}.{secret}.x", "pin"),
    ],
)
def test_token_refused(text: str, why: str) -> None:
    secret = TOKEN.text().split(".")[2]
    with pytest.raises(UsageError) as caught:
        Token.parse(text.format(secret=secret, short=secret[:-1]))
    said = str(caught.value)
    assert why in said and "fastrelay token show" in said
    assert secret[:-1] not in said


@given(st.text() | st.text("fr1.aA-_", max_size=120))
def test_any_text_is_a_token_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert Token.parse(text).text() == "".join(text.split())


def test_more_pins_than_a_change_of_keys_needs() -> None:
    with pytest.raises(UsageError, match="more than 2 pins"):
        Token("k3yID_-0", b"x" * 32, (b"p" * 32,) * 3)


# --- verifiers ---------------------------------------------------------------------------------------------------------


@given(tokens)
def test_verifier_round_trip(token: Token) -> None:
    verifier = Verifier.of(token)
    raw = msgspec.json.encode(verifier)
    assert msgspec.json.decode(raw, type=Verifier) == verifier
    assert token.text().split(".")[2].encode() not in raw


@pytest.mark.parametrize("members", [{"key_id": "x"}, {"stored_key": "AAAA"}, {"server_key": ""}])
def test_verifier_refused(members: dict[str, str]) -> None:
    raw = changed(msgspec.json.encode(Verifier.of(TOKEN)), **members)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(raw, type=Verifier)
