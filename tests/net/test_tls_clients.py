"""Client certificates in TLS (protocol.md section 4.6): which the relay accepts, and what a client can do with them."""

from __future__ import annotations

import ssl
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fastrelay.errors import StartError
from fastrelay.net.tls import client_context, file_pin, load_identity, make_identity, pin_of, server_context
from tests.net.test_tls import Wire
from tests.support.certificates import Authority, Pair, bad_ones


class Home:
    """A relay that trusts one CA, and certificates for its clients."""

    def __init__(self, path: Path) -> None:
        self.path = path
        own = path / "relay.crt", path / "relay.key"
        make_identity(*own)
        self.identity = load_identity(*own)
        self.authority = Authority(path)
        self.good = self.authority.issue("good")
        self.bad = bad_ones(self.authority, path)

    def wire(self, own: Pair | None) -> Wire:
        return Wire(client_context(True, own), server_context(self.identity, self.authority.path), "relay")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


def test_a_good_certificate(home: Home) -> None:
    wire = home.wire(home.good)
    wire.handshake()
    der = wire.server.getpeercert(binary_form=True)
    assert der == ssl.PEM_cert_to_DER_cert(home.good[0].read_text())
    assert pin_of(der) == file_pin(home.good[0])
    wire.server.write(b"welcome")
    assert wire.client.read() == b"welcome"  # a ticket would have come ahead of this
    assert wire.client.session is None or not wire.client.session.has_ticket


def test_none_is_not_refused_here(home: Home) -> None:
    """That is done in words: see fastrelay.auth."""
    wire = home.wire(None)
    wire.handshake()
    assert wire.server.getpeercert(binary_form=True) is None


@pytest.mark.parametrize("which", ["expired", "early", "usage", "another CA", "unknown CA", "self-signed"])
def test_bad_certificates(home: Home, which: str) -> None:
    own, why = home.bad[which]
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        home.wire(own).handshake()
    assert why in caught.value.verify_message


def test_the_key_must_be_the_certificates(home: Home) -> None:
    other = home.authority.issue("other")
    with pytest.raises(StartError, match="--client-key"):
        client_context(True, (home.good[0], other[1]))


def test_nobody_is_asked_who_may_not_show_one(home: Home) -> None:
    """Without --client-ca a client with a certificate keeps it to itself."""
    wire = Wire(client_context(True, home.good), server_context(home.identity), "relay")
    wire.handshake()
    assert wire.server.getpeercert(binary_form=True) is None


def test_a_renewed_certificate_has_the_same_pin(home: Home) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    first = file_pin(home.authority.issue("renewed", key=key)[0])
    again = home.authority.issue("renewed", key=key)
    assert file_pin(again[0]) == first
    assert sha256(again[0].read_bytes()).digest() != first


def test_no_certificate_in_the_file(home: Home) -> None:
    with pytest.raises(StartError, match="holds no certificate"):
        file_pin(home.good[1])


@pytest.mark.parametrize(("size", "fits"), [(60_000, True), (120_000, False)])
def test_an_oversized_chain(home: Home, size: int, fits: bool) -> None:
    """OpenSSL takes 100 KiB in all, and not a byte more is kept."""
    chain = home.authority.issue(f"long{size}", padding=size)
    wire = home.wire(chain)
    if fits:
        wire.handshake()
        return
    with pytest.raises(ssl.SSLError, match="EXCESSIVE_MESSAGE_SIZE"):
        wire.handshake()
