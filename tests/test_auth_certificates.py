"""Client certificates in fastrelay.auth (protocol.md section 4.6), and the relay's pins in WELCOME (section 4.3)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from fastrelay import wire
from fastrelay.auth import ClientLogin, RelayLogin, Token, Verifier, parse_pin, pin_texts, read_pins
from fastrelay.errors import Code, ProtocolError, UsageError
from tests.test_auth import BINDING, SEED, changed, refused

PROTOCOL = (Path(__file__).resolve().parent.parent / "protocol.md").read_text(encoding="utf-8")
CERT, OTHER, STRANGE = b"c" * 32, b"o" * 32, b"s" * 32
PLAIN = Token("plain--0", b"1" * 32)
BOUND = Token("bound--0", b"2" * 32)
RECORDS = {
    "keys": Verifier.of(PLAIN),
    "keys and certificate": Verifier.of(BOUND, CERT),
    "certificate": Verifier("certs--0", cert=OTHER),
}
BY_ID = {record.key_id: record for record in RECORDS.values()}
BY_CERT = {record.cert: record for record in RECORDS.values() if record.cert}
"""Careless on purpose: it finds a record that needs a token as well."""


def client(token: Token | None, binding: bytes | None = BINDING) -> ClientLogin:
    return ClientLogin(token, "home", "inst-1", binding, b"n" * 32, wire.Settings(), "test/1")


def relay(shown: bytes | None, binding: bytes | None = BINDING, **more: Any) -> RelayLogin:
    return RelayLogin(
        BY_ID.get, SEED, binding, b"r" * 32, wire.Settings(), "relay/1", shown=shown, find_cert=BY_CERT.get, **more
    )


def log_in(token: Token | None, shown: bytes | None, binding: bytes | None = BINDING) -> Verifier:
    """The record that lets this client in. Raises ProtocolError."""
    one, other = client(token, binding), relay(shown, binding)
    other.auth(one.auth(other.hello(one.hello())))
    one.welcome(other.welcome("s", ""))
    return other.admitted


# --- who is let in -----------------------------------------------------------------------------------------------------


def test_the_rows_of_the_table() -> None:
    text = PROTOCOL[PROTOCOL.index("### 4.6 Client certificates") : PROTOCOL.index("## 5. Services")]
    rows = dict(re.findall(r"^\| ([a-z ]+) \| (as in 4\.2|both empty) \|", text, re.MULTILINE))
    assert rows == {"keys": "as in 4.2", "keys and certificate": "as in 4.2", "certificate": "both empty"}
    for kept, record in RECORDS.items():
        assert record.by_certificate is (rows[kept] == "both empty")


def test_a_certificate_is_enough() -> None:
    assert log_in(None, OTHER) is RECORDS["certificate"]


def test_a_token_with_its_certificate() -> None:
    assert log_in(BOUND, CERT) is RECORDS["keys and certificate"]


@pytest.mark.parametrize("shown", [None, OTHER, STRANGE])
def test_a_token_without_its_certificate(shown: bytes | None) -> None:
    error = refused(Code.UNAUTHORIZED, lambda: log_in(BOUND, shown))
    assert "--client-cert" in error.text


@pytest.mark.parametrize("shown", [None, OTHER, CERT])
def test_a_wrong_proof_learns_nothing_of_certificates(shown: bytes | None) -> None:
    texts = {
        refused(Code.UNAUTHORIZED, lambda token=token: log_in(token, shown)).text  # type: ignore[misc]
        for token in (Token(BOUND.key_id, bytes(32)), Token("unknown0", bytes(32)), Token("certs--0", bytes(32)))
    }
    assert len(texts) == 1 and "--client-cert" not in texts.pop()


@pytest.mark.parametrize("shown", [None, OTHER, CERT])
def test_a_plain_token_cares_for_no_certificate(shown: bytes | None) -> None:
    assert log_in(PLAIN, shown) is RECORDS["keys"]


@pytest.mark.parametrize("shown", [None, CERT, STRANGE, b""])
def test_without_a_token(shown: bytes | None) -> None:
    """Also a certificate that is good only beside a token."""
    error = refused(Code.UNAUTHORIZED, lambda: log_in(None, shown))
    assert "--no-token" in error.text


def test_a_plaintext_tunnel_shows_nothing() -> None:
    refused(Code.UNAUTHORIZED, lambda: log_in(None, OTHER, None))


@pytest.mark.parametrize("token", [None, PLAIN])
def test_a_certificate_may_be_required(token: Token | None) -> None:
    """Before anything that the client says is parsed."""
    error = refused(Code.UNAUTHORIZED, lambda: relay(None, required=True).hello(b"{"))
    assert "--client-cert" in error.text
    one, other = client(token), relay(OTHER, required=True)
    other.auth(one.auth(other.hello(one.hello())))


def test_another_binding_is_refused_as_ever() -> None:
    one, other = client(None, b"x" * 32), relay(OTHER)
    refused(Code.UNAUTHORIZED, lambda: other.hello(one.hello()))


@given(
    key_id=st.sampled_from(["", *BY_ID, "unknown0", "x"]) | st.text(max_size=9),
    proof=st.sampled_from(["", PLAIN, BOUND, Token("certs--0", b"\0" * 32), "A" * 43, "="]) | st.text(max_size=44),
    shown=st.sampled_from([None, b"", CERT, OTHER, STRANGE]),
    tls=st.booleans(),
    required=st.booleans(),
    missing=st.just(set[str]()) | st.sets(st.sampled_from(["key_id", "proof"]), max_size=2),
)
@example(key_id="", proof="", shown=OTHER, tls=True, required=True, missing=set())
@example(key_id="", proof="", shown=CERT, tls=True, required=False, missing=set())
@example(key_id="bound--0", proof=BOUND, shown=CERT, tls=True, required=True, missing=set())
@example(key_id="bound--0", proof="", shown=CERT, tls=True, required=False, missing=set())
@example(key_id="certs--0", proof="", shown=OTHER, tls=True, required=False, missing=set())
def test_nothing_is_let_in_by_accident(
    key_id: str, proof: str | Token, shown: bytes | None, tls: bool, required: bool, missing: set[str]
) -> None:
    """Whatever is empty, missing or does not belong together."""
    binding = BINDING if tls else None
    one, other = client(proof if isinstance(proof, Token) else None, binding), relay(shown, binding, required=required)
    admitted: Verifier | None = None
    code: Code | None = None
    try:
        auth = json.loads(one.auth(other.hello(one.hello())))
        if not isinstance(proof, Token):
            auth["proof"] = proof
        auth["key_id"] = key_id
        other.auth(json.dumps({name: value for name, value in auth.items() if name not in missing}).encode())
        admitted = other.admitted
    except ProtocolError as error:
        code = error.code
    expected: Verifier | None = None
    if missing or (required and shown is None):
        pass
    elif proof is PLAIN and key_id == PLAIN.key_id:
        expected = RECORDS["keys"]
    elif proof is BOUND and key_id == BOUND.key_id and shown == CERT:
        expected = RECORDS["keys and certificate"]
    elif key_id == "" and proof == "" and tls and shown == OTHER:
        expected = RECORDS["certificate"]
    assert admitted is expected
    if expected is None:
        assert code is (Code.PROTOCOL if missing and not (required and shown is None) else Code.UNAUTHORIZED)


def test_the_proof_of_one_key_id_is_none_for_another() -> None:
    one, other = client(PLAIN), relay(CERT)
    payload = changed(one.auth(other.hello(one.hello())), key_id=BOUND.key_id)
    refused(Code.UNAUTHORIZED, lambda: other.auth(payload))


@pytest.mark.parametrize(
    "sizes", [(0, 0, 0), (32, 0, 0), (0, 32, 0), (0, 32, 32), (32, 0, 32), (32, 32, 31), (0, 0, 33), (31, 32, 0)]
)
def test_a_record_has_keys_or_a_certificate(sizes: tuple[int, int, int]) -> None:
    stored, server, cert = (bytes(size) for size in sizes)
    with pytest.raises(ValueError, match="not of 32 bytes"):
        Verifier("k3yID_-0", stored, server, cert)


# --- WELCOME -----------------------------------------------------------------------------------------------------------


def test_a_client_with_a_token_takes_no_empty_proof() -> None:
    one, other = client(PLAIN), relay(None)
    other.auth(one.auth(other.hello(one.hello())))
    payload = changed(other.welcome("s", ""), proof="")
    refused(Code.UNAUTHORIZED, lambda: one.welcome(payload))


def test_a_client_without_a_token_takes_no_proof() -> None:
    one, other = client(None), relay(OTHER)
    other.auth(one.auth(other.hello(one.hello())))
    welcome = other.welcome("s", "")
    assert json.loads(welcome)["proof"] == ""
    refused(Code.PROTOCOL, lambda: one.welcome(changed(welcome, proof="A" * 43)))
    one.welcome(welcome)


@pytest.mark.parametrize("pins", [(), (b"1" * 32,), (b"1" * 32, b"2" * 32)])
def test_pins_of_the_relay(pins: tuple[bytes, ...]) -> None:
    one, other = client(PLAIN), relay(None, pins=lambda: pins)
    other.auth(one.auth(other.hello(one.hello())))
    payload = other.welcome("s", "")
    assert (b"pins" in payload) is bool(pins)
    one.welcome(payload)
    assert one.pins == pins


def test_pins_come_after_the_proof() -> None:
    one, other = client(PLAIN), relay(None, pins=lambda: (b"1" * 32,))
    other.auth(one.auth(other.hello(one.hello())))
    payload = changed(other.welcome("s", ""), proof="A" * 43)
    refused(Code.UNAUTHORIZED, lambda: one.welcome(payload))
    assert not hasattr(one, "pins")


@pytest.mark.parametrize("texts", [[""], ["A" * 42], ["A" * 44], ["A" * 42 + "B"], ["A" * 43] * 3, ["A" * 43, "é"]])
def test_what_is_no_pin(texts: list[str]) -> None:
    refused(Code.PROTOCOL, lambda: read_pins(texts))


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=2))
def test_pins_are_read_as_they_are_written(pins: list[bytes]) -> None:
    assert read_pins(pin_texts(pins)) == tuple(pins)
    assert [parse_pin(f" {text}\n") for text in pin_texts(pins)] == pins


@given(st.text())
def test_a_pin_as_typed(text: str) -> None:
    assume(re.fullmatch(r"\s*[\w-]{43}\s*", text) is None)
    with pytest.raises(UsageError, match="fastrelay key show"):
        parse_pin(text)
