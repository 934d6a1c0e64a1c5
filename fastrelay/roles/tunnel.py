"""One client that is here: the owner of its session, of the services that it exposes, and of the streams that it opens to those of others."""

from __future__ import annotations

import errno
import secrets
import socket
import time
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from fastrelay import log, wire
from fastrelay.auth import read_login
from fastrelay.config import NAME
from fastrelay.errors import Code, LimitError, ProtocolError
from fastrelay.mux.session import Session
from fastrelay.mux.stream import Outlet, Stream
from fastrelay.net.link import Link
from fastrelay.net.telling import Totals
from fastrelay.networks import Networks
from fastrelay.policy import Key
from fastrelay.roles.places import Distant, find
from fastrelay.roles.pools import Member, Pool
from fastrelay.roles.refusals import explain, why
from fastrelay.roles.registry import Offer, pool_owner
from fastrelay.roles.services import Service
from fastrelay.roles.sites import Site, refuse_site
from fastrelay.roles.visitors import PublicPort
from fastrelay.roles.visits import PoolVisit, Visit

if TYPE_CHECKING:
    from fastrelay.roles.server import Server

KINDS = ("tcp", "private", "http")


class Tunnel:
    """Made by the server for each link that is greeted; it begins when the client has proved who it is."""

    session: Session
    key: Key
    """What it was admitted with."""

    def __init__(self, server: Server, link: Link) -> None:
        self._server = server
        self.link = link
        self.name = ""  # for ever of one that only reaches services of others
        self.label = secrets.token_urlsafe(6)  # of the session, in the logs of both sides
        self.totals = Totals()
        self.services: dict[int, Service] = {}
        self._since = 0.0
        self._theirs = wire.Settings()

    # --- the greeting --------------------------------------------------------------------------------------------------

    def admit(self, key_id: str, auth: wire.Auth, theirs: wire.Settings) -> tuple[str, str]:
        server = self._server
        if server.draining:
            raise ProtocolError(Code.SHUTDOWN, "the relay is going down")
        now = time.time()
        self.key = server.keyring.admit(key_id, auth.name, now)
        server.make_room(self.key, auth.name)
        old = server.registry.claim(auth.name, auth.instance, self, now) if auth.name else None
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
        log.info("client.connected", f"{self.title.capitalize()} connected from {link.peer}.", **self._who())

    # --- the session ---------------------------------------------------------------------------------------------------

    def on_open(self, stream: Stream, request: wire.Open) -> None:
        """A visit to a private service, or to a place behind a client: policy, directory, join (protocol.md sections 6.4 and 6.6)."""
        server = self._server
        found = self._sought(request)
        if isinstance(found, tuple):
            self._refuse(stream, request, *found)
        elif self.session.their_streams > self.key.streams(server.config.limits.streams):
            self._refuse(stream, request, Code.LIMIT, "max-streams")
            server.runtime.reached("streams", self.name or self.title, self.key.streams(server.config.limits.streams))
        elif isinstance(found, Member):
            if not PoolVisit.begin(server.runtime, self, stream, found):
                self._refuse(stream, request, Code.LIMIT)
        elif not Visit.begin(server.runtime, self, stream, found):
            self._refuse(stream, request, Code.SHUTDOWN if found.tunnel.session.going_away else Code.LIMIT)

    def _sought(self, request: wire.Open) -> Service | Distant | tuple[Code, str]:
        """What a stream of this client is to lead to; or the code with which it is refused, and the rule that said no, if one did."""
        directory, name = self._server.directory, request.target
        if request.service:
            return Code.NO_SERVICE, ""
        if "/" in name:
            return find(directory, self.key, name)
        if not NAME.fullmatch(name):
            return Code.NO_SERVICE, ""
        if no := directory.refusal(self.key, name):
            return no[0], no[1].rule
        found = directory.service(name)
        if isinstance(found, Code):
            return found, ""
        if found.kind != "private":
            return Code.NO_SERVICE, ""  # who may visit it is judged by another door
        if not found.admits(self.host):
            found.deny(self.link.peer)
            return Code.DENIED, "visitors"
        return found

    def _refuse(self, stream: Stream, request: wire.Open, code: Code, rule: str = "") -> None:
        stream.reset(code)
        self._refused(stream, request, code, rule)

    def _refused(self, stream: Stream, request: wire.Open, code: Code, rule: str = "") -> None:
        cause = log.CAUSES[code]
        log.note(
            "stream.refused",
            f"Refused a stream that {self.title} opened to {request.target or 'nothing'}: {cause}.",
            **self._who(),
            service=None if "/" in request.target else request.target,
            target=request.target if "/" in request.target else None,
            stream=stream.id,
            cause=cause,
            rule=rule or None,
        )

    def open(self, service: Service, outlet: Outlet, visitor: str) -> Stream | None:
        """A stream for a visitor of a service of this client; None where it takes no more, which is told."""
        stream = self.session.open(outlet, service.number, visitor)
        if stream is None:
            self.full()
        return stream

    def open_through(self, target: str, outlet: Outlet, visitor: str) -> Stream | None:
        """A stream to a place, HOST:PORT, that this client dials if its rules allow it; None where it takes no more, which is told."""
        stream = self.session.open(outlet, 0, visitor, target)
        if stream is None:
            self.full()
        return stream

    def on_expose(self, request: wire.Expose) -> None:
        if self.session.going_away:
            return  # it is too late for an answer: the client asks the relay that it finds next
        answer, rule = self._expose(request)
        self.session.exposed(answer)
        if answer.error:
            self._server.held.give_up(request.port, self.name)
        if not answer.error:
            where = f"of port {answer.port}" if answer.port else f"who ask for {request.name}"
            pool = self._server.pools.get(pool_owner(self.key.label, request.name)) if answer.pool else None
            clients = None if pool is None else len(pool.ring)
            log.info(
                "service.ready",
                f"Visitors {where}{' from ' if request.visitors else ''}{', '.join(request.visitors)} "
                f"reach {request.name} of {self.name}{f', one of {clients}' if clients else ''}.",
                **self._who(),
                service=request.name,
                kind=request.kind,
                port=answer.port or None,
                url=answer.url or None,
                visitors=request.visitors,
                clients=clients,
            )
        else:
            log.warning(
                "service.refused",
                f"Refused {request.name} of {self.name}: {answer.text}.",
                **self._who(),
                service=request.name,
                kind=request.kind,
                error=answer.error,
                port=request.port,
                rule=rule or None,
            )

    def on_exposed(self, answer: wire.Exposed) -> None:
        """Only a client gets these; the session refuses them here."""

    def on_list(self) -> None:
        self.session.listed(self._server.directory.listing(self.key))

    def on_listed(self, answer: wire.Listed) -> None:
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
        refused = partial(_no, request)
        if not self.name:
            return refused("bad-request", "a client without a name serves nothing")
        if not (NAME.fullmatch(request.name) and 0 < request.service < 1 << 32 and request.kind in KINDS):
            return refused("bad-request", "the request has a name, number or kind that cannot be")
        if request.service in self.services or not 0 <= request.port <= (65535 if request.kind == "tcp" else 0):
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
        now = time.time()
        if request.kind == "http" and (no := refuse_site(server.sites, request, self.key)):
            return refused(no.error, no.text, no.rule)
        if request.pool:
            return self._join_pool(request, visitors, now)
        if request.kind != "tcp":
            offer = server.registry.offer_name(self.name, request.name, now)
            if offer.error:
                return refused(offer.error, offer.text)
            server.registry.grant_name(self.name, request.name, self.key.label)
            server.save_soon()
            notices = server.runtime.notices
            named = Service(self, request.service, request.name, request.kind, now, notices, visitors)
            url = ""
            if request.kind == "http" and server.sites is not None:
                url = server.sites.url(request.name)
                named = Site(self, request.service, request.name, now, notices, visitors, read_login(request.login))
            self.services[request.service] = named
            server.directory.add(named)
            return wire.Exposed(service=request.service, visitors=len(request.visitors), url=url), ""
        sock = self._open_port(request, self.name, now)
        if isinstance(sock, Offer):
            return refused(sock.error, sock.text, sock.rule)
        balancers = server.config.balancers
        service = PublicPort(self, request.service, request.name, now, server.runtime, sock, visitors, balancers)
        self.services[request.service] = service
        service.door.open()
        return wire.Exposed(service=request.service, port=service.port, visitors=len(request.visitors)), ""

    def _open_port(self, request: wire.Expose, owner: str, now: float) -> socket.socket | Offer:
        """Listen on a port that belongs to `owner` from now on, this client or a pool of its; or the offer that says why not."""
        server = self._server
        allowed = self.key.ports(server.config.ports, server.port)
        offer = server.registry.offer(owner, request.name, request.port, allowed, now, self.name)
        if offer.error:
            return offer
        if request.port and request.port in [service.port for service in self.services.values()]:
            return Offer((), "port-taken", f"port {request.port} is this client's own, for another service")
        for port in offer.ports:
            try:
                sock = server.held.take(port, owner)
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    return Offer((), "port-taken", f"port {port} cannot be opened: {why(error)}")
                continue
            server.registry.grant(owner, request.name, port)
            server.save_soon()
            return sock
        if request.port:
            text = f"port {request.port} is in use by another program on the relay; ask for another, or for any"
            return Offer((), "port-taken", text)
        return Offer((), "no-port", f"no port of {allowed} is free; stop what uses one, or use a token with more")

    def _join_pool(self, request: wire.Expose, visitors: Networks | None, now: float) -> tuple[wire.Exposed, str]:
        """This client is one of those that serve it (protocol.md section 5.2); the first of them makes the pool."""
        refused = partial(_no, request)
        server = self._server
        owner = pool_owner(self.key.label, request.name)
        pool = server.pools.get(owner)
        if pool is None:
            pool = Pool(server.runtime, self.key.label, request, visitors, server.pool_ended)
            server.registry.claim(owner, "", pool, now)
            if refusal := self._open_pool(pool, request, now):
                server.registry.release(owner, pool, now)
                return refused(refusal.error, refusal.text, refusal.rule)
            server.pools[owner] = pool
        elif differs := pool.differs(request, visitors):
            return refused("pool-differs", differs)
        elif pool.port and (no := self.key.ports(server.config.ports, server.port).refusal(pool.port)):
            return refused("not-granted", no.text, no.rule)
        self.services[request.service] = pool.join(self, request.service, now)
        url = server.sites.url(request.name) if request.kind == "http" and server.sites is not None else ""
        count = len(request.visitors)
        return wire.Exposed(service=request.service, port=pool.port, visitors=count, pool=True, url=url), ""

    def _open_pool(self, pool: Pool, request: wire.Expose, now: float) -> Offer | None:
        """Why there can be no pool of this name or with this port."""
        server = self._server
        if request.kind == "tcp":
            sock = self._open_port(request, pool.owner, now)
            if isinstance(sock, Offer):
                return sock
            pool.open(sock, server.config.balancers)
            return None
        offer = server.registry.offer_name(pool.owner, request.name, now, self.name)
        if offer.error:
            return offer
        server.registry.grant_name(pool.owner, request.name, self.key.label)
        server.save_soon()
        server.directory.add(pool)
        return None

    def withdraw(self, *, awaited: bool = True) -> None:
        """Nothing is served any more; if the client is `awaited`, visitors of its ports may wait a moment for its return."""
        for service in self.services.values():
            self._server.directory.remove(service)
            if isinstance(service, PublicPort):
                self._server.held.hold(service.leave(), self.name, awaited=awaited)
            service.close()
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
        rule = error.fields.get("rule")
        self.withdraw(awaited=rule == "changed")  # then it comes again at once
        self.link.goodbye(error)
        log.warning(
            "client.dismissed",
            f"Ended the session of {self.title}: {error.text}.",
            **self._who(),
            code=error.code.name,
            rule=rule,
        )

    def gone(self, error: Exception | None) -> None:
        self.withdraw()
        self._server.registry.release(self.name, self, time.time())
        if isinstance(error, LimitError):
            self._server.runtime.reached(error.limit, self.name or self.title)
        why = f": {explain(error, b'')}" if error is not None else ""
        log.info(
            "client.gone",
            f"{self.title.capitalize()} is gone{why}.",
            **self._who(),
            **self.totals.fields(),
            seconds=round(time.monotonic() - self._since, 3),
            cause=log.cause(error),
        )

    @property
    def title(self) -> str:
        """For sentences."""
        return f"client {self.name}" if self.name else "a visiting client"

    @property
    def host(self) -> str:
        """The address that it comes from."""
        peer = self.link.transport.get_extra_info("peername")
        return str(peer[0]) if peer else ""

    def _who(self) -> dict[str, object]:
        return {
            "name": self.name or None,
            "token": self.key.label,
            "key_id": self.key.key_id,
            "session": self.label,
            "client": self.link.peer,
        }


def _no(request: wire.Expose, error: str, text: str, rule: str = "") -> tuple[wire.Exposed, str]:
    return wire.Exposed(service=request.service, error=error, text=text), rule
