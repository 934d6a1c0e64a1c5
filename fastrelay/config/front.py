"""The HTTP front of a relay as its callers name it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fastrelay.config.hosts import check_host, check_port, endpoint, is_loopback, join_host
from fastrelay.config.relays import check_path
from fastrelay.errors import UsageError

_PORTS: Final = {"https": 443, "http": 80}


@dataclass(frozen=True)
class Front:
    """`path` is what its own paths are behind, "" for nothing. Raises UsageError for a token that would be sent in plaintext."""

    host: str
    port: int
    tls: bool
    path: str = ""

    def __post_init__(self) -> None:
        check_host(self.host)
        check_port(self.port, 1, "relay's port")
        if self.path:
            check_path(self.path)
        if not self.tls and not is_loopback(self.host):
            raise UsageError(
                f"The token would go to {self.host!r} in plaintext, which is allowed on this machine only: use "
                f"https://{join_host(self.host, _PORTS['https'])}, or http://127.0.0.1 for a relay here."
            )


def parse_front(text: str) -> Front:
    """`https://HOST[:PORT][/PATH]`, or `http://…` for one on this machine. Raises UsageError."""
    scheme, found, rest = text.strip().partition("://")
    where, _, path = rest.partition("/")
    if "@" in where:  # not quoted: there may be a secret
        raise UsageError("The URL has a user or a password in it: the token is given with --token or --token-file.")
    try:
        if not found or scheme.lower() not in _PORTS:
            raise ValueError("it begins with https:// or http://")
        host, port = endpoint(where)
    except ValueError as why:
        raise UsageError(
            f"The URL {text!r} is not understood: {why}; write it like https://relay.example.com or https://relay.example.com:8443."
        ) from None
    path = f"/{path.rstrip('/')}" if path.rstrip("/") else ""
    return Front(host, _PORTS[scheme.lower()] if port is None else port, scheme.lower() == "https", path)
