"""The configuration of a client."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fastrelay import wire
from fastrelay.config.exposures import Exposure
from fastrelay.config.hosts import check_name
from fastrelay.config.relays import Relay
from fastrelay.dialling import NO_RULES, Rules
from fastrelay.errors import UsageError
from fastrelay.limits import DEFAULTS, Limits


@dataclass(frozen=True)
class ClientConfig:
    """A client called `name`; with "", and without exposures, one that only visits services of others. `token` is the token's text, a secret, which no repr shows; "" for none.

    `client_cert` and `client_key` are PEM files, or None; `pins` are the relay's, 32 bytes each, instead of the token's.
    `behind_proxy`: a proxy in front of the relay ends TLS (protocol.md 2.1). `allow_dial` is what the relay may have dialled here (protocol.md
    6.6). Raises UsageError for what cannot be together.
    """

    relay: Relay
    token: str = field(repr=False)
    exposures: tuple[Exposure, ...]
    name: str
    state: Path
    limits: Limits = DEFAULTS
    client_cert: Path | None = None
    client_key: Path | None = None
    pins: tuple[bytes, ...] = ()
    behind_proxy: bool = False
    allow_dial: Rules = NO_RULES

    def __post_init__(self) -> None:
        if self.name or self.exposures:
            check_name(self.name, "client")
        if (self.client_cert is None) is not (self.client_key is None):
            missing = "--client-cert" if self.client_cert is None else "--client-key"
            raise UsageError(
                f"A client's certificate and its key belong together and {missing} is missing: give both, or none."
            )
        if not self.token and self.client_cert is None:
            raise UsageError(
                "There is no token: give --token or --token-file, or set FASTRELAY_TOKEN; `fastrelay token show` on the relay prints it."
            )
        if not self.relay.tls and (self.client_cert is not None or self.pins):
            raise UsageError(
                f"The relay {self.relay.url} is plaintext, where neither side shows a certificate: leave out --client-cert and --pin."
            )
        if self.behind_proxy and not (self.relay.tls and self.relay.path is not None):
            raise UsageError(
                f"A proxy that ends TLS is reached with wss://, and {self.relay.url} is not: write the relay like wss://{self.relay.host}, or "
                "leave out --behind-proxy."
            )
        if self.behind_proxy and (self.client_cert is not None or self.pins):
            raise UsageError(
                "A proxy that ends TLS shows a certificate of its own and keeps ours from the relay: leave out --client-cert and --pin, "
                "or --behind-proxy."
            )
        if len(self.pins) > 2:
            raise UsageError("More than two pins are given: a relay has one key, and while it changes a next one.")
        if len(self.exposures) > wire.MAX_SERVICES:
            raise UsageError(
                f"{len(self.exposures)} services are too many for one client: expose at most {wire.MAX_SERVICES}, "
                "and the others from a second client with another --name."
            )
        names: dict[str, Exposure] = {}
        ports: dict[int, Exposure] = {}
        for exposure in self.exposures:
            other = names.setdefault(exposure.name, exposure)
            if other is not exposure:
                raise UsageError(
                    f"Two services are called {exposure.name!r} ({other.target} and {exposure.target}): "
                    f"give one another name, such as {exposure.name[:61]}-2={exposure.target}."
                )
            other = ports.setdefault(exposure.port, exposure)
            if exposure.port and other is not exposure:
                raise UsageError(
                    f"The services {other.name!r} and {exposure.name!r} both ask for the public port {exposure.port}: "
                    "give one of them another, or none."
                )
