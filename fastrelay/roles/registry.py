"""Who has which name and which public ports (protocol.md sections 4.4 and 5). Pure: time is an argument, and answers are decisions.

Invariants: a name and a port have at most one owner; what is reserved for somebody who is away is given to nobody else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from fastrelay.config import PortRange
from fastrelay.errors import Code, ProtocolError
from fastrelay.state import Reservation
from fastrelay.wire import RESERVED_TIME


class Offer(NamedTuple):
    """Which ports to try, in this order; or, when there are none, the error of protocol.md section 5 and a sentence."""

    ports: list[int]
    error: str = ""
    text: str = ""


class Registry:
    """`ports` is what this relay gives out; `reservations` is what was saved. Times are wall-clock seconds: they outlive the process."""

    def __init__(self, ports: PortRange, reservations: Mapping[str, Reservation]) -> None:
        self._ports = ports
        self._reserved = dict(reservations)  # by name, of those who are here as well
        self._here: dict[str, object] = {}  # name -> whoever claimed it
        self._owner: dict[int, str] = {}  # port -> name, for every reserved port
        for name, reservation in self._reserved.items():
            for port in reservation.ports.values():
                self._owner[port] = name

    # --- names ---------------------------------------------------------------------------------------------------------

    def claim(self, name: str, instance: str, session: object, now: float) -> object | None:
        """Give the name to this session. Returns the session that it takes over from, if any.

        Raises ProtocolError (NAME_TAKEN) when another installation has the name, or has it reserved.
        """
        self._expire(now)
        reservation = self._reserved.get(name)
        if reservation is not None and reservation.instance != instance:
            here = name in self._here
            raise ProtocolError(
                Code.NAME_TAKEN,
                f"the name {name!r} {'is used' if here else 'is reserved'} by another installation"
                f"{'' if here else ', which was here within the last day'}; give this one another with --name",
            )
        old = self._here.get(name)
        self._here[name] = session
        self._reserved[name] = Reservation(instance, now, {} if reservation is None else reservation.ports)
        return old

    def release(self, name: str, session: object, now: float) -> None:
        """The session is gone; name and ports stay reserved from now on."""
        if self._here.get(name) is session:
            del self._here[name]
            self._reserved[name] = _seen(self._reserved[name], now)

    # --- ports ---------------------------------------------------------------------------------------------------------

    def offer(self, name: str, service: str, wanted: int, now: float) -> Offer:
        """The ports that this name may have for this service. `wanted` 0 is any: the one it had, then the next free ones."""
        self._expire(now)
        if wanted:
            if wanted not in self._ports:
                return Offer([], "port-range", f"port {wanted} is not one of {self._ports}, which this relay gives out")
            owner = self._owner.get(wanted)
            if owner is None or owner == name:  # one's own moves from a service that is no longer exposed
                return Offer([wanted])
            if owner in self._here:
                return Offer([], "port-taken", f"port {wanted} is in use by the client {owner!r}")
            return Offer([], "port-reserved", f"port {wanted} is reserved for the client {owner!r}, which is away")
        had = self._reserved[name].ports.get(service)
        free = [port for port in self._ports if port not in self._owner]
        if had is not None and had in self._ports:
            return Offer([had, *free])
        if not free:
            return Offer([], "no-port", f"all ports of {self._ports} are in use or reserved")
        return Offer(free)

    def grant(self, name: str, service: str, port: int) -> None:
        """The port is bound: it belongs to this service of this name from now on."""
        reservation = self._reserved[name]
        before = reservation.ports.get(service)
        if before is not None and before != port:
            self._owner.pop(before, None)
        self._owner[port] = name
        others = {other: kept for other, kept in reservation.ports.items() if kept != port}
        self._reserved[name] = Reservation(reservation.instance, reservation.seen, {**others, service: port})

    # --- what is kept --------------------------------------------------------------------------------------------------

    def reservations(self, now: float) -> dict[str, Reservation]:
        """What to save: whoever is here counts as seen now."""
        return {name: _seen(kept, now) if name in self._here else kept for name, kept in self._reserved.items()}

    def _expire(self, now: float) -> None:
        for name, kept in list(self._reserved.items()):
            if name not in self._here and now - kept.seen > RESERVED_TIME:
                del self._reserved[name]
                for port in kept.ports.values():
                    self._owner.pop(port, None)


def _seen(reservation: Reservation, now: float) -> Reservation:
    return Reservation(reservation.instance, now, reservation.ports)
