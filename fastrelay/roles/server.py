"""The relay: clients dial in and expose services, visitors come to public ports, and each visitor becomes a stream.

A visitor's way: VisitorDoor -> Visitor (an Edge) -> Session.open; from there on only Edge, Stream and Link are involved.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import os
import secrets
import ssl
import time
from collections import Counter

import msgspec

from fastrelay import __version__, log, wire
from fastrelay.auth import RelayLogin
from fastrelay.config import NAME, ServerConfig, join_host
from fastrelay.errors import Code, LimitError, ProtocolError, StartError
from fastrelay.mux.greeting import RelayGreeting
from fastrelay.mux.session import Session
from fastrelay.mux.stream import Stream
from fastrelay.net.keys import Shown, settle
from fastrelay.net.link import Core, Link
from fastrelay.net.listen import TunnelDoor, listen
from fastrelay.net.memory import bound
from fastrelay.net.runtime import Runtime
from fastrelay.net.telling import Totals
from fastrelay.net.tls import Identity, shown_key
from fastrelay.networks import Networks
from fastrelay.policy import Key
from fastrelay.roles.keyring import Keyring
from fastrelay.roles.refusals import Refusals, explain
from fastrelay.roles.registry import Registry
from fastrelay.roles.visitors import Service
from fastrelay.state import ServerState

_SAVE_AFTER = 0.2
_SEEN_EVERY = 3600.0


class Server:
    """Made on a running loop; `start` listens. Raises StartError when it cannot."""

    def __init__(self, config: ServerConfig, state: ServerState) -> None:
        self.config = config
        self.runtime = Runtime(config.limits, "this relay")
        self.settings = wire.Settings()
        self._shown: Shown | None = None if config.plaintext else _shown(config, state)
        self.registry = Registry(state.reservations(), config.limits.reserved_time)
        self.port = 0  # for tunnels; once started
        self._state = state
        self._door: TunnelDoor | None = None
        self._links: set[Link] = set()  # those in their greeting as well
        self._tunnels: dict[Link, Tunnel] = {}
        self._clients: Counter[str] = Counter()  # how many of them each token has, by its key id
        self.keyring = Keyring(self.runtime.loop, state, self._tunnels.values, self._look)
        self._seen: asyncio.TimerHandle | None = None
        self._saving: asyncio.TimerHandle | None = None
        self._draining = False
        self._ended = asyncio.Event()  # a link has ended while we drain

    def token(self) -> str:
        """The first token's text, "" if it is no longer kept."""
        return first_token(self._state, self.pins)

    @property
    def identity(self) -> Identity | None:
        """What clients see in TLS from now on; None for plaintext tunnels."""
        return None if self._shown is None else self._shown.identity

    @property
    def pins(self) -> tuple[bytes, ...]:
        """What clients know this relay by; nothing where CAs vouch for it, and without TLS."""
        return () if self._shown is None else self._shown.pins

    # --- life ----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        config = self.config
        try:
            sock = listen(config.bind_host, config.bind_port)
        except OSError as error:
            where = join_host(config.bind_host, config.bind_port)
            raise StartError(f"Cannot listen on {where}: {_why(error)}. Choose another address with --bind.") from None
        context = None if self._shown is None else self._shown.context
        limits = dataclasses.replace(config.limits, max_greetings=self.runtime.strangers)
        self._door = TunnelDoor(self.runtime, sock, context, lambda: Link(self.runtime, self), Refusals(limits), limits)
        self.port = self._door.port
        scheme = "tcp" if config.plaintext else "tls"
        with contextlib.suppress(OSError):  # for the line that `token new` prints, which does without
            self._state.save_address(f"{scheme}://{join_host(config.advertise or config.bind_host, self.port)}")
        self.keyring.start()
        self._seen = self.runtime.loop.call_later(_SEEN_EVERY, self._still_here)
        where = join_host(config.bind_host, self.port)
        self.bound = bound(config.limits)
        log.note(
            "server.started",
            f"The relay listens on {where}.",
            version=__version__,
            pid=os.getpid(),
            bind=where,
            ports=str(config.ports),
            advertise=config.advertise,
            state=str(config.state),
            tls=not config.plaintext,
            memory=self.bound._asdict(),
        )

    async def drain(self) -> None:
        """Accept nobody new, let streams end for up to the limit `drain-time`, then close."""
        self._draining = True
        if self._door is not None:
            self._door.close()
        for tunnel in list(self._tunnels.values()):
            tunnel.wind_down("the relay is going down")
        try:
            async with asyncio.timeout(self.config.limits.drain_time):
                while self._tunnels:
                    self._ended.clear()
                    await self._ended.wait()
                await self.runtime.no_edges()  # the streams are over, but slow visitors have not taken everything yet
        except TimeoutError:
            self.runtime.reached("drain-time", "the relay")

    async def close(self) -> None:
        """End at once: what is left is reset."""
        self._draining = True
        if self._door is not None:
            self._door.close()
        for link in list(self._links):
            link.abort(ProtocolError(Code.SHUTDOWN, "the relay has ended"))
        while self._links:
            self._ended.clear()
            await self._ended.wait()
        await asyncio.sleep(0)  # visitors' transports end one turn after their tunnel
        if self._seen is not None:
            self._seen.cancel()
        self.keyring.close()
        self._save()
        await self.runtime.close()
        self._state.close()
        log.note("server.stopped", "The relay has ended.", pid=os.getpid())

    # --- tunnels -------------------------------------------------------------------------------------------------------

    def on_connected(self, link: Link) -> Core:
        tls: ssl.SSLObject | None = link.transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != wire.ALPN:
            raise ProtocolError(Code.PROTOCOL, f"it does not ask for the protocol {wire.ALPN}")
        login = RelayLogin(
            self._state.find,
            self._state.seed,
            None if tls is None or self._shown is None else self._shown.of(tls.context).fingerprint,
            secrets.token_bytes(32),
            self.settings,
            f"fastrelay/{__version__}",
            shown=shown_key(link.certificate()),
            find_cert=self._state.find_cert,
            required=self.config.require_client_cert,
            pins=lambda: self.pins,
        )
        tunnel = Tunnel(self, link)
        self._links.add(link)
        return RelayGreeting(
            link.decoder,
            login,
            link.write,
            lambda auth, theirs: tunnel.admit(login.admitted.key_id, auth, theirs),
            tunnel.begin,
        )

    def on_closed(self, link: Link, error: Exception | None) -> None:
        self._links.discard(link)
        tunnel = self._tunnels.pop(link, None)
        if tunnel is not None:
            self._clients[tunnel.key.key_id] -= 1
            tunnel.gone(error)
            self.save_soon()
        elif self._door is not None:
            self._door.ended(link, error)
        self._ended.set()

    # --- files that change ---------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Certificates and keys may have been replaced. Handshakes from now on see the new ones; tunnels that stand go on."""
        if self._shown is None or self._door is None:
            return
        pins = self.pins
        if self._shown.look():
            self._door.context = self._shown.context
            if self.pins != pins:
                for tunnel in self._tunnels.values():
                    tunnel.session.tell_pins(self.pins)

    def make_room(self, key: Key, name: str) -> None:
        """Raises ProtocolError (CALM) where a token has as many clients here as may be. Who is here already may always come again."""
        most = min(self.config.limits.clients, self.runtime.files // 4)
        if self._clients[key.key_id] >= most and not self.registry.here(name):
            self.runtime.reached("clients", f"the token {key.label}", most)
            raise ProtocolError(
                Code.CALM,
                f"{most} clients with the token {key.label!r} are connected, as many as may be; stop one, or raise the limit `clients` "
                "of the relay",
                token=key.label,
                key_id=key.key_id,
                name=name,
            )

    def admitted(self, link: Link, tunnel: Tunnel) -> None:
        self._tunnels[link] = tunnel
        self._clients[tunnel.key.key_id] += 1
        if self._door is not None:
            self._door.admitted(link)
        self.save_soon()

    # --- reservations --------------------------------------------------------------------------------------------------

    def save_soon(self) -> None:
        """Many changes, one write."""
        if self._saving is None:
            self._saving = self.runtime.loop.call_later(_SAVE_AFTER, self._save)

    def _save(self) -> None:
        if self._saving is not None:
            self._saving.cancel()
            self._saving = None
        for name in self.registry.forgotten():
            self.runtime.reached("reserved-time", name)
        try:
            self._state.save_reservations(self.registry.reservations(time.time()))
        except OSError as error:
            log.error(
                "state.not_saved", f"Reservations were not saved ({_why(error)}): a restart would forget the newest."
            )

    def _still_here(self) -> None:
        self.save_soon()
        self._seen = self.runtime.loop.call_later(_SEEN_EVERY, self._still_here)


class Tunnel:
    """One client that is here: the owner of its session."""

    session: Session
    key: Key
    """What it was admitted with."""

    def __init__(self, server: Server, link: Link) -> None:
        self._server = server
        self.link = link
        self.name = ""
        self.label = secrets.token_urlsafe(6)  # of the session, in the logs of both sides
        self.totals = Totals()
        self.services: dict[int, Service] = {}
        self._since = 0.0
        self._theirs = wire.Settings()

    # --- the greeting --------------------------------------------------------------------------------------------------

    def admit(self, key_id: str, auth: wire.Auth, theirs: wire.Settings) -> tuple[str, str]:
        server = self._server
        if server._draining:
            raise ProtocolError(Code.SHUTDOWN, "the relay is going down")
        now = time.time()
        self.key = server.keyring.admit(key_id, auth.name, now)
        server.make_room(self.key, auth.name)
        old = server.registry.claim(auth.name, auth.instance, self, now)
        self.name = auth.name
        most = min(theirs.max_streams, server.config.limits.streams)
        self._theirs = msgspec.structs.replace(theirs, max_streams=self.key.streams(most))
        if isinstance(old, Tunnel):
            old.supersede()
        return self.label, server.config.advertise

    def begin(self) -> None:
        link = self.link
        self.session = link.begin(self, dialer=False, ours=self._server.settings, theirs=self._theirs)
        self._server.admitted(link, self)
        self._since = self.session.now
        self.session.on_refused = self._refused
        log.info("client.connected", f"Client {self.name} connected from {link.peer}.", **self._who())

    # --- the session ---------------------------------------------------------------------------------------------------

    def on_open(self, stream: Stream, request: wire.Open) -> None:
        stream.reset(Code.NO_SERVICE)  # a relay serves nothing itself
        self._refused(stream, request, Code.NO_SERVICE)

    def _refused(self, stream: Stream, request: wire.Open, code: Code) -> None:
        cause = log.CAUSES[code]
        text = f"Refused a stream that {self.name} opened: {cause}."
        log.note("stream.refused", text, **self._who(), stream=stream.id, cause=cause)

    def on_expose(self, request: wire.Expose) -> None:
        answer, rule = self._expose(request)
        self.session.exposed(answer)
        if answer.port:
            log.info(
                "service.ready",
                f"Visitors of port {answer.port}{' from ' if request.visitors else ''}{', '.join(request.visitors)} "
                f"reach {request.name} of {self.name}.",
                **self._who(),
                service=request.name,
                port=answer.port,
                visitors=request.visitors,
            )
        else:
            log.warning(
                "service.refused",
                f"Refused {request.name} of {self.name}: {answer.text}.",
                **self._who(),
                service=request.name,
                error=answer.error,
                port=request.port,
                rule=rule or None,
            )

    def on_exposed(self, answer: wire.Exposed) -> None:
        """Only a client gets these; the session refuses them here."""

    def on_pins(self, pins: tuple[bytes, ...]) -> None:
        """Only a client gets these; the session refuses them here."""

    def on_goaway(self, code: Code, text: str) -> None:
        self.withdraw()
        error = ProtocolError(code, text)
        if code is Code.SHUTDOWN:
            self.link.error = error
            self.on_idle_check()
        else:
            self.link.abort(error)

    def on_idle(self) -> None:
        if self.session.going_away:
            self._server.runtime.loop.call_soon(self.on_idle_check)

    def on_idle_check(self) -> None:
        """Going away, and the last stream is gone: close the tunnel."""
        if not self.session.streams:
            self.link.close()

    # --- services ------------------------------------------------------------------------------------------------------

    def _expose(self, request: wire.Expose) -> tuple[wire.Exposed, str]:
        """The answer, and the rule of the token that said no, "" for others."""

        def refused(error: str, text: str, rule: str = "") -> tuple[wire.Exposed, str]:
            return wire.Exposed(service=request.service, error=error, text=text), rule

        if not (NAME.fullmatch(request.name) and 0 < request.service < 1 << 32 and request.kind == "tcp"):
            return refused("bad-request", "the request has a name, number or kind that cannot be")
        if request.service in self.services or not 0 <= request.port <= 65535:
            return refused("bad-request", "the request repeats a number, or asks for a port that cannot be")
        if any(service.name == request.name for service in self.services.values()):
            return refused("name-taken", f"this client already exposes a service {request.name!r}")
        server = self._server
        most = server.config.limits.services
        if len(self.services) >= most:
            server.runtime.reached("services", self.name)
            return refused("limit", f"a client may expose {most} service{'s' if most > 1 else ''}")
        if refusal := self.key.refuse_service(request.name):
            return refused("not-granted", refusal.text, refusal.rule)
        try:
            visitors = Networks(request.visitors) if request.visitors else None
        except ValueError:
            return refused(
                "bad-request", f"the visitors are not 1 to {wire.MAX_NETWORKS} networks in the form 192.0.2.0/24"
            )
        allowed = self.key.ports(server.config.ports, server.port)
        offer = server.registry.offer(self.name, request.name, request.port, allowed, time.time())
        if offer.error:
            return refused(offer.error, offer.text, offer.rule)
        if request.port in [service.door.port for service in self.services.values()]:
            return refused("port-taken", f"port {request.port} is this client's own, for another service")
        for port in offer.ports:
            try:
                sock = listen(server.config.bind_host, port)
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    return refused("port-taken", f"port {port} cannot be opened: {_why(error)}")
                continue
            server.registry.grant(self.name, request.name, port)
            server.save_soon()
            service = Service(self, request.service, request.name, server.runtime, sock, visitors)
            self.services[request.service] = service
            service.door.open()
            return wire.Exposed(service=request.service, port=port, visitors=len(request.visitors)), ""
        if request.port:
            return refused(
                "port-taken",
                f"port {request.port} is in use by another program on the relay; ask for another, or for any",
            )
        return refused("no-port", f"no port of {allowed} is free; stop what uses one, or use a token with more")

    def withdraw(self) -> None:
        """Public ports are closed: visitors are refused from now on."""
        for service in self.services.values():
            service.door.close()
            del service.door  # which knows how to make visitors of this service: a cycle
        self.services.clear()

    def full(self) -> None:
        """A visitor was reset because the client has as many as it, its token or this relay takes at a time."""
        if not self.session.going_away:
            self._server.runtime.reached("streams", self.name, self.session.theirs.max_streams)

    # --- ends ----------------------------------------------------------------------------------------------------------

    def wind_down(self, why: str) -> None:
        """No new visitors; the tunnel is closed when the last one has gone."""
        self.withdraw()
        self.session.goaway(Code.SHUTDOWN, why)
        self.link.error = ProtocolError(Code.SHUTDOWN, why)
        self.on_idle_check()

    def supersede(self) -> None:
        """A newer session of the same client is here: its ports must be free before that one asks for them."""
        self.withdraw()
        self.link.goodbye(ProtocolError(Code.SUPERSEDED, "a newer session of this client took over"))

    def dismiss(self, error: ProtocolError) -> None:
        """The token does not stand any more, or grants something else."""
        self.withdraw()
        self.link.goodbye(error)
        log.warning(
            "client.dismissed",
            f"Ended the session of client {self.name}: {error.text}.",
            **self._who(),
            code=error.code.name,
            rule=error.fields.get("rule"),
        )

    def gone(self, error: Exception | None) -> None:
        self.withdraw()
        self._server.registry.release(self.name, self, time.time())
        if isinstance(error, LimitError):
            self._server.runtime.reached(error.limit, self.name)
        why = f": {explain(error, b'')}" if error is not None else ""
        log.info(
            "client.gone",
            f"Client {self.name} is gone{why}.",
            **self._who(),
            **self.totals.fields(),
            seconds=round(time.monotonic() - self._since, 3),
            cause=log.cause(error),
        )

    def _who(self) -> dict[str, object]:
        return {
            "name": self.name,
            "token": self.key.label,
            "key_id": self.key.key_id,
            "session": self.label,
            "client": self.link.peer,
        }


def _shown(config: ServerConfig, state: ServerState) -> Shown:
    if config.cert is not None and config.key is not None:
        return Shown((config.cert, config.key), own=False, client_ca=config.client_ca)
    return Shown(settle(state.identity_paths), own=True, client_ca=config.client_ca)


def first_token(state: ServerState, pins: tuple[bytes, ...]) -> str:
    """The first token's text, "" if it is no longer kept. It carries `pins`."""
    try:
        return state.token(pins).text()
    except StartError:
        return ""


def _why(error: OSError) -> str:
    return error.strerror.lower() if error.strerror else str(error)
