"""The HTTP front of a relay: one port for HTTP and one for HTTPS, both with the same hosts and paths behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastrelay.config import join_host
from fastrelay.errors import StartError
from fastrelay.front.http.doors import Doors
from fastrelay.front.http.hosts import Hosts
from fastrelay.front.http.lobby import Lobby
from fastrelay.front.http.own import Own
from fastrelay.front.http.seeker import Seeker
from fastrelay.front.http.tls import HttpsVisitor
from fastrelay.net.door import VisitorDoor, let_in
from fastrelay.net.heads import END, asks_for_tunnel
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
            if config.one_port:
                server.others = self._take
                ports["https"] = 443  # as far as visitors are concerned
            elif config.http is not None:
                ports["http"] = self._listen(config.http, "http", self._plain)
            if config.https is not None:
                assert config.http_cert is not None
                assert config.http_key is not None
                self._shown = Shown((config.http_cert, config.http_key), own=False, web=True)
                server.looks.append(self._shown.look)
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

    def _take(self, said: bytes, sock: socket.socket) -> bool:
        """What has come to the port of tunnels and asks for none."""
        server = self._server
        if END not in said or asks_for_tunnel(said, server.config.websocket_path):
            return False
        if server.runtime.full:
            server.runtime.tell_full()
            sock.close()
        else:
            visitor = Seeker(server.runtime, self._hosts.route, "https", self._lobby, proxied=True)
            server.runtime.spawn(server.runtime.loop.create_task(let_in(server.runtime, sock, visitor)))
        return True

    def _plain(self) -> Seeker:
        return Seeker(self._server.runtime, self._hosts.route, "http", self._lobby)

    def _secret(self) -> Seeker:
        return HttpsVisitor(self._server.runtime, self._hosts.route, self._lobby, self._shown.context)
