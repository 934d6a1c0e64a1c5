"""fastrelay.net.tls: the relay's own certificate, given ones, pins, and what the two contexts agree on."""

from __future__ import annotations

import datetime
import os
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from fastrelay import wire
from fastrelay.errors import StartError
from fastrelay.net.tls import Identity, client_context, load_identity, make_identity, pin_fits, pin_of, server_context

PEM = serialization.Encoding.PEM
PKCS8 = serialization.PrivateFormat.PKCS8
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """A relay's own identity; nobody writes to its files."""
    folder = tmp_path_factory.mktemp("identity")
    make_identity(folder / "relay.crt", folder / "relay.key")
    return load_identity(folder / "relay.crt", folder / "relay.key")


def refused(step: Callable[[], object], *says: str) -> None:
    with pytest.raises(StartError) as caught:
        step()
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text
    for word in says:
        assert word in text


def private_pem(key: Key, password: bytes | None = None) -> bytes:
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(PEM, PKCS8, hidden)


def certificate(
    key: Key, subject: str, issuer_key: Key, issuer: str, *hosts: str, ca: bool = False
) -> x509.Certificate:
    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if hosts:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False
        )
    return builder.sign(issuer_key, None if isinstance(issuer_key, ed25519.Ed25519PrivateKey) else hashes.SHA256())


# --- the relay's own certificate ---------------------------------------------------------------------------------------


def test_made_identity(identity: Identity) -> None:
    made = x509.load_pem_x509_certificate(identity.cert_path.read_bytes())
    key = made.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
    assert made.subject.rfc4514_string() == made.issuer.rfc4514_string() == "CN=fastrelay relay"
    now = datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(hours=23) < now - made.not_valid_before_utc < datetime.timedelta(hours=25)
    assert datetime.timedelta(days=3652) < made.not_valid_after_utc - now < datetime.timedelta(days=3654)
    assert identity.self_signed
    assert identity.fingerprint == sha256(made.public_bytes(serialization.Encoding.DER)).digest()
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert identity.pin == sha256(spki).digest()


@pytest.mark.skipif(os.name == "nt", reason="modes are those of POSIX")
def test_the_key_is_the_owners_alone(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        make_identity(tmp_path / "relay.crt", tmp_path / "relay.key")
    finally:
        os.umask(umask)
    assert {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {
        "relay.crt": 0o644,
        "relay.key": 0o600,
    }


def test_identities_differ_and_replace_each_other(tmp_path: Path, identity: Identity) -> None:
    paths = tmp_path / "relay.crt", tmp_path / "relay.key"
    (tmp_path / ".relay.key.new").write_text("of a start that was killed")
    make_identity(*paths)
    first = load_identity(*paths)
    make_identity(*paths)
    assert len({first.pin, load_identity(*paths).pin, identity.pin}) == 3
    assert sorted(file.name for file in tmp_path.iterdir()) == ["relay.crt", "relay.key"]


def test_nowhere_to_write(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    refused(
        lambda: make_identity(missing / "relay.crt", missing / "relay.key"), str(missing / "relay.key"), "No such file"
    )


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused(lambda: make_identity(tmp_path / "relay.crt", tmp_path / "relay.key"), "No space left")
    assert not list(tmp_path.iterdir())


# --- given files -------------------------------------------------------------------------------------------------------


def test_missing_files(tmp_path: Path, identity: Identity) -> None:
    missing = tmp_path / "missing.pem"
    refused(lambda: load_identity(missing, identity.key_path), f"no certificate file {missing}", "--cert")
    refused(lambda: load_identity(identity.cert_path, missing), f"no key file {missing}", "--key")


def test_unreadable_files(tmp_path: Path, identity: Identity) -> None:
    refused(lambda: load_identity(tmp_path, identity.key_path), f"certificate file {tmp_path} cannot be read")
    refused(lambda: load_identity(identity.cert_path, tmp_path), f"key file {tmp_path} cannot be read")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\x00",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----",
    ],
)
def test_not_a_certificate(tmp_path: Path, identity: Identity, content: bytes) -> None:
    file = tmp_path / "cert.pem"
    file.write_bytes(content)
    refused(lambda: load_identity(file, identity.key_path), str(file), "BEGIN CERTIFICATE")


def test_a_chain_that_was_cut_off(tmp_path: Path, identity: Identity) -> None:
    """The key is good: it is the other file that needs a look."""
    file = tmp_path / "cert.pem"
    file.write_bytes(identity.cert_path.read_bytes() + identity.cert_path.read_bytes()[:300])
    refused(
        lambda: load_identity(file, identity.key_path),
        f"The certificate in {file} cannot be used",
        "give --cert a file",
    )


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_not_a_key(tmp_path: Path, identity: Identity, content: bytes) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(content)
    refused(lambda: load_identity(identity.cert_path, file), f"The key in {file} cannot be used", "PEM form")


def test_the_two_files_the_wrong_way_round(identity: Identity) -> None:
    refused(lambda: load_identity(identity.key_path, identity.cert_path), str(identity.key_path), "BEGIN CERTIFICATE")


@pytest.mark.parametrize("other", [ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()])
def test_key_of_another_certificate(tmp_path: Path, identity: Identity, other: Key) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(private_pem(other))
    refused(lambda: load_identity(identity.cert_path, file), f"The key in {file} cannot be used")


def test_the_sentence_for_another_key_of_the_same_kind(tmp_path: Path, identity: Identity) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(private_pem(ec.generate_private_key(ec.SECP256R1())))
    refused(
        lambda: load_identity(identity.cert_path, file), "does not belong to the certificate", str(identity.cert_path)
    )


def test_encrypted_key_does_not_ask_on_the_terminal(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "cert.pem").write_bytes(certificate(key, "a", key, "a").public_bytes(PEM))
    (tmp_path / "key.pem").write_bytes(private_pem(key, b"password"))
    refused(lambda: load_identity(tmp_path / "cert.pem", tmp_path / "key.pem"), "encrypted", "without a password")


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
)
def test_chain_of_a_ca(tmp_path: Path, key: Key) -> None:
    """The leaf comes first, and text before it is allowed, as in the files of ACME clients."""
    authority = ec.generate_private_key(ec.SECP256R1())
    root = certificate(authority, "root", authority, "root", ca=True)
    leaf = certificate(key, "relay", authority, "root", "relay.example.com")
    cert_path, key_path = tmp_path / "fullchain.pem", tmp_path / "key.pem"
    cert_path.write_bytes(b"relay.example.com\n" + leaf.public_bytes(PEM) + root.public_bytes(PEM))
    key_path.write_bytes(private_pem(key))
    identity = load_identity(cert_path, key_path)
    assert not identity.self_signed
    der = leaf.public_bytes(serialization.Encoding.DER)
    assert identity.fingerprint == sha256(der).digest()
    assert identity.pin == pin_of(der)


def test_files_that_changed_since(tmp_path: Path) -> None:
    paths = tmp_path / "relay.crt", tmp_path / "relay.key"
    make_identity(*paths)
    identity = load_identity(*paths)
    paths[1].unlink()
    refused(lambda: server_context(identity), "cannot be read", str(paths[1]))


# --- pins --------------------------------------------------------------------------------------------------------------


def test_a_renewed_certificate_with_the_same_key_keeps_the_pin() -> None:
    key, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    old, new, foreign = (
        certificate(k, "relay", k, "relay").public_bytes(serialization.Encoding.DER) for k in (key, key, other)
    )
    assert old != new and pin_of(old) == pin_of(new) != pin_of(foreign)
    assert pin_fits(new, (pin_of(old),))
    assert pin_fits(new, (pin_of(foreign), pin_of(old)))
    assert not pin_fits(foreign, (pin_of(old),))
    assert not pin_fits(old, ())


@given(st.binary())
def test_what_is_no_certificate_fits_no_pin(der: bytes) -> None:
    assert not pin_fits(der, (b"p" * 32,))
    with pytest.raises(ValueError):
        pin_of(der)


def test_a_key_of_an_unknown_kind_is_no_certificate(identity: Identity) -> None:
    """The object id of elliptic curves made one that nobody has."""
    der = ssl.PEM_cert_to_DER_cert(identity.cert_path.read_text())
    odd = der.replace(bytes.fromhex("06072a8648ce3d0201"), bytes.fromhex("06072a8648ce3d027f"))
    assert odd != der
    with pytest.raises(ValueError):
        pin_of(odd)
    assert not pin_fits(odd, (identity.pin,))


def test_cryptography_is_loaded_late() -> None:
    code = "import sys, fastrelay.net.tls as tls; tls.client_context(False); sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- contexts ----------------------------------------------------------------------------------------------------------


class Wire:
    """A client and a server TLS connection that hand each other their bytes."""

    def __init__(self, client: ssl.SSLContext, server: ssl.SSLContext, host: str | None) -> None:
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = client.wrap_bio(down, up, server_hostname=host)
        self.server = server.wrap_bio(up, down, server_side=True)

    def handshake(self) -> None:
        waiting = [self.client, self.server]
        for _ in range(10):
            for end in list(waiting):
                try:
                    end.do_handshake()
                    waiting.remove(end)
                except ssl.SSLWantReadError:
                    pass
        assert not waiting


def test_handshake_with_a_pin(identity: Identity) -> None:
    link = Wire(client_context(pinned=True), server_context(identity), "any.example")
    link.handshake()
    der = link.client.getpeercert(binary_form=True)
    assert der is not None
    assert pin_fits(der, (identity.pin,))
    assert sha256(der).digest() == identity.fingerprint
    assert link.client.version() == link.server.version() == "TLSv1.3"
    assert link.client.selected_alpn_protocol() == link.server.selected_alpn_protocol() == wire.ALPN
    link.client.write(b"hello")
    assert link.server.read() == b"hello"
    link.server.write(b"welcome")
    assert link.client.read() == b"welcome"
    # A ticket would have come ahead of these bytes.
    assert link.client.session is None or not link.client.session.has_ticket


def test_handshake_over_sockets(identity: Identity) -> None:
    near, far = socket.socketpair()
    near.settimeout(10)
    far.settimeout(10)
    client = client_context(pinned=True).wrap_socket(near, do_handshake_on_connect=False)
    server = server_context(identity).wrap_socket(far, server_side=True, do_handshake_on_connect=False)
    with client, server:
        client.setblocking(False)
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        server.setblocking(False)
        with pytest.raises(ssl.SSLWantReadError):
            server.do_handshake()
        client.do_handshake()
        server.do_handshake()
        client.send(b"hello")
        assert server.recv(100) == b"hello"
        assert client.version() == "TLSv1.3"


def test_without_a_pin_a_self_signed_certificate_is_refused(identity: Identity) -> None:
    link = Wire(client_context(pinned=False), server_context(identity), "relay.example.com")
    with pytest.raises(ssl.SSLCertVerificationError):
        link.handshake()


@pytest.mark.parametrize(("host", "fits"), [("relay.example.com", True), ("other.example.com", False)])
def test_without_a_pin_the_ca_and_the_host_name_decide(tmp_path: Path, host: str, fits: bool) -> None:
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = certificate(authority, "root", authority, "root", ca=True)
    leaf = certificate(key, "relay", authority, "root", "relay.example.com")
    (tmp_path / "cert.pem").write_bytes(leaf.public_bytes(PEM))
    (tmp_path / "key.pem").write_bytes(private_pem(key))
    context = client_context(pinned=False)
    context.load_verify_locations(cadata=root.public_bytes(PEM).decode())
    link = Wire(context, server_context(load_identity(tmp_path / "cert.pem", tmp_path / "key.pem")), host)
    if fits:
        link.handshake()
        assert link.client.selected_alpn_protocol() == wire.ALPN
    else:
        with pytest.raises(ssl.SSLCertVerificationError):
            link.handshake()


@pytest.mark.parametrize("pinned", [True, False])
def test_nothing_older_than_tls_1_3(identity: Identity, pinned: bool) -> None:
    assert client_context(pinned).minimum_version is ssl.TLSVersion.TLSv1_3
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        Wire(old, server_context(identity), None).handshake()


def test_contexts(identity: Identity) -> None:
    server = server_context(identity)
    assert server.num_tickets == 0
    assert server.minimum_version is ssl.TLSVersion.TLSv1_3
    assert client_context(True).verify_mode is ssl.CERT_NONE
    verifying = client_context(False)
    assert verifying.verify_mode is ssl.CERT_REQUIRED and verifying.check_hostname
