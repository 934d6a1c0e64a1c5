"""Certificates of clients, good and bad, and who signed them."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Pair = tuple[Path, Path]
"""A certificate and its key, PEM."""

CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
DAY = datetime.timedelta(days=1)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class Authority:
    """A CA whose files are in `home`; `path` is its certificate."""

    def __init__(self, home: Path, name: str = "authority") -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.name = name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.path = home / f"{name}.crt"
        self.path.write_bytes(self._sign(name, self._key, ca=True))

    def issue(
        self,
        name: str,
        *,
        usage: x509.ObjectIdentifier = CLIENT,
        starts: datetime.timedelta = -DAY,
        ends: datetime.timedelta = DAY,
        key: ec.EllipticCurvePrivateKey | None = None,
        padding: int = 0,
        host: str = "",
    ) -> Pair:
        """A certificate that is valid from `starts` to `ends` from now; `padding` bytes of comment make it longer.

        With `host`, an address or a name in DNS, it is a server's.
        """
        key = key or ec.generate_private_key(ec.SECP256R1())
        pem = self._sign(
            name, key, usage=SERVER if host else usage, starts=starts, ends=ends, padding=padding, host=host
        )
        return self.write(name, pem, key)

    def write(self, name: str, pem: bytes, key: ec.EllipticCurvePrivateKey) -> Pair:
        cert_path, key_path = self.home / f"{name}.crt", self.home / f"{name}.key"
        cert_path.write_bytes(pem)
        key_path.touch(mode=0o600)
        key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return cert_path, key_path

    def trusting(self) -> ssl.SSLContext:
        """For clients that trust it. Python 3.13 asks for more of a CA than this one has."""
        context = ssl.create_default_context(cafile=str(self.path))
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return context

    def _sign(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        *,
        ca: bool = False,
        usage: x509.ObjectIdentifier = CLIENT,
        starts: datetime.timedelta = -DAY,
        ends: datetime.timedelta = DAY,
        padding: int = 0,
        host: str = "",
    ) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name(self.name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + starts)
            .not_valid_after(now + ends)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if not ca:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if host:
            named = x509.DNSName(host) if host[-1].isalpha() else x509.IPAddress(ipaddress.ip_address(host))
            builder = builder.add_extension(x509.SubjectAlternativeName([named]), critical=False)
        if padding:
            comment = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), bytes(padding))
            builder = builder.add_extension(comment, critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def self_signed(home: Path, name: str) -> Pair:
    """A certificate that nobody vouches for."""
    authority = Authority(home, name)
    return authority.write(name, authority.path.read_bytes(), authority._key)


def bad_ones(authority: Authority, home: Path) -> dict[str, tuple[Pair, str]]:
    """Certificates that must not be accepted by who trusts `authority`, and what OpenSSL says of each."""
    return {
        "expired": (authority.issue("expired", starts=-3 * DAY, ends=-DAY), "certificate has expired"),
        "early": (authority.issue("early", starts=DAY, ends=2 * DAY), "certificate is not yet valid"),
        "usage": (authority.issue("usage", usage=SERVER), "purpose"),
        "another CA": (Authority(home / "other").issue("foreign"), "certificate signature failure"),
        "unknown CA": (
            Authority(home / "unknown", "nobody").issue("unknown"),
            "unable to get local issuer certificate",
        ),
        "self-signed": (self_signed(home / "own", "alone"), "self-signed certificate"),
    }
