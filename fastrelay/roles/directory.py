"""Who and what is here, by name: where every way in looks up the service or the client that it leads to (protocol.md section 6.4)."""

from __future__ import annotations

from fastrelay.errors import Code
from fastrelay.matching import Refusal
from fastrelay.policy import OWN, Key
from fastrelay.roles.pools import Pool
from fastrelay.roles.registry import Registry
from fastrelay.roles.services import Service
from fastrelay.roles.tunnel import Tunnel
from fastrelay.wire import Listing


class Directory:
    """Services with a name for the whole relay, and clients. What is here is known here; what is reserved, the registry knows."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._services: dict[str, Service | Pool] = {}

    def add(self, service: Service | Pool) -> None:
        self._services[service.name] = service

    def remove(self, service: Service | Pool) -> None:
        """May be called again, and for a service whose name has another one by now."""
        if self._services.get(service.name) is service:
            del self._services[service.name]

    def service(self, name: str) -> Service | Code:
        """The service of this name, AWAY where its client is not here, or NO_SERVICE. Of a pool it is that of the client whose turn it is."""
        found = self._services.get(name)
        service = None if found is None else found.take()
        if service is not None:
            return service
        return Code.AWAY if self._registry.owner(name)[0] else Code.NO_SERVICE

    def pool(self, name: str) -> Pool | None:
        """The pool of this name, if it is one, and one of its clients is here."""
        found = self._services.get(name)
        return found if isinstance(found, Pool) else None

    def client(self, name: str) -> Tunnel | Code:
        """The client of this name, AWAY where it is not here, or NO_SERVICE."""
        tunnel = self._registry.session(name)
        if isinstance(tunnel, Tunnel):
            return tunnel
        return Code.AWAY if self._registry.kept(name) else Code.NO_SERVICE

    def clients(self) -> list[Tunnel]:
        """Those that are here."""
        return [session for session in self._registry.sessions() if isinstance(session, Tunnel)]

    def refusal(self, key: Key, name: str) -> tuple[Code, Refusal] | None:
        """Why a client with this key may not reach the service of this name, and what it is told."""
        refusal = key.refuse_reach(name, self._registry.owner(name)[1])
        if refusal is None:
            return None
        return Code.NO_SERVICE if refusal.rule == OWN else Code.DENIED, refusal

    def listing(self, key: Key) -> list[Listing]:
        """All that a client with this key reaches."""
        found = []
        for name, client, seen in self._registry.named():
            if self.refusal(key, name) is None:
                here = self._services.get(name)
                found += [
                    Listing(name=name, kind=part.kind, client=part.tunnel.name, since=int(part.since), here=True)
                    for part in ([] if here is None else here.parts())
                ] or [Listing(name=name, kind="private", client=client, since=int(seen), here=False)]
        return found
