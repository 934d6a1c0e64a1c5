"""Who has which name, public ports and private services (protocol.md sections 4.4 and 5). Pure: time is an argument, answers are decisions.

A pool (section 5.2) is in it like a client, under a name that no client can have.

Invariants: a name, a port and a private service have at most one owner; what is reserved for somebody who is away is given to nobody else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import NamedTuple

from msgspec.structs import replace

from fastrelay.errors import Code, ProtocolError
from fastrelay.policy import Allowed
from fastrelay.state import Reservation
from fastrelay.wire import MAX_SERVICES, RESERVED_TIME

_MOST_IDLE = 1024
"""Names that are kept for clients that left without a port or private service: nothing else bounds how many there can be."""
_MOST_NAMED = 8192
"""Names of private services that are kept in all."""


class Offer(NamedTuple):
    """Which ports to try, in this order, as long as nothing else has changed; or, when there are none, the error of protocol.md section 5,
    a sentence, and the rule of the token that said no, if one did.
    """

    ports: Iterable[int]
    error: str = ""
    text: str = ""
    rule: str = ""


class Registry:
    """`reservations` is what was saved, and `reserved_time` says for how long they hold.

    Times are wall-clock seconds: they outlive the process.
    """

    def __init__(self, reservations: Mapping[str, Reservation], reserved_time: float = RESERVED_TIME) -> None:
        self._reserved_time = reserved_time
        self._reserved = dict(reservations)  # by name, of those who are here as well
        self._here: dict[str, object] = {}  # name -> whoever claimed it
        self._owner: dict[int, str] = {}  # port -> name, for every reserved port
        self._named: dict[str, str] = {}  # private service -> name, the same way
        self._forgotten: list[str] = []
        for name, reservation in self._reserved.items():
            for port in reservation.ports.values():
                self._owner[port] = name
            for service in reservation.named:
                self._named[service] = name
        self._due = 0.0  # nobody has been away for long enough before
        self._idle: dict[str, None] = {}  # names of those who left without a port, in the order in which they left
        for name in sorted(self._reserved, key=lambda name: self._reserved[name].seen):
            self._left(name)

    # --- names ---------------------------------------------------------------------------------------------------------

    def here(self, name: str) -> bool:
        """Whether a session has this name."""
        return name in self._here

    def session(self, name: str) -> object | None:
        """The one that has this name."""
        return self._here.get(name)

    def sessions(self) -> Iterable[object]:
        """All that have a name."""
        return self._here.values()

    def kept(self, name: str) -> bool:
        """Whether the name is used or reserved."""
        return name in self._reserved

    def claim(self, name: str, instance: str, session: object, now: float) -> object | None:
        """Give the name to this session. Returns the session that it takes over from, if any.

        Raises ProtocolError (NAME_TAKEN) when another installation has the name, or has it reserved.
        """
        self.expire(now)
        reservation = self._reserved.get(name)
        if reservation is not None and reservation.instance != instance:
            here = name in self._here
            raise ProtocolError(
                Code.NAME_TAKEN,
                f"the name {name!r} {'is used' if here else 'is reserved'} by another installation"
                f"{'' if here else ', which is away'}; give this one another with --name",
            )
        old = self._here.get(name)
        self._here[name] = session
        self._idle.pop(name, None)
        self._reserved[name] = Reservation(instance, now, {}) if reservation is None else replace(reservation, seen=now)
        return old

    def release(self, name: str, session: object, now: float) -> None:
        """The session is gone; what it had stays reserved from now on. Of names that had nothing only the last thousand do."""
        if self._here.get(name) is session:
            del self._here[name]
            self._reserved[name] = replace(self._reserved[name], seen=now)
            self._due = min(self._due, now + self._reserved_time)
            self._left(name)

    def _left(self, name: str) -> None:
        label, pool, _ = name.partition("/")
        if self._reserved[name].ports or self._reserved[name].named:
            if pool:
                self._keep_few(f"{label}/")
            return
        if pool:
            del self._reserved[name]
            return
        self._idle[name] = None
        if len(self._idle) > _MOST_IDLE:
            oldest = next(iter(self._idle))
            del self._idle[oldest], self._reserved[oldest]

    def expire(self, now: float) -> None:
        """Forget who has been away for too long. Whoever asks for a name or port does this first."""
        if now <= self._due:
            return
        self._due = math.inf
        for name, kept in list(self._reserved.items()):
            if name in self._here:
                continue
            if now - kept.seen <= self._reserved_time:
                self._due = min(self._due, kept.seen + self._reserved_time)
                continue
            self._idle.pop(name, None)
            self._forgotten.append(name)
            self._forget(name)

    def _keep_few(self, pools: str) -> None:
        """Of the pools of a token the last MAX_SERVICES that were left are kept: no session bounds how many there can be."""
        away = [name for name in self._reserved if name.startswith(pools) and name not in self._here]
        if len(away) > MAX_SERVICES:
            self._forget(min(away, key=lambda name: self._reserved[name].seen))

    # --- ports ---------------------------------------------------------------------------------------------------------

    @property
    def ports(self) -> Mapping[int, str]:
        """Every port that is taken or reserved, and whose it is."""
        return self._owner

    def offer(self, name: str, service: str, wanted: int, allowed: Allowed, now: float, also: str = "") -> Offer:
        """The ports that this name may have for this service, of those that its token gives; those of the name `also` may move to it.

        `wanted` 0 is any: the one it had, then the next free ones.
        """
        self.expire(now)
        if wanted:
            if refusal := allowed.refusal(wanted):
                return Offer((), "not-granted", refusal.text, refusal.rule)
            owner = self._owner.get(wanted)
            if owner is None or owner in (name, also):  # one's own moves from a service that is no longer exposed
                return Offer((wanted,))
            if owner in self._here:
                return Offer(
                    (),
                    "port-taken",
                    f"port {wanted} is in use by {_title(owner)}; ask for another, or for any{_join(owner, allowed.label)}",
                )
            return Offer(
                (),
                "port-reserved",
                f"port {wanted} is reserved for {_title(owner)}, which is away; ask for another, or for any",
            )
        free = (port for port in allowed.for_any() if port not in self._owner)
        kept = self._reserved.get(also)
        had = self._reserved[name].ports.get(service, 0) or (0 if kept is None else kept.ports.get(service, 0))
        first = had if self._owner.get(had) in (name, also) and not allowed.refusal(had) else next(free, None)
        if first is not None:
            return Offer(chain((first,), free))
        if next(iter(allowed), None) is None:
            refusal = allowed.nothing()
            return Offer((), "not-granted", refusal.text, refusal.rule)
        return Offer((), "no-port", f"no port of {allowed} is free; stop what uses one, or use a token with more")

    def grant(self, name: str, service: str, port: int) -> None:
        """The port is bound: it belongs to this service of this name from now on. Of a name the last MAX_SERVICES ports are kept."""
        former = self._owner.get(port, name)
        if former != name:
            kept = self._reserved[former]
            rest = {other: its for other, its in kept.ports.items() if its != port}
            self._reserved[former] = replace(kept, ports=rest)
        reservation = self._reserved[name]
        before = reservation.ports.get(service)
        if before is not None and before != port:
            self._owner.pop(before, None)
        self._owner[port] = name
        ports = {other: kept for other, kept in reservation.ports.items() if other != service and kept != port}
        if len(ports) >= MAX_SERVICES:  # not one of this session, which has fewer services
            self._owner.pop(ports.pop(next(iter(ports))), None)
        self._reserved[name] = replace(reservation, ports={**ports, service: port})

    # --- private services ----------------------------------------------------------------------------------------------

    def offer_name(self, name: str, service: str, now: float, also: str = "") -> Offer:
        """Whether this client may have a private service of this name, which may move to it from the client `also`: an offer without an error is
        a yes, and has no ports.
        """
        self.expire(now)
        owner = self._named.get(service)
        if owner is not None and owner in (name, also):
            return Offer(())
        if owner is None:
            if len(self._named) < _MOST_NAMED:
                return Offer(())
            return Offer((), "limit", f"{_MOST_NAMED} names of private services are kept, as many as may be")
        if owner in self._here:
            return Offer((), "name-taken", f"the name {service!r} is in use by {_title(owner)}; use another")
        return Offer(
            (), "name-reserved", f"the name {service!r} is reserved for {_title(owner)}, which is away; use another"
        )

    def grant_name(self, name: str, service: str, label: str) -> None:
        """The service belongs to this client from now on, who came with the token `label`. Of a name the last MAX_SERVICES are kept."""
        former = self._named.get(service, name)
        if former != name:
            had = self._reserved[former]
            rest = {other: its for other, its in had.named.items() if other != service}
            self._reserved[former] = replace(had, named=rest)
        reservation = self._reserved[name]
        named = {other: kept for other, kept in reservation.named.items() if other != service}
        if len(named) >= MAX_SERVICES:  # not one of this session, which has fewer services
            oldest = next(iter(named))
            del named[oldest], self._named[oldest]
        self._named[service] = name
        self._reserved[name] = replace(reservation, named={**named, service: label})

    def owner(self, service: str) -> tuple[str, str]:
        """The client that has, or has reserved, this private service, and the label of the token that it came with; "" and "" if none has."""
        name = self._named.get(service)
        return ("", "") if name is None else (name, self._reserved[name].named[service])

    def named(self) -> list[tuple[str, str, float]]:
        """Every private service with its client, "" if it is a pool's, and when that was seen last; by name."""
        return [
            (service, "" if "/" in name else name, self._reserved[name].seen)
            for service, name in sorted(self._named.items())
        ]

    # --- what is kept --------------------------------------------------------------------------------------------------

    def reservations(self, now: float) -> dict[str, Reservation]:
        """What to save: whoever is here counts as seen now."""
        return {name: replace(kept, seen=now) if name in self._here else kept for name, kept in self._reserved.items()}

    def forgotten(self) -> list[str]:
        """Names that are free again because nobody came for so long; each is told once."""
        told, self._forgotten = self._forgotten, []
        return told

    def _forget(self, name: str) -> None:
        kept = self._reserved.pop(name)
        for port in kept.ports.values():
            self._owner.pop(port, None)
        for service in kept.named:
            self._named.pop(service, None)


def pool_owner(label: str, name: str) -> str:
    """What owns the port or the name of a pool: no client can be called so."""
    return f"{label}/{name}"


def _join(owner: str, label: str) -> str:
    its, _, name = owner.partition("/")
    return f", or join it with --pool {name}" if name and its == label else ""


def _title(owner: str) -> str:
    _, pool, name = owner.partition("/")
    return f"the pool {name!r}" if pool else f"the client {owner!r}"
