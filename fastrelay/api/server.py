"""A relay inside of a program."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from fastrelay.api.making import to_the_end
from fastrelay.api.opening import Way, refusal
from fastrelay.api.reaching import Reaching
from fastrelay.app import WholeRelay
from fastrelay.config import DEFAULT_PORT, ServerConfig, join_host, parse_bind, parse_host, parse_ports, read_through
from fastrelay.errors import Code, StartError
from fastrelay.limits import Side, parse_limits
from fastrelay.mux.stream import Outlet, Stream
from fastrelay.net import files
from fastrelay.net.door import VisitorDoor
from fastrelay.net.link import Link
from fastrelay.net.runtime import Runtime
from fastrelay.networks import parse_balancers
from fastrelay.roles import server as roles
from fastrelay.roles.places import Distant
from fastrelay.roles.services import Service
from fastrelay.roles.visiting import say_missed
from fastrelay.state import default_state
from fastrelay.wire import WEBSOCKET_PATH


class Server(Reaching):
    """A relay on the running loop: `async with Server(…) as server`, or `start` and `aclose`.

    The arguments are those of `fastrelay server`, with the same defaults; `state` is its directory, which holds keys and tokens. `drain` is how
    many seconds visitors have to end by themselves when the block ends well. Raises UsageError for what cannot be understood.

    What it opens itself is held to no token and to no list of visitors, for it is the relay that holds others to them; what a client dials is
    that client's own decision here too.
    """

    def __init__(
        self,
        *,
        bind: str = "[::]:7443",
        ports: str = "20000-20999",
        advertise: str = "",
        state: Path | str | None = None,
        cert: Path | str | None = None,
        key: Path | str | None = None,
        client_ca: Path | str | None = None,
        require_client_cert: bool = False,
        plaintext: bool = False,
        behind_proxy: bool = False,
        websocket_path: str = WEBSOCKET_PATH,
        http: str = "",
        https: str = "",
        http_cert: Path | str | None = None,
        http_key: Path | str | None = None,
        domain: str = "",
        proxy_protocol: Iterable[str] = (),
        limits: Iterable[str] = (),
        drain: float = 2.0,
    ) -> None:
        host, port = parse_bind(bind, DEFAULT_PORT)
        bounds = parse_limits(limits, Side.RELAY)
        self._config = ServerConfig(
            bind_host=host,
            bind_port=port,
            ports=parse_ports(ports),
            advertise=parse_host(advertise) if advertise else "",
            state=default_state("server") if state is None else Path(state),
            cert=None if cert is None else Path(cert),
            key=None if key is None else Path(key),
            plaintext=plaintext,
            # A library leaves the limit of descriptors as it is.
            limits=replace(bounds, drain_time=drain, files=files.limit() if bounds.files is None else bounds.files),
            client_ca=None if client_ca is None else Path(client_ca),
            require_client_cert=require_client_cert,
            behind_proxy=behind_proxy,
            websocket_path=websocket_path,
            http=parse_bind(http, 80) if http else None,
            https=parse_bind(https, 443) if https else None,
            http_cert=None if http_cert is None else Path(http_cert),
            http_key=None if http_key is None else Path(http_key),
            domain=parse_host(domain) if domain else "",
            balancers=parse_balancers(proxy_protocol),
        )
        self._relay: WholeRelay | None = None
        self._inside: _Inside | None = None

    # --- life ----------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen for clients. Raises StartError when that cannot be."""
        if self._relay is not None:
            raise StartError("This server runs already: make another one, with a state directory of its own.")
        relay = self._relay = WholeRelay(self._config)
        try:
            relay.start()
        except BaseException:
            await self.abort()
            raise

    async def aclose(self) -> None:
        """End: nobody comes in any more, visitors have `drain` seconds to end. May be called again."""
        self._shut()
        try:
            if self._relay is not None and self._config.limits.drain_time > 0:
                await self._relay.drain()
        finally:
            await self.abort()

    async def abort(self) -> None:
        """End at once: every connection is reset."""
        self._shut()
        relay, self._relay = self._relay, None
        if relay is not None:
            await to_the_end(relay.close())

    def _shut(self) -> None:
        inside, self._inside = self._inside, None
        if inside is not None:
            inside.shut()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await (self.aclose() if kind is None else self.abort())

    # --- what clients need ---------------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """Where clients connect."""
        return self._running.port

    @property
    def url(self) -> str:
        """What `connect` takes on this machine: `tls://HOST:PORT`, `tcp://` of a relay without TLS, `ws://` of one behind a proxy."""
        proxied = self._config.behind_proxy  # and what is advertised leads to the proxy
        host = ("" if proxied else self._config.advertise) or {"::": "::1", "0.0.0.0": "127.0.0.1"}.get(
            self._config.bind_host, self._config.bind_host
        )
        path = self._config.websocket_path if proxied and self._config.websocket_path != WEBSOCKET_PATH else ""
        return f"{self._config.scheme}://{join_host(host, self.port)}{path}"

    @property
    def token(self) -> str:
        """The first token's text, a secret; "" when it is no longer kept."""
        return self._running.token()

    @property
    def _running(self) -> roles.Server:
        if self._relay is None:
            raise StartError("This server does not run: use it inside of `async with`, or `start` it.")
        return self._relay.server

    @property
    def _way(self) -> Way:
        if self._inside is None:
            self._inside = _Inside(self._running)
        return self._inside

    def __repr__(self) -> str:
        return f"<fastrelay.Server {self.url if self._relay else 'not started'}>"


class _Inside:
    """The way of a relay's own streams: it asks its directory, and nobody's policy."""

    def __init__(self, server: roles.Server) -> None:
        self._server = server
        self._doors: list[VisitorDoor] = []

    @property
    def runtime(self) -> Runtime:
        return self._server.runtime

    def open(self, outlet: Outlet, target: str, visitor: str) -> tuple[Stream, Link] | None:
        found = self._find(target)
        stream = None if isinstance(found, Code) else found.open(outlet, visitor)
        return None if stream is None or isinstance(found, Code) else (stream, found.tunnel.link)

    def why(self, target: str) -> Exception:
        found = self._find(target)
        if isinstance(found, Code):
            return refusal(found, target)
        return refusal(Code.SHUTDOWN if found.tunnel.session.going_away else Code.LIMIT, target)

    def _find(self, target: str) -> Service | Distant | Code:
        directory = self._server.directory
        if "/" not in target:
            return directory.service(target)
        try:
            client, place = read_through(target)
        except ValueError:
            return Code.NO_SERVICE
        found = directory.client(client)
        return found if isinstance(found, Code) else Distant(found, place)

    def missed(self, target: str, visitor: str, code: Code) -> None:
        say_missed(self.runtime.notices, target, visitor, code)

    def pause(self) -> float:
        return 0.0

    def serve(self, door: VisitorDoor) -> None:
        self._doors.append(door)
        door.open()

    def leave(self, door: VisitorDoor) -> None:
        if door in self._doors:
            self._doors.remove(door)
            door.close()

    def shut(self) -> None:
        for door in list(self._doors):
            self.leave(door)
