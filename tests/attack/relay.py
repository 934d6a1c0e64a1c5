"""A relay that means harm: the real client comes to it, and it says what it likes. Written from protocol.md, like the client beside it."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import socket
import ssl
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.attack.client import ALPN, NO_BINDING
from tests.attack.frames import Kind, Token, b64, exposed, frame, proofs, said
from tests.attack.line import Line
from tests.support.peers import TIMEOUT

HOUR = datetime.timedelta(hours=1)


class Relay:
    """Listens on loopback; `url` and `token` are what a client is started with. Under TLS, `home` is where its certificate goes."""

    def __init__(self, home: Path | None = None) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        port = self.listener.getsockname()[1]
        self.url = f"{'tcp' if home is None else 'tls'}://127.0.0.1:{port}"
        self._context: ssl.SSLContext | None = None
        self._binding = NO_BINDING
        pins: tuple[bytes, ...] = ()
        if home is not None:
            certificate, pin = make_certificate(home)
            self._binding = hashlib.sha256(certificate).digest()
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(home / "hostile.pem")
            self._context.set_alpn_protocols([ALPN])
            pins = (pin,)
        self.token = Token("hostile_", os.urandom(32), pins)

    def meet(self, timeout: float = TIMEOUT) -> Line:
        """The next connection of the client; nothing was said on it yet."""
        self.listener.settimeout(timeout)
        sock, _ = self.listener.accept()
        sock.settimeout(TIMEOUT)
        return Line(sock if self._context is None else self._context.wrap_socket(sock, server_side=True))

    def greet(self, line: Line, *, version: int = 1, proof: bytes | None = None, **members: object) -> Line:
        """The handshake, with a wrong proof or other members of WELCOME if it is told to."""
        hello_c = line.frame(Kind.HELLO).payload
        hello_s = json.dumps(
            {
                "version": version,
                "agent": "hostile",
                "nonce": b64(os.urandom(32)),
                "features": [],
                "settings": {"max_data": 1_048_576, "early": 65_536, "max_streams": 65_535},
            }
        ).encode()
        line.send(frame(Kind.HELLO, 0, hello_s))
        auth = json.loads(line.frame(Kind.AUTH).payload)
        _, ours = proofs(
            self.token.secret, hello_c, hello_s, auth["key_id"], auth["name"], auth["instance"], self._binding
        )
        line.send(said(Kind.WELCOME, proof=b64(ours if proof is None else proof), session="hostile", **members))
        return line

    def welcome(self, services: int = 1, timeout: float = TIMEOUT) -> Line:
        """A session that stands, and whose services were all answered with ports."""
        line = self.greet(self.meet(timeout))
        for number in range(services):
            asked = json.loads(line.frame(Kind.EXPOSE).payload)
            line.send(exposed(asked["service"], port=20_000 + number))
        return line

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()


def make_certificate(home: Path) -> tuple[bytes, bytes]:
    """A self-signed certificate and its key in home/hostile.pem; its DER, and its pin (protocol.md 4.3)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hostile")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = builder.not_valid_before(now - HOUR).not_valid_after(now + HOUR).sign(key, hashes.SHA256())
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    (home / "hostile.pem").write_bytes(pem + made.public_bytes(serialization.Encoding.PEM))
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    pin = hashlib.sha256(key.public_key().public_bytes(encoding, form)).digest()
    return made.public_bytes(serialization.Encoding.DER), pin
