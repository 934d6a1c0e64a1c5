"""The configuration of a relay."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastrelay.config.hosts import NAME_LENGTH, PortRange, check_host, check_port, is_loopback
from fastrelay.config.relays import check_path
from fastrelay.errors import UsageError
from fastrelay.limits import DEFAULTS, Limits
from fastrelay.networks import Networks
from fastrelay.wire import WEBSOCKET_PATH


@dataclass(frozen=True)
class ServerConfig:
    """A relay. `ports` are given to visitors; `advertise` is the host that visitors type, "" if nobody said.

    `cert` and `key` are PEM files, or None for the relay's own identity in `state`. `client_ca` is a PEM file of CAs: clients may show a
    certificate of theirs, and with `require_client_cert` must. Connections from `balancers` begin with a PROXY header.
    WebSocket tunnels are taken at `websocket_path`; with `behind_proxy` nothing else is, without TLS, from the proxy that ends it.
    `http` and `https` are where the HTTP front listens, if it does, `http_cert` and `http_key` its PEM files, and `domain` is what its services have
    their host names under. Raises UsageError for what cannot be together.
    """

    bind_host: str
    bind_port: int
    ports: PortRange
    advertise: str
    state: Path
    cert: Path | None
    key: Path | None
    plaintext: bool
    limits: Limits = DEFAULTS
    client_ca: Path | None = None
    require_client_cert: bool = False
    balancers: Networks | None = None
    behind_proxy: bool = False
    websocket_path: str = WEBSOCKET_PATH
    http: tuple[str, int] | None = None
    https: tuple[str, int] | None = None
    http_cert: Path | None = None
    http_key: Path | None = None
    domain: str = ""

    def __post_init__(self) -> None:
        check_host(self.bind_host)
        check_port(self.bind_port, 0, "port to listen on")
        if self.advertise:
            check_host(self.advertise)
        if (self.cert is None) is not (self.key is None):
            missing = "--cert" if self.cert is None else "--key"
            raise UsageError(
                f"A certificate and its key belong together and {missing} is missing: give both, or none for the relay's own."
            )
        if self.require_client_cert and self.client_ca is None:
            raise UsageError(
                "Clients cannot be made to show a certificate, because nobody says whose are good: name a file of CAs with --client-ca."
            )
        if self.plaintext and self.client_ca is not None:
            raise UsageError("Tunnels without TLS show no certificates: leave out --plaintext or --client-ca.")
        if self.plaintext and not is_loopback(self.bind_host):
            raise UsageError(
                f"Tunnels without TLS are allowed on this machine only, and {self.bind_host!r} is more than that: "
                f"use --bind 127.0.0.1:{self.bind_port}, or leave --plaintext out."
            )
        check_path(self.websocket_path)
        if self.behind_proxy and self.plaintext:
            raise UsageError(
                "Tunnels without TLS either come from this machine or through a proxy that ends TLS: leave out --plaintext or --behind-proxy."
            )
        if self.behind_proxy and (self.cert is not None or self.client_ca is not None):
            raise UsageError(
                "Behind a proxy that ends TLS a relay shows no certificate and sees none: leave out --cert, --key and --client-ca, "
                "or --behind-proxy."
            )
        self._check_front()

    def _check_front(self) -> None:
        parts = (self.https, self.http_cert, self.http_key)
        if any(parts) and not all(parts):
            raise UsageError(
                "HTTPS needs an address, a certificate that browsers trust, and its key: give --https, --http-cert and --http-key together, or "
                "none of them."
            )
        if self.behind_proxy and self.https is not None:
            raise UsageError(
                "Behind a proxy that ends TLS nobody comes by HTTPS: leave out --https, or --behind-proxy."
            )
        if self.one_port and not self.behind_proxy and not self.domain:
            raise UsageError(
                "On one port it is the host's name that tells visitors from clients: say with --domain what visitors' names end in, or give --https "
                "a port of its own."
            )
        if not self.domain:
            return
        if self.http is None and self.https is None:
            raise UsageError(
                f"Nobody would answer for {self.domain}: say where with --http or --https, or leave --domain out."
            )
        if ":" in self.domain or self.domain[-1].isdigit() or "_" in self.domain:
            raise UsageError(f"The domain {self.domain!r} is not a name in DNS: write it like home.example.com.")
        check_host(f"{'x' * NAME_LENGTH}.{self.domain}")

    @property
    def scheme(self) -> str:
        """Of what it listens for."""
        return "tcp" if self.plaintext else "ws" if self.behind_proxy else "tls"

    @property
    def one_port(self) -> bool:
        """Whether tunnels and the HTTP front share a port: that of HTTPS, or of HTTP behind a proxy."""
        other = self.http if self.behind_proxy else self.https
        return self.bind_port > 0 and not self.plaintext and other == (self.bind_host, self.bind_port)

    @property
    def front(self) -> str:
        """What a client types to come through the proxy, as far as that is known here."""
        host = f"[{self.advertise}]" if ":" in self.advertise else self.advertise or "HOST"
        return f"wss://{host}{'' if self.websocket_path == WEBSOCKET_PATH else self.websocket_path} --behind-proxy"
