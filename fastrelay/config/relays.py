"""The relay as a client names it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from fastrelay.config.hosts import check_host, check_port, endpoint, is_loopback, join_host
from fastrelay.errors import UsageError
from fastrelay.wire import WEBSOCKET_PATH

DEFAULT_PORT: Final = 7443
"""Where a relay listens for tunnels."""

_PORTS: Final = {"tls": DEFAULT_PORT, "tcp": DEFAULT_PORT, "wss": 443, "ws": 80}
_PATH: Final = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@%/-]{0,255}")


@dataclass(frozen=True)
class Relay:
    """Where a client dials: `host` in the form that sockets take, and whether the tunnel is under TLS (protocol.md section 2).

    A tunnel inside a WebSocket asks for `path` (section 2.1); None is a native one.
    """

    host: str
    port: int
    tls: bool
    path: str | None = None

    def __post_init__(self) -> None:
        check_host(self.host)
        check_port(self.port, 1, "relay's port")
        if self.path is not None:
            check_path(self.path)
        if not self.tls and not is_loopback(self.host):
            safe, here = ("tls", "tcp") if self.path is None else ("wss", "ws")
            raise UsageError(
                f"The relay {self.url!r} would be reached in plaintext, which is allowed on this machine only: "
                f"use {safe}://{join_host(self.host, self.port)}, or {here}://127.0.0.1:{self.port} for a relay here."
            )

    @property
    def url(self) -> str:
        """`SCHEME://HOST:PORT`, with the path if it is not the usual one; `parse_relay` reads it back."""
        where = join_host(self.host, self.port)
        if self.path is None:
            return f"{'tls' if self.tls else 'tcp'}://{where}"
        return f"{'wss' if self.tls else 'ws'}://{where}{'' if self.path == WEBSOCKET_PATH else self.path}"


def check_path(path: str) -> None:
    """Where a relay takes WebSocket tunnels. Raises UsageError."""
    if not _PATH.fullmatch(path):
        raise UsageError(
            f"The path {path!r} is not understood: write it like {WEBSOCKET_PATH}, in characters of a URL and without ? and #."
        )


def parse_relay(text: str) -> Relay:
    """`HOST[:PORT]`, `[IPv6]`, `[IPv6]:PORT`, each also behind `tls://` or `tcp://`; without PORT it is 7443.

    `wss://` and `ws://` are tunnels inside WebSocket: without PORT it is 443 or 80, and a path may follow.
    """
    rest = text.strip()
    if rest.startswith("fr1."):  # not quoted: it is a secret
        raise UsageError(
            "The relay looks like a token: give the token with --token, and here the relay's HOST or HOST:PORT."
        )
    scheme, path = "tls", None
    before, found, after = rest.partition("://")
    if found:
        scheme, rest = before.lower(), after
    if scheme in ("wss", "ws"):
        rest, slash, after = rest.partition("/")
        path = slash + after or WEBSOCKET_PATH
        if "@" in rest:  # not quoted either
            raise UsageError(
                "The relay has a user or a password in it, and takes none: write it like wss://relay.example.com."
            )
    try:
        if scheme not in _PORTS:
            raise ValueError(f"the scheme {before!r} is not known, only {', '.join(_PORTS)} are")
        host, port = endpoint(rest)
    except ValueError as why:
        raise UsageError(
            f"The relay {text!r} is not understood: {why}; write it like relay.example.com, relay.example.com:7443, [2001:db8::7]:7443 "
            "or wss://relay.example.com."
        ) from None
    return Relay(host, _PORTS[scheme] if port is None else port, scheme in ("tls", "wss"), path)
