"""The relay as a client names it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fastrelay.config.hosts import check_host, check_port, endpoint, is_loopback, join_host
from fastrelay.errors import UsageError

DEFAULT_PORT: Final = 7443
"""Where a relay listens for tunnels."""


@dataclass(frozen=True)
class Relay:
    """Where a client dials: `host` in the form that sockets take, and whether the tunnel is under TLS (protocol.md section 2)."""

    host: str
    port: int
    tls: bool

    def __post_init__(self) -> None:
        check_host(self.host)
        check_port(self.port, 1, "relay's port")
        if not self.tls and not is_loopback(self.host):
            raise UsageError(
                f"The relay {self.url!r} would be reached in plaintext, which is allowed on this machine only: "
                f"use tls://{join_host(self.host, self.port)}, or tcp://127.0.0.1:{self.port} for a relay here."
            )

    @property
    def url(self) -> str:
        """`tls://HOST:PORT` or `tcp://HOST:PORT`; `parse_relay` reads it back."""
        return f"{'tls' if self.tls else 'tcp'}://{join_host(self.host, self.port)}"


def parse_relay(text: str) -> Relay:
    """`HOST[:PORT]`, `[IPv6]`, `[IPv6]:PORT`, each also behind `tls://` or `tcp://`; without PORT it is 7443."""
    rest = text.strip()
    if rest.startswith("fr1."):  # not quoted: it is a secret
        raise UsageError(
            "The relay looks like a token: give the token with --token, and here the relay's HOST or HOST:PORT."
        )
    scheme, found, after = rest.partition("://")
    if found:
        rest = after
    try:
        if found and scheme.lower() not in ("tls", "tcp"):
            raise ValueError(f"the scheme {scheme!r} is not known, only tls and tcp are")
        host, port = endpoint(rest)
    except ValueError as why:
        raise UsageError(
            f"The relay {text!r} is not understood: {why}; write it like relay.example.com, relay.example.com:7443 or [2001:db8::7]:7443."
        ) from None
    return Relay(host, DEFAULT_PORT if port is None else port, not found or scheme.lower() == "tls")
