"""A client that means harm: it logs in as protocol.md section 4 says, or nearly so, and then sends what it likes."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import ssl

from tests.attack.frames import Kind, Token, b64, expose, frame, proofs, said, unb64
from tests.attack.line import Line
from tests.support.peers import TIMEOUT, Address

ALPN = "fastrelay/1"
NO_BINDING = bytes(32)


def connect(address: Address, *, tls: bool, source: str | None = None) -> Line:
    """A connection to the tunnel port, on which nothing was said yet; `source` is the local address to come from."""
    sock = socket.create_connection(address, TIMEOUT, (source, 0) if source else None)
    if not tls:
        return Line(sock)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([ALPN])
    try:
        return Line(context.wrap_socket(sock, suppress_ragged_eofs=True))
    except BaseException:
        sock.close()
        raise


def binding(line: Line) -> bytes:
    """SHA-256 of the relay's certificate; zeros without TLS."""
    if not isinstance(line.sock, ssl.SSLSocket):
        return NO_BINDING
    return hashlib.sha256(line.sock.getpeercert(binary_form=True) or b"").digest()


def hello(bound: bytes, **members: object) -> bytes:
    """The payload of HELLO; `members` are added or replaced."""
    honest = {
        "versions": [1, 1],
        "agent": "attacker",
        "nonce": b64(os.urandom(32)),
        "binding": "none" if bound == NO_BINDING else b64(bound),
        "features": [],
        "settings": {"max_data": 1_048_576, "early": 65_536, "max_streams": 65_535},
    }
    return json.dumps(honest | members, separators=(",", ":")).encode()


def auth(token: Token, hello_c: bytes, hello_s: bytes, bound: bytes, name: str, instance: str) -> tuple[bytes, bytes]:
    """AUTH as a frame, and the proof that WELCOME must carry."""
    ours, theirs = proofs(token.secret, hello_c, hello_s, token.key_id, name, instance, bound)
    return said(Kind.AUTH, key_id=token.key_id, proof=b64(ours), name=name, instance=instance), theirs


def login(line: Line, token: Token, name: str, instance: str = "attacker") -> Line:
    """An honest handshake, up to WELCOME."""
    bound = binding(line)
    ours = hello(bound)
    line.send(frame(Kind.HELLO, 0, ours))
    words, proof = auth(token, ours, line.frame(Kind.HELLO).payload, bound, name, instance)
    line.send(words)
    welcome = json.loads(line.frame(Kind.WELCOME).payload)
    assert unb64(welcome["proof"]) == proof, "the relay does not know the token"
    return line


def attacker(
    address: Address, token: Token, name: str = "attacker", *, tls: bool = False, source: str | None = None
) -> Line:
    """A session that stands."""
    line = connect(address, tls=tls, source=source)
    try:
        return login(line, token, name)
    except BaseException:
        line.close()
        raise


def public_port(line: Line, number: int = 1, **members: object) -> int:
    """Ask for a service; its port."""
    line.send(expose(number, **members))
    answer = json.loads(line.frame(Kind.EXPOSED).payload)
    assert answer["service"] == number and "port" in answer, answer
    return int(answer["port"])
