"""TLS for tunnels: contexts, certificates, pins (protocol.md sections 2, 4.1, 4.3 and 4.6).

`cryptography` reads and makes certificates; it is imported where it is used, for it is slow to load and most runs of a client without a
pin do without it.
"""

from __future__ import annotations

import datetime
import hmac
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from fastrelay import disk, wire
from fastrelay.errors import StartError

_LIFE: Final = datetime.timedelta(days=3653)  # ten years: clients hold the pin and do not look at dates
_BACKDATE: Final = datetime.timedelta(days=1)  # a client's clock may be behind


@dataclass(frozen=True)
class Identity:
    """A relay's certificate and key: PEM files and what clients know them by.

    `fingerprint` is the SHA-256 of the leaf certificate (the binding of section 4.1), `pin` that of its public key; 32 bytes each.
    `since` and `until` are when it is valid, in UTC.
    """

    cert_path: Path
    key_path: Path
    fingerprint: bytes
    pin: bytes
    self_signed: bool
    since: datetime.datetime
    until: datetime.datetime


# --- the relay's certificate -------------------------------------------------------------------------------------------


def make_identity(cert_path: Path, key_path: Path) -> None:
    """Write a new self-signed P-256 certificate and its key as PEM, the key for its owner only. Raises StartError.

    The certificate comes last, so where it exists the key does too.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fastrelay relay")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + _LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    for path, data, mode in ((key_path, private, 0o600), (cert_path, certificate.public_bytes(pem), 0o644)):
        try:
            disk.write(path, data, mode)
        except OSError as error:
            raise StartError(
                f"The relay's certificate cannot be written to {path}, because the system says {error.strerror or error}: "
                "make room or give this user the right to write there."
            ) from error


def load_identity(cert_path: Path, key_path: Path, cert: str = "--cert", key: str = "--key") -> Identity:
    """The identity in two PEM files, which the options `cert` and `key` name; of a chain the first certificate counts. Raises StartError when
    they cannot serve.
    """
    from cryptography import x509

    der = _leaf(cert_path, cert)
    _read("key", key_path, key)
    leaf = x509.load_der_x509_certificate(der)
    _load_chain(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), cert_path, key_path, key)
    return Identity(
        cert_path,
        key_path,
        sha256(der).digest(),
        pin_of(der),
        leaf.issuer == leaf.subject,
        leaf.not_valid_before_utc,
        leaf.not_valid_after_utc,
    )


# --- pins --------------------------------------------------------------------------------------------------------------


def pin_of(der: bytes) -> bytes:
    """The SHA-256 of a certificate's SubjectPublicKeyInfo (DER), 32 bytes. Raises ValueError for what is no certificate."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    try:
        key = x509.load_der_x509_certificate(der).public_key()
    except UnsupportedAlgorithm as error:
        raise ValueError(f"the certificate has a public key of an unknown kind: {error}") from None
    return sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def shown_key(der: bytes | None) -> bytes | None:
    """`pin_of` the certificate that a client has shown; None without one, and for a key of a kind that nobody can have named."""
    try:
        return None if der is None else pin_of(der)
    except ValueError:
        return None


def file_pin(cert_path: Path) -> bytes:
    """`pin_of` the first certificate in a PEM file, that of a client. Raises StartError."""
    return pin_of(_leaf(cert_path, "--client-cert"))


def _leaf(cert_path: Path, option: str) -> bytes:
    """The first certificate (DER) in a PEM file, which `option` names, one whose public key can be read. Raises StartError."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    raw = _read("certificate", cert_path, option)
    try:
        der = x509.load_pem_x509_certificates(raw)[0].public_bytes(Encoding.DER)
        pin_of(der)
    except ValueError:
        raise StartError(
            f"The file {cert_path} holds no certificate that can be read: give {option} a file in PEM form, "
            "with -----BEGIN CERTIFICATE----- in it."
        ) from None
    return der


def pin_fits(der: bytes, pins: tuple[bytes, ...]) -> bool:
    """Whether the certificate that a relay showed has the public key of one of the pins; any bytes may be asked about."""
    try:
        shown = pin_of(der)
    except ValueError:
        return False
    return any(hmac.compare_digest(shown, pin) for pin in pins)


# --- contexts ----------------------------------------------------------------------------------------------------------


def server_context(identity: Identity, client_ca: Path | None = None) -> ssl.SSLContext:
    """For the listener: TLS 1.3 only, without tickets. Raises StartError when the files have changed and cannot serve any more.

    With `client_ca`, a file of CAs, clients are asked for a certificate: one that these CAs do not vouch for ends the handshake, none does
    not. That is for section 4.6 to refuse, in words: a TLS alert is not sent by asyncio nor by uvloop when a handshake fails.
    OpenSSL lets a client through that offers no ALPN or another: whoever accepts the tunnel asks `selected_alpn_protocol()` what it is
    (section 2.1).
    """
    context = _for_tunnels(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), wire.ALPN, wire.ALPN_HTTP)
    context.num_tickets = 0
    _load_chain(context, identity.cert_path, identity.key_path, "--key")
    if client_ca is not None:
        _load_authorities(context, client_ca)
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def ends_count(context: ssl.SSLContext) -> ssl.SSLContext:
    """Take an end without close_notify for the cut that it is. Python before 3.11.4 tells OpenSSL to take it for an end in order."""
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", ssl.Options(0))
    return context


def web_context(identity: Identity) -> ssl.SSLContext:
    """For visitors of the HTTPS front: TLS 1.2 and 1.3, HTTP/1.1 only. Raises StartError when the files have changed and cannot serve any more."""
    context = ends_count(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    _load_chain(context, identity.cert_path, identity.key_path, "--http-key")
    return context


def client_context(pinned: bool, own: tuple[Path, Path] | None = None, alpn: str = wire.ALPN) -> ssl.SSLContext:
    """For the dialer, who asks for the protocol `alpn`; `own` are its certificate and key (PEM), if it has any. With `pinned` nothing is verified here: the caller MUST ask `pin_fits` before it sends the first byte (section 4.1).

    Without, the system's CAs and the host name decide. Raises StartError when `own` cannot serve.
    """
    context = _for_tunnels(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), alpn)
    if own is not None:
        _load_chain(context, *own, "--client-key")
    if pinned:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_default_certs()
    return context


def _for_tunnels(context: ssl.SSLContext, *alpn: str) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(alpn)
    return context


def _load_authorities(context: ssl.SSLContext, path: Path) -> None:
    """Raises StartError."""
    try:
        context.load_verify_locations(path)
    except ssl.SSLError:
        raise StartError(
            f"The file {path} holds no CA certificate that can be read: give --client-ca a file in PEM form, "
            "with -----BEGIN CERTIFICATE----- in it."
        ) from None
    except OSError as error:
        raise _unreadable(f"The file of CAs {path}", error) from error


def _load_chain(context: ssl.SSLContext, cert_path: Path, key_path: Path, option: str) -> None:
    """`option` is the one that names the key. Raises StartError."""
    encrypted: list[Path] = []

    def no_password() -> str:
        # Without this OpenSSL would ask on the terminal, and a service would hang there.
        encrypted.append(key_path)
        return ""

    try:
        context.load_cert_chain(cert_path, key_path, password=no_password)
    except ssl.SSLError as error:
        if encrypted:
            why, instead = "it is encrypted and nobody will be there to be asked for the password", "without a password"
        elif error.library == "PEM":
            raise StartError(
                f"The certificate in {cert_path} cannot be used, because OpenSSL says {error.reason or error}: give "
                f"{option.replace('key', 'cert')} a file in PEM form in which every -----BEGIN CERTIFICATE----- has its end."
            ) from None
        elif error.reason == "KEY_VALUES_MISMATCH":
            why, instead = f"it does not belong to the certificate in {cert_path}", "that was made with the certificate"
        else:
            why, instead = (
                f"OpenSSL says {error.reason or error}",
                "in PEM form, with -----BEGIN PRIVATE KEY----- in it",
            )
        raise StartError(
            f"The key in {key_path} cannot be used, because {why}: give {option} a file {instead}."
        ) from None
    except OSError as error:
        raise _unreadable(f"The certificate {cert_path} or its key {key_path}", error) from error


def stamp(paths: Iterable[Path]) -> tuple[object, ...]:
    """What tells whether any of these files was replaced or written since."""
    # By way of a list: until CPython 3.12 each tuple made from a generator adds one to a store of used ones that is never asked.
    return tuple([_stamp(path) for path in paths])


def _stamp(path: Path) -> object:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


# --- files -------------------------------------------------------------------------------------------------------------


def _read(what: str, path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise StartError(f"There is no {what} file {path}: check the path given with {option}.") from None
    except OSError as error:
        raise _unreadable(f"The {what} file {path}", error) from error


def _unreadable(what: str, error: OSError) -> StartError:
    return StartError(
        f"{what} cannot be read, because the system says {error.strerror or error}: give this user the right to read it."
    )
