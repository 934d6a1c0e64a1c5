"""The HTTP front of a relay: one port for HTTP and one for HTTPS, both with the same hosts and paths behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastrelay import log, wire
from fastrelay.config import join_host
from fastrelay.errors import StartError
from fastrelay.front.http.doors import Doors
from fastrelay.front.http.hosts import Hosts
from fastrelay.front.http.lobby import Lobby
from fastrelay.front.http.own import Own
from fastrelay.front.http.seeker import Seeker
from fastrelay.front.http.tls import HttpsVisitor
from fastrelay.front.http.told import ToldVisitorHttp, ToldVisitorHttps
from fastrelay.net.balancers import Address, Renamed
from fastrelay.net.door import VisitorDoor, let_in
from fastrelay.net.heads import END, asks_for_tunnel
from fastrelay.net.hello import asked
from fastrelay.net.keys import Shown
from fastrelay.net.listen import listen
from fastrelay.roles.refusals import why
from fastrelay.roles.sites import Sites

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from fastrelay.roles.server import Server


class HttpFront:
    """Of a relay that is not started yet, as services have the address of the front in their own. Raises StartError when it cannot listen."""

    def __init__(self, server: Server) -> None:
        config = server.config
        self._server = server
        self._lobby = Lobby(server.runtime)
        self._doors: list[VisitorDoor] = []
        self.own = Own()
        Doors(server).add_to(self.own)
        ports: dict[str, int] = {}
        try:
            if config.one_port and config.behind_proxy:
                server.others = self._take_by_path
                ports["https"] = 443  # as far as visitors are concerned
            elif config.http is not None:
                ports["http"] = self._listen(config.http, "http", self._plain)
            if config.https is not None:
                assert config.http_cert is not None
                assert config.http_key is not None
                self._shown = Shown((config.http_cert, config.http_key), own=False, web=True)
                server.looks.append(self._shown.look)
                if config.one_port:
                    server.others = self._take_by_host
                    ports["https"] = config.bind_port
                else:
                    ports["https"] = self._listen(config.https, "https", self._secret)
        except BaseException:
            self.close()
            raise
        names = frozenset(name for name in ("localhost", config.domain, config.advertise) if name)
        if config.domain:
            scheme = "https" if "https" in ports else "http"
            server.sites = Sites(config.domain, scheme, ports[scheme], names)
        server.fronts += ports.items()
        self._hosts = Hosts(config.domain, names, server.directory, self.own)

    def start(self) -> None:
        for door in self._doors:
            door.open()

    def drain(self) -> None:
        """Nobody new; visitors that have asked something get their answer."""
        self._shut()
        self._lobby.retire()

    def close(self) -> None:
        """Whoever is still here is reset."""
        self._shut()
        self._lobby.evict()

    def _shut(self) -> None:
        doors, self._doors = self._doors, []
        for door in doors:
            door.close()

    def _listen(self, where: tuple[str, int], scheme: str, make: Callable[[], Seeker]) -> int:
        host, port = where
        try:
            sock = listen(host, port)
        except OSError as error:
            raise StartError(
                f"Cannot listen on {join_host(host, port)}: {why(error)}. Choose another address with --{scheme}."
            ) from None
        door = VisitorDoor(self._server.runtime, sock, make, self._server.config.balancers)
        self._doors.append(door)
        return door.port

    # --- on the port of tunnels ----------------------------------------------------------------------------------------

    def _take_by_path(self, said: bytes, sock: socket.socket, behind: Address | None) -> bool:
        """Behind a proxy: what asks for no tunnel."""
        if END not in said or asks_for_tunnel(said, self._server.config.websocket_path):
            return False
        make = ToldVisitorHttp if log.audited() else Seeker
        self._let_in(sock, make(self._server.runtime, self._hosts.route, "https", self._lobby, proxied=True), behind)
        return True

    def _take_by_host(self, said: bytes, sock: socket.socket, behind: Address | None) -> bool:
        """In TLS: what asks for a name under the domain, but for the relay's own, and for no tunnel by ALPN."""
        config = self._server.config
        host, protocols = asked(said)
        under = host == config.domain or host.endswith(f".{config.domain}")
        if not under or host == config.advertise or wire.ALPN.encode() in protocols:
            return False
        self._let_in(sock, self._secret(), behind)
        return True

    def _let_in(self, sock: socket.socket, visitor: Seeker, behind: Address | None) -> None:
        runtime = self._server.runtime
        if runtime.full:
            runtime.tell_full()
            sock.close()
        else:
            made = None if behind is None else Renamed(visitor, behind)
            runtime.spawn(runtime.loop.create_task(let_in(runtime, sock, visitor, made)))

    def _plain(self) -> Seeker:
        make = ToldVisitorHttp if log.audited() else Seeker
        return make(self._server.runtime, self._hosts.route, "http", self._lobby)

    def _secret(self) -> Seeker:
        make = ToldVisitorHttps if log.audited() else HttpsVisitor
        return make(self._server.runtime, self._hosts.route, self._lobby, self._shown.context)
