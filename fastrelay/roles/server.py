"""The relay: clients dial in and expose services, visitors come to public ports, and each visitor becomes a stream.

A visitor's way: VisitorDoor -> Visitor (an Edge) -> Session.open; from there on only Edge, Stream and Link are involved.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import secrets
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable

from fastrelay import __version__, log, wire
from fastrelay.auth import RelayLogin
from fastrelay.config import ServerConfig, join_host
from fastrelay.errors import Code, ProtocolError, StartError
from fastrelay.mux.greeting import RelayGreeting
from fastrelay.net.hold import Holder
from fastrelay.net.keys import Shown, settle
from fastrelay.net.link import Core, Link
from fastrelay.net.listen import Others, TunnelDoor, listen
from fastrelay.net.memory import bound
from fastrelay.net.runtime import Runtime
from fastrelay.net.tls import Identity, shown_key
from fastrelay.policy import Key
from fastrelay.roles.directory import Directory
from fastrelay.roles.keyring import Keyring
from fastrelay.roles.pools import Pool
from fastrelay.roles.refusals import Refusals, why
from fastrelay.roles.registry import Registry
from fastrelay.roles.sites import Sites
from fastrelay.roles.tunnel import Tunnel
from fastrelay.state import ServerState

_SAVE_AFTER = 0.2
_SEEN_EVERY = 3600.0


class Server:
    """Made on a running loop; `start` listens. Raises StartError when it cannot."""

    def __init__(self, config: ServerConfig, state: ServerState) -> None:
        self.config = config
        # What waits for a target counts against `memory` as a window does.
        self.settings = wire.Settings(early=wire.WINDOW_FLOOR)
        self._shown: Shown | None = _shown(config, state) if config.scheme == "tls" else None
        self.registry = Registry(state.reservations(), config.limits.reserved_time)
        self.runtime = Runtime(config.limits, "this relay")  # behind what may raise: it has descriptors
        self.directory = Directory(self.registry)
        self.held = Holder(self.runtime, config.bind_host)
        self.pools: dict[str, Pool] = {}  # by their owners
        self.sites: Sites | None = None  # where HTTP services are
        self.others: Others | None = None  # who takes what asks for no tunnel
        self.fronts: list[tuple[str, int]] = []  # schemes and ports of doors beside this one
        self.looks: list[Callable[[], object]] = []  # at files of theirs, which may have been replaced
        self.port = 0  # for tunnels; once started
        self._state = state
        self._door: TunnelDoor | None = None
        self._links: set[Link] = set()  # those in their greeting as well
        self._tunnels: dict[Link, Tunnel] = {}
        self._clients: Counter[str] = Counter()  # how many of them each token has, by its key id
        self.keyring = Keyring(self.runtime.loop, state, self._tunnels.values, self._look)
        self._seen: asyncio.TimerHandle | None = None
        self._saving: asyncio.TimerHandle | None = None
        self.draining = False
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
            raise StartError(f"Cannot listen on {where}: {why(error)}. Choose another address with --bind.") from None
        context = None if self._shown is None else self._shown.context
        limits = dataclasses.replace(config.limits, max_greetings=self.runtime.strangers)
        self._door = TunnelDoor(
            self.runtime,
            sock,
            context,
            lambda: Link(self.runtime, self),
            Refusals(limits),
            limits,
            config.balancers,
            proxied=config.behind_proxy,
        )
        self._door.others = self.others
        self.port = self._door.port
        own = f"{config.scheme}://{join_host(config.advertise or config.bind_host, self.port)}"
        with contextlib.suppress(OSError):  # for the line that `token new` prints, which does without
            self._state.save_address(config.front if config.behind_proxy else own)
        self.keyring.start()
        self._hold_ports()
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
            tls=context is not None,
            memory=self.bound._asdict(),
        )

    async def drain(self) -> None:
        """Accept nobody new, let streams end for up to the limit `drain-time`, then close."""
        self.draining = True
        if self._door is not None:
            self._door.close()
        self.held.close()
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
        self.draining = True
        if self._door is not None:
            self._door.close()
        self.held.close()
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
        self.keyring.refresh()
        native = not self.config.behind_proxy if tls is None else tls.selected_alpn_protocol() == wire.ALPN
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
        greeting = RelayGreeting(
            link.decoder,
            login,
            link.write,
            lambda auth, theirs: tunnel.admit(login.admitted.key_id, auth, theirs),
            tunnel.begin,
        )
        if native:
            return greeting
        from fastrelay.net.websocket import RelaySide

        return RelaySide(link, lambda: greeting, self.config.websocket_path, proxied=self.config.behind_proxy)

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
        for look in self.looks:
            look()
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

    def pool_ended(self, pool: Pool, sock: socket.socket | None) -> None:
        """The last of its clients has gone: what it had is reserved, its port held."""
        if sock is not None:
            self.held.hold(sock, pool.owner)
        del self.pools[pool.owner]
        self.directory.remove(pool)
        self.registry.release(pool.owner, pool, time.time())
        self.save_soon()

    # --- reservations --------------------------------------------------------------------------------------------------

    def _hold_ports(self) -> None:
        """Everybody is away yet. Where another program has a port, its client will ask for it anyway."""
        self.registry.expire(time.time())
        for port, name in self.registry.ports.items():
            try:
                self.held.bind(port, name)
            except OSError as error:
                self.runtime.notices.say(
                    "port.not_held",
                    "port.not_held",
                    f"Cannot hold port {port} for {name}, which is away: {why(error)}. It is tried again when {name} is back.",
                    name=name,
                    port=port,
                )

    def save_soon(self) -> None:
        """Many changes, one write."""
        if self._saving is None:
            self._saving = self.runtime.loop.call_later(_SAVE_AFTER, self._save)

    def _save(self) -> None:
        if self._saving is not None:
            self._saving.cancel()
            self._saving = None
        self.registry.expire(time.time())
        self.held.keep(self.registry.ports)
        for name in self.registry.forgotten():
            self.runtime.reached("reserved-time", name)
        try:
            self._state.save_reservations(self.registry.reservations(time.time()))
        except OSError as error:
            log.error(
                "state.not_saved", f"Reservations were not saved ({why(error)}): a restart would forget the newest."
            )

    def _still_here(self) -> None:
        self.save_soon()
        self._seen = self.runtime.loop.call_later(_SEEN_EVERY, self._still_here)


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
