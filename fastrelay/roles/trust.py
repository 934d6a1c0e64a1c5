"""Whom a client trusts, and what it shows of itself: pins, what the relay has said of its next key, a client certificate.

Invariant: what a relay says of its keys is kept only if its key fitted a pin and it has proved that it knows the token (protocol.md 4.3).
"""

from __future__ import annotations

import dataclasses
import ssl

from fastrelay import log, wire
from fastrelay.auth import Token, pin_texts
from fastrelay.config import ClientConfig
from fastrelay.errors import PinError, StartError
from fastrelay.net.tls import client_context, pin_fits, stamp
from fastrelay.state import ClientState


class Trust:
    """Raises StartError when a file of the client's certificate or of its state cannot be used."""

    def __init__(self, config: ClientConfig, state: ClientState) -> None:
        self.token = _token(config)
        self._config = config
        self._state = state
        self._pins = config.pins if self.token is None else state.pins(self.token)
        if config.behind_proxy:  # its certificate is the proxy's, which the CAs vouch for
            self._pins = ()
        self._alpn = wire.ALPN if config.relay.path is None else wire.ALPN_HTTP
        cert, key = config.client_cert, config.client_key
        self._own = None if cert is None or key is None else (cert, key)
        self._stamp = stamp(self._own or ())
        self._context = client_context(bool(self._pins), self._own, self._alpn) if config.relay.tls else None

    @property
    def key_id(self) -> str:
        """The token's; "" without one."""
        return "" if self.token is None else self.token.key_id

    def context(self) -> ssl.SSLContext | None:
        """For the next connection; None for a plaintext tunnel. The client's certificate may have been renewed since the last one."""
        now = stamp(self._own or ())
        if now != self._stamp:
            self._stamp = now
            try:
                self._context = client_context(bool(self._pins), self._own, self._alpn)
            except StartError as error:
                log.warning("certificate.not_loaded", f"The client goes on with its former certificate. {error}")
        return self._context

    def check(self, certificate: bytes) -> None:
        """Hold what the relay has shown (DER) against the pins, if there are any. Raises PinError, a sentence."""
        if not self._pins or pin_fits(certificate, self._pins):
            return
        url = self._config.relay.url
        if self._config.relay.path is not None and not self._config.pins:
            raise PinError(
                f"The certificate of {url} does not match the token, so nothing was sent: if a proxy such as a CDN ends TLS there, say so with "
                "--behind-proxy; else it is the wrong relay, one with another key, or somebody in between."
            )
        if self._config.pins:
            raise PinError(
                f"The certificate of {url} does not match --pin, so nothing was sent: it is the wrong relay, one with another key, or "
                "somebody in between; get the pin with `fastrelay key show` on the relay."
            )
        if self.token is not None and self._pins != self.token.pins:
            raise PinError(
                f"The certificate of {url} does not match what the relay has said of its keys, so nothing was sent: it is the wrong relay, "
                "one with an older state directory, or somebody in between; get a new token with `fastrelay token new` on the relay, or "
                f"remove {self._state.pins_path} to go by the token that is here."
            )
        raise PinError(
            f"The certificate of {url} does not match the token, so nothing was sent: it is the wrong relay, one with a new state "
            "directory or key, or somebody in between; get a new token with `fastrelay token show` on the relay."
        )

    def learn(self, pins: tuple[bytes, ...]) -> None:
        """The relay, which has proved that it knows the token, says what its keys are and will be."""
        if self.token is None or self._context is None or not self._pins or not pins or pins == self._pins:
            return
        self._pins = pins
        url = self._config.relay.url
        keys = "two keys, its own and the next one" if len(pins) > 1 else "one key"
        log.info("relay.pins", f"{url} is known by {keys} from now on.", relay=url, pins=pin_texts(pins))
        try:
            self._state.save_pins(self.token, pins)
        except OSError as error:
            log.error(
                "state.not_saved",
                f"What {url} says of its keys was not saved ({error.strerror or error}): after a restart this client may not know it.",
            )

    def suspicion(self) -> str:
        """Half a sentence for a relay that hung up without a word: TLS does not say so when it was the client's certificate. "" without one."""
        if self._own is None:
            return ""
        return (
            f"it may not accept the client's certificate, so check that {self._own[0]} is not expired and is signed by a CA that the relay "
            "takes with --client-ca; the relay's log says what is wrong"
        )


def _token(config: ClientConfig) -> Token | None:
    """The token; pins that were given count instead of its own."""
    if not config.token:
        return None
    token = Token.parse(config.token)
    return dataclasses.replace(token, pins=config.pins) if config.pins else token
