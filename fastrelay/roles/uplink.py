"""One tunnel to the relay, kept up: it connects, logs in, tries again when it was lost, and drains at the end.

What the tunnel is for is said by whoever is derived from it: `Client` serves visitors through it, `Caller` visits others.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import ssl
import time
from hashlib import sha256
from typing import Any

from fastrelay import __version__, log, wire
from fastrelay.auth import ClientLogin
from fastrelay.config import ClientConfig
from fastrelay.errors import (
    Code,
    FastrelayError,
    HandshakeError,
    LimitError,
    PinError,
    ProtocolError,
    ProxyError,
    RefusedError,
    StartError,
)
from fastrelay.mux.greeting import ClientGreeting
from fastrelay.mux.session import Session
from fastrelay.mux.stream import Stream
from fastrelay.net.backoff import Backoff
from fastrelay.net.changes import Changes
from fastrelay.net.connect import connect_through, proxy_for
from fastrelay.net.link import Core, Link
from fastrelay.net.runtime import Runtime
from fastrelay.net.telling import Totals
from fastrelay.roles.trust import Trust
from fastrelay.state import ClientState

_CONNECT_TIME = 15.0
_PROBE_TIME = 5.0
_FINAL = (Code.UNAUTHORIZED, Code.NAME_TAKEN, Code.VERSION, Code.SUPERSEDED, Code.DENIED)
"""Refusals that trying again does not change."""


class Uplink:
    """Made on a running loop; `run` returns when it was stopped, or raises StartError when the relay refuses for good, and unless `again` also
    when there is no tunnel any more.

    The owner of its sessions. A derived class answers `_stands`, `on_open`, `on_exposed` and `on_listed`.
    """

    def __init__(
        self, config: ClientConfig, state: ClientState, runtime: Runtime | None = None, *, again: bool = True
    ) -> None:
        self.config = config
        self._again = again
        self.runtime = runtime or Runtime(config.limits, "this client")
        # What waits for a dial counts against `memory` as a window does.
        early = wire.EARLY if config.limits.memory is None else wire.WINDOW_FLOOR
        self._settings = wire.Settings(max_streams=config.limits.streams, early=early)
        self._trust = Trust(config, state)
        relay = config.relay
        self._proxy = proxy_for(relay.host, relay.port) if relay.tls else None
        self._state = state
        self._backoff = Backoff()
        self._link: Link | None = None
        self._session: Session | None = None
        self._host = ""  # under which visitors reach the relay
        self._unheard = False  # the relay ended the last connection without a word
        self._once = False  # a session has stood: what failed since is transient until proved otherwise
        self._over = asyncio.Event()  # the current link is gone
        self._retry = asyncio.Event()
        self._stopping = False
        self._drain_end: asyncio.TimerHandle | None = None
        self._running: asyncio.Task[None] | None = None
        self._fatal: Exception | None = None
        self._lost: Exception | None = None
        self._label = ""  # of the session, in the logs of both sides
        self._totals = Totals()
        self._since = 0.0

    def _stands(self, session: Session) -> None:
        """A session has begun."""
        raise NotImplementedError

    def on_open(self, stream: Stream, request: wire.Open) -> None:
        raise NotImplementedError

    def on_exposed(self, answer: wire.Exposed) -> None:
        raise NotImplementedError

    def on_listed(self, answer: wire.Listed) -> None:
        raise NotImplementedError

    # --- life ----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        changes = Changes(self.runtime, self._changed)
        self._running = asyncio.current_task()
        config = self.config
        log.note(
            "client.started",
            f"{self._title} begins.",
            version=__version__,
            pid=os.getpid(),
            name=config.name or None,
            key_id=self._trust.key_id,
            relay=config.relay.url,
            proxy=None if self._proxy is None else str(self._proxy),
            exposures=[str(exposure) for exposure in config.exposures],
            state=str(config.state),
        )
        try:
            while True:
                await self._connect()
                if self._fatal is not None:
                    raise self._fatal
                if self._stopping:
                    await (
                        self.runtime.no_edges()
                    )  # the streams are over, but slow targets have not taken everything yet
                    return
                if not self._again:
                    raise StartError(self._explain(self._lost))
                await self._wait()
        except asyncio.CancelledError:
            if not self._stopping:
                raise
        finally:
            changes.close()

    def drain(self) -> None:
        """Ask the relay for no more visitors; `run` returns when the last stream has ended."""
        self._stopping = True
        if self._session is not None:
            assert self._link is not None
            self._session.goaway(Code.SHUTDOWN, "the client is going down")
            self._link.error = ProtocolError(Code.SHUTDOWN, "the client is going down")
            if self._drain_end is None:
                self._drain_end = self.runtime.loop.call_later(self.config.limits.drain_time, self._drain_over)
            self._idle_check()
        elif self._running is not None:
            self._running.cancel()  # nothing stands yet that could be drained

    def _drain_over(self) -> None:
        self.runtime.reached("drain-time", "this client")
        if self._link is not None:
            self._link.abort(ProtocolError(Code.SHUTDOWN, "the time to drain is over"))
        if self._running is not None:
            self._running.cancel()

    @property
    def streams(self) -> int:
        return 0 if self._session is None else len(self._session.streams)

    async def close(self) -> None:
        """End at once: what is left is reset."""
        self._stopping = True
        if self._drain_end is not None:
            self._drain_end.cancel()
        if self._running is not None:
            self._running.cancel()
        if self._link is not None:
            self._link.abort(ProtocolError(Code.SHUTDOWN, "the client has ended"))
            await self._over.wait()
        await self.runtime.close()
        self._state.close()
        log.note(
            "client.stopped",
            f"{self._title} has ended.",
            pid=os.getpid(),
            name=self.config.name or None,
            cause="shutdown" if self._fatal is None else log.cause(self._lost),
        )

    def _changed(self) -> None:
        """The machine woke up or its network changed: waiting is pointless, and the tunnel may be dead."""
        self._retry.set()
        if self._link is not None:
            self._link.probe(_PROBE_TIME)

    async def _connect(self) -> None:
        """One try; returns when the connection has failed or its tunnel has ended."""
        self._over.clear()
        self._lost = None
        self._unheard = False
        try:
            async with asyncio.timeout(_CONNECT_TIME):
                await self._dial()
        except BaseException as error:
            if self._link is not None:  # uvloop's transport, cancelled here, ends without a word
                self._link.connection_lost(None)
            if not isinstance(error, (OSError, ssl.SSLError, TimeoutError, ProxyError)):
                raise
            self._lost = error
        else:
            await self._over.wait()
        self._verdict()

    async def _dial(self) -> None:
        relay = self.config.relay
        options: dict[str, Any] = {
            "ssl": self._trust.context(),
            "server_hostname": relay.host if relay.tls else None,
            "ssl_handshake_timeout": self.config.limits.handshake_time if relay.tls else None,
            "ssl_shutdown_timeout": wire.GOODBYE_TIME if relay.tls else None,
        }
        connect = self.runtime.loop.create_connection
        if self._proxy is None:
            await connect(lambda: Link(self.runtime, self), relay.host, relay.port, **options)
            return
        sock = await connect_through(self._proxy, relay.host, relay.port)
        try:
            await connect(lambda: Link(self.runtime, self), sock=sock, **options)
        except BaseException:
            sock.close()
            raise

    def _verdict(self) -> None:
        """Is it worth trying again?"""
        error = self._lost
        if isinstance(error, ProtocolError) and error.code in _FINAL:
            self._fatal = StartError(f"The relay {self.config.relay.url} refused: {error.text}.")
        elif not self._once and isinstance(error, (PinError, ssl.SSLCertVerificationError)):
            self._fatal = StartError(self._explain(error))

    async def _wait(self) -> None:
        self._backoff.failed()
        delay = self._backoff.wait(random.random())
        log.warning(
            "tunnel.retry",
            f"{self._explain(self._lost)} Retry {self._backoff.failures} in {delay:.1f} s.",
            retry=self._backoff.failures,
            seconds=round(delay, 1),
            cause=log.cause(self._lost),
        )
        self._retry.clear()
        try:
            await asyncio.wait_for(self._retry.wait(), delay)
        except TimeoutError:
            pass

    # --- the tunnel ----------------------------------------------------------------------------------------------------

    def on_connected(self, link: Link) -> Core:
        """Nothing is sent before the certificate is known to be the relay's (protocol.md 4.1)."""
        self._link = link
        certificate = link.certificate()
        binding = None
        if certificate is not None and not self.config.behind_proxy:
            binding = sha256(certificate).digest()
            self._trust.check(certificate)
        login = ClientLogin(
            self._trust.token,
            self.config.name,
            self._state.instance,
            binding,
            secrets.token_bytes(32),
            self._settings,
            f"fastrelay/{__version__}",
        )

        def greet() -> Core:
            greeting = ClientGreeting(
                link.decoder, login, link.write, lambda welcome, theirs: self._begin(login.pins, welcome, theirs)
            )
            greeting.start()
            return greeting

        relay = self.config.relay
        if relay.path is None:
            return greet()
        from fastrelay.net.websocket import ClientSide

        return ClientSide(link, greet, relay.host, relay.port, relay.path, tls=relay.tls)

    def _begin(self, pins: tuple[bytes, ...], welcome: wire.Welcome, theirs: wire.Settings) -> None:
        assert self._link is not None
        self._host = welcome.host or self.config.relay.host
        self._session = self._link.begin(self, dialer=True, ours=self._settings, theirs=theirs)
        self._backoff.succeeded()
        self._once = True
        url = self.config.relay.url
        self._label = welcome.session
        self._totals = Totals()
        self._since = self._session.now
        log.info(
            "tunnel.up", f"Connected to {url}{f' as {self.config.name}' if self.config.name else ''}.", **self._myself()
        )
        self._trust.learn(pins)
        self._stands(self._session)
        if self._stopping:
            self.drain()

    def on_closed(self, link: Link, error: Exception | None) -> None:
        if link is not self._link:
            return  # the try that it belonged to was given up before it ended
        if isinstance(error, ProtocolError) and not isinstance(error, (RefusedError, HandshakeError)):
            if link.first_bytes[:1] == b"\x15":
                error = ConnectionAbortedError("it speaks TLS, and this client does not; use tls:// for it")
            elif link.first_bytes[:5] == b"HTTP/":
                error = ConnectionAbortedError(
                    "it answers in HTTP; for a relay behind that use wss://, on this machine ws://"
                )
        if self._session is not None:
            cause = log.cause(error)
            log.note(
                "tunnel.down",
                f"The tunnel to {self.config.relay.url} has ended: {cause}.",
                **self._myself(),
                **self._totals.fields(),
                seconds=round(time.monotonic() - self._since, 3),
                cause=cause,
            )
        if isinstance(error, LimitError):
            self.runtime.reached(error.limit, f"the relay {self.config.relay.url}")
        self._unheard = self._session is None and not link.first_bytes
        self._lost = error
        self._link = None
        self._session = None
        self._over.set()

    # --- the session ---------------------------------------------------------------------------------------------------

    def on_expose(self, request: wire.Expose) -> None:
        """Only a relay gets these; the session refuses them here."""

    def on_list(self) -> None:
        """Only a relay gets these; the session refuses them here."""

    def on_pins(self, pins: tuple[bytes, ...]) -> None:
        self._trust.learn(pins)

    def on_goaway(self, code: Code, text: str) -> None:
        assert self._link is not None
        if code is Code.SHUTDOWN:
            self._link.error = ProtocolError(code, text)
        else:
            self._link.abort(ProtocolError(code, text))

    def on_idle(self) -> None:
        if self._stopping:
            self.runtime.loop.call_soon(self._idle_check)

    def _idle_check(self) -> None:
        if self._link is not None and not self.streams:
            self._link.close()

    @property
    def _title(self) -> str:
        return f"The client {self.config.name}" if self.config.name else "A client that visits others"

    def _myself(self) -> dict[str, object]:
        return {
            "name": self.config.name or None,
            "key_id": self._trust.key_id,
            "session": self._label,
            "relay": self.config.relay.url,
        }

    # --- words ---------------------------------------------------------------------------------------------------------

    def _explain(self, error: Exception | None) -> str:
        url = self.config.relay.url
        if isinstance(error, PinError):
            return str(error)
        if isinstance(error, ssl.SSLCertVerificationError) and self.config.behind_proxy:
            return (
                f"The certificate of {url} is not trusted here ({error.verify_message}), so nothing was sent: behind a proxy a CA must vouch "
                "for it that this machine knows; without one leave out --behind-proxy."
            )
        if isinstance(error, ssl.SSLCertVerificationError):
            return (
                f"The certificate of {url} is not trusted here ({error.verify_message}), so nothing was sent: use the token with a pin "
                "that `fastrelay token show` prints on the relay, or its pin with --pin."
            )
        if (
            self._unheard
            and (error is None or isinstance(error, (ConnectionError, ssl.SSLError)))
            and (suspicion := self._trust.suspicion())
        ):
            return f"{url} closed the connection without a word: {suspicion}."
        if isinstance(error, ProxyError):
            return f"Cannot connect to {url}: {error}."
        if isinstance(error, HandshakeError):
            return f"{url} does not take tunnels: {error.text}."
        if isinstance(error, ssl.SSLError) and "no_application_protocol" in str(error).lower().replace(" ", "_"):
            return f"{url} is no port for tunnels: it takes HTTP; for a relay behind that use wss://."
        if isinstance(error, ssl.SSLError):
            return f"{url} does not speak TLS 1.3 as a relay does ({(error.reason or str(error)).replace('_', ' ').lower()})."
        if self._once and (error is None or isinstance(error, ConnectionError)):
            return f"The tunnel to {url} was lost."
        if isinstance(error, ProtocolError) and error.code in (Code.NO_ERROR, Code.SHUTDOWN):
            return f"The tunnel to {url} has ended: {error.text}."
        if isinstance(error, FastrelayError):
            return f"The tunnel to {url} has ended: {error}."
        if isinstance(error, TimeoutError):
            return f"{url} does not answer."
        if isinstance(error, ConnectionRefusedError):
            return f"{url} refuses connections: is the relay running there?"
        if error is None or isinstance(error, ConnectionResetError):
            return f"{url} closed the connection before the login was done: it is busy, or too many logins from this address have failed."
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        return f"Cannot connect to {url}: {reason}."
