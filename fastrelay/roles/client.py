"""The client: keeps one tunnel to the relay up, exposes services, and dials the target for each stream that the relay opens.

A stream's way: Session -> Client.on_open -> Dial -> Edge; from there on only Edge, Stream and Link are involved. What may be dialled is what
this side's exposures say, each from the moment when the relay has answered for it, and where the relay names a place itself, what --allow-dial
says (protocol.md section 6.6).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from fastrelay import log, wire
from fastrelay.auth import login_text
from fastrelay.config import ClientConfig, Exposure, Public, Target, join_host, parse_public
from fastrelay.dialling import Place, Rules, read_place, refused
from fastrelay.errors import Code, DialDeniedError, ProtocolError, StartError
from fastrelay.mux.session import Session
from fastrelay.mux.stream import Stream
from fastrelay.net.dial import Dial, Resolver, Share, Turn
from fastrelay.net.edge import Edge
from fastrelay.net.link import Link
from fastrelay.net.lookups import Lookups
from fastrelay.net.notices import Notices
from fastrelay.net.proxy_header import announce
from fastrelay.net.runtime import Runtime
from fastrelay.roles.targets import Asked
from fastrelay.roles.uplink import Uplink
from fastrelay.state import ClientState

_COMPLAIN_EVERY = 1.0
_LOOKUPS = 4
"""Names that are looked up at once for the relay: whoever lets them hang keeps nobody else from being looked up."""


class _Way(NamedTuple):
    """How one stream gets its target: that of a `service`, or, for a place that the relay named, what `permit` allows."""

    target: Target
    resolver: Resolver
    turn: Turn
    service: str | None = None
    proxy: int = 0
    permit: tuple[Rules, Place] | None = None

    @property
    def about(self) -> str:
        """Complaints about the same are told together: what the relay names may be another place each time."""
        return str(self.target) if self.permit is None else "a place that the relay named"


class Client(Uplink):
    """An uplink with exposures: see there for its life.

    `reachable(exposure, public)` is called when an exposure can be reached by visitors, and again when its address has changed.
    """

    def __init__(
        self,
        config: ClientConfig,
        state: ClientState,
        reachable: Callable[[Exposure, Public], None],
        runtime: Runtime | None = None,
    ) -> None:
        super().__init__(config, state, runtime)
        self._reachable = reachable
        self._exposures = dict(enumerate(config.exposures, 1))  # by the number on the wire
        self._addresses: dict[int, Public] = {}  # exposure -> what visitors were told
        self._asked: dict[int, Exposure] = {}  # without an answer so far
        self._served: dict[int, _Way] = {}  # to what the relay has answered for: all services that OPEN may name
        self._resolver = Resolver(self.runtime.loop)
        self._dials = asyncio.Semaphore(config.limits.dials)
        self._lookups = Lookups(_LOOKUPS)
        self._named = Resolver(self.runtime.loop, self._lookups)
        self._named_dials = Share(self._dials, max(1, config.limits.dials // 2))
        self._dialling = 0  # those that wait for their turn as well
        self._complaints = Notices(self.runtime.loop, _COMPLAIN_EVERY)

    async def close(self) -> None:
        await super().close()
        self._lookups.shutdown()
        self._complaints.close()

    def _stands(self, session: Session) -> None:
        session.on_refused = self._turned_away
        self._asked = {}
        self._served = {}
        for number, exposure in self._exposures.items():
            self._ask(session, number, exposure)
        if rules := self.config.allow_dial:
            log.info("dial.ready", f"Dials for others, from here: {rules}.", rules=rules.texts())

    def _ask(self, session: Session, number: int, exposure: Exposure) -> None:
        self._asked[number] = exposure
        visitors = exposure.visitors.texts if exposure.visitors is not None else ()
        session.expose(
            wire.Expose(
                service=number,
                name=exposure.name,
                kind=exposure.kind,
                port=exposure.port,
                visitors=visitors,
                pool=exposure.pool,
                login=login_text(exposure.login),
            )
        )

    # --- the session ---------------------------------------------------------------------------------------------------

    def on_open(self, stream: Stream, request: wire.Open) -> None:
        link, way = self._link, self._served.get(request.service)
        if link is not None and way is not None:
            self._reach(stream, request, link, way)
        elif link is not None and request.target and not request.service:
            self._reach_named(stream, request, link)
        else:
            stream.reset(Code.NO_SERVICE)
            self._refused(stream, request, Code.NO_SERVICE)
            self._complaints.say(
                "service",
                "service.unknown",
                f"The relay opened a stream for service {request.service}, which this client does not expose there: nothing was dialled.",
                service=request.service,
                visitor=request.visitor,
            )

    def _reach_named(self, stream: Stream, request: wire.Open, link: Link) -> None:
        """The relay names a place: it is dialled if a rule of this client allows that."""
        rules = self.config.allow_dial
        try:
            place = read_place(request.target)
        except ValueError as why:
            rule, text = "form", f"{request.target!r} is no place to dial: {why}"
        else:
            refusal = rules.refuse(place)
            if refusal is None:
                way = _Way(Target(place.host, place.port), self._named, self._named_dials, permit=(rules, place))
                self._reach(stream, request, link, way)
                return
            rule, text = refusal
        code = refused(rule)
        stream.reset(code)
        self._refused(stream, request, code)
        self._dial_denied(request, rule, text)

    def _reach(self, stream: Stream, request: wire.Open, link: Link, way: _Way) -> None:
        if self._dialling >= wire.MAX_STREAMS:
            stream.reset(Code.LIMIT)  # a dial outlives a stream that is reset at once: they are bounded by themselves
            self._refused(stream, request, Code.LIMIT)
            return
        if self.runtime.full or self.runtime.edges + self._dialling >= self.runtime.budget:
            stream.reset(Code.LIMIT)
            self._refused(stream, request, Code.LIMIT)
            self.runtime.tell_full()
            return
        asked = None
        if log.audited():
            asked = Asked(self._label, way.target, way.service, request.visitor, self._totals)

        def done(code: Code, error: Exception | None) -> None:
            self._dialling -= 1
            if isinstance(error, DialDeniedError):
                self._dial_denied(request, error.rule, str(error))
            elif isinstance(error, OSError):
                self._dial_failed(way, request.visitor, code, error)
            if asked is not None and code is not Code.NO_ERROR:
                asked.missed(stream, code, link)

        self._dialling += 1
        if self._dialling > self.config.limits.dials:
            self.runtime.reached("dials", way.about)
        make = Edge if asked is None else asked.make
        first = partial(announce, way.proxy, request.visitor) if way.proxy else None
        Dial(self.runtime, way.resolver, way.turn, link, stream, way.target, done, make, first, way.permit)

    def _turned_away(self, stream: Stream, request: wire.Open, code: Code) -> None:
        """The session has refused a stream by itself."""
        if code is Code.LIMIT:
            self.runtime.reached("streams", f"the relay {self.config.relay.url}")
        self._refused(stream, request, code)

    def _refused(self, stream: Stream, request: wire.Open, code: Code) -> None:
        what = request.target if request.target and not request.service else f"service {request.service}"
        log.note(
            "stream.refused",
            f"Refused a stream for visitor {request.visitor} of {what}: {log.CAUSES[code]}.",
            **self._myself(),
            service=request.service,
            target=request.target or None,
            visitor=request.visitor,
            stream=stream.id,
            cause=log.CAUSES[code],
        )

    def _dial_denied(self, request: wire.Open, rule: str, text: str) -> None:
        self._complaints.say(
            "denied",
            "dial.denied",
            f"Did not dial for visitor {request.visitor}: {text}. This client dials what its --allow-dial lists.",
            target=request.target,
            visitor=request.visitor,
            rule=rule,
        )

    def _dial_failed(self, way: _Way, visitor: str, code: Code, error: OSError) -> None:
        target = way.target
        what = {
            Code.REFUSED: "refused the connection",
            Code.DIAL_TIMEOUT: f"did not answer within {self.config.limits.dial_time:g} s",
            Code.LIMIT: "could not be connected, this process or machine has no room for another connection",
        }.get(code, f"cannot be reached ({error.strerror or error})")
        hint = " Is the service running?" if code is Code.REFUSED else ""
        if code is Code.DIAL_TIMEOUT:
            self.runtime.reached("dial-time", way.about)
        self._complaints.say(
            way.about,
            "target.failed",
            f"{target} {what} (visitor {visitor}).{hint} The tunnel stays up.",
            target=str(target),
            visitor=visitor,
        )

    def on_listed(self, answer: wire.Listed) -> None:
        raise ProtocolError(Code.PROTOCOL, "LISTED that nobody asked for")

    def on_exposed(self, answer: wire.Exposed) -> None:
        exposure = self._asked.pop(answer.service, None)
        if exposure is None or not 0 <= answer.port <= 65535:
            raise ProtocolError(
                Code.PROTOCOL, "EXPOSED for a service that was not asked for, or with a port that cannot be"
            )
        if refusal := _refusal(exposure, answer):
            self._not_exposed(answer, exposure, f"The relay does not expose {exposure.name}: {refusal}.")
            return
        self._serve(answer.service, exposure)
        public = self._public(exposure, answer)
        log.info(
            "tunnel.ready",
            f"{public.url}  →  {exposure.target}{f', for visitors from {exposure.visitors} only' if exposure.visitors else ''}"
            f"{', shared with other clients' if exposure.pool else ''}",
            service=exposure.name,
            public=public.url,
            local=str(exposure.target),
        )
        if self._addresses.get(answer.service) != public:
            self._addresses[answer.service] = public
            self._reachable(exposure, public)

    def _public(self, exposure: Exposure, answer: wire.Exposed) -> Public:
        if exposure.kind == "tcp":
            return Public(f"tcp://{join_host(self._host, answer.port)}", self._host, answer.port)
        return parse_public(answer.url) if answer.url else Public(f"fastrelay://{exposure.name}", self._host)

    def _serve(self, number: int, exposure: Exposure) -> None:
        """Streams for this service are dialled from now on."""
        self._served[number] = _Way(exposure.target, self._resolver, self._dials, exposure.name, exposure.proxy)

    def _not_exposed(self, answer: wire.Exposed, exposure: Exposure, text: str) -> None:
        if answer.service in self._addresses:
            log.error("service.refused", text, service=exposure.name, error=answer.error)
            return
        self._fatal = StartError(text)
        self._stopping = True
        assert self._link is not None
        self._link.abort(ProtocolError(Code.CANCEL, "the relay does not expose what was asked for"))


def _refusal(exposure: Exposure, answer: wire.Exposed) -> str:
    """Half a sentence that says why the relay's answer is a no, "" if it is none."""
    try:
        right = exposure.kind == (
            "tcp" if answer.port else "http" if answer.url and parse_public(answer.url) else "private"
        )
    except ValueError:
        right = False
    if answer.error or not right:
        return wire.text(answer.text.encode()) or "its answer is not one for this kind of service"
    if exposure.visitors is not None and answer.visitors != len(exposure.visitors):
        return (
            "it has not confirmed that it keeps others than --visitors out, so it must be older than this client; upgrade the relay, or "
            "leave --visitors out and let everybody in"
        )
    if exposure.pool and not answer.pool:
        return (
            "it has not confirmed that the service is shared with other clients, so it must be older than this client; upgrade the relay, "
            "or leave --pool out"
        )
    return ""
