"""Public ports: visitors come in as fast as the loop can take them, wait while there is no room, and are lost never."""

from __future__ import annotations

import asyncio
import functools
import socket
from collections import deque
from collections.abc import Callable

from fastrelay.net.balancers import Address, Balancers, Renamed
from fastrelay.net.listen import BACKLOG
from fastrelay.net.options import queued
from fastrelay.net.runtime import Runtime
from fastrelay.networks import Networks

_GLANCE = 0.02
_STORM = 512
"""So many visitors in the backlog at one of these glances, in seconds, are a storm: a loop that takes one in each turn would be too slow."""
_CALM = 0.5
"""Seconds after which a storm is believed to be over."""
_TAKEN_PER_TURN = 1024
_JOINED_PER_TURN = 64
"""Visitors that are taken off the backlog in a turn of the loop, and those that are served then: others wait for their turn as well."""
_COME_BACK = 0.1
"""Seconds until the next try when no descriptor was left."""


async def let_in(
    runtime: Runtime, sock: socket.socket, visitor: asyncio.BaseProtocol, made: asyncio.BaseProtocol | None = None
) -> None:
    """Make `visitor` the protocol of a connection that was accepted, by way of `made` if that is another."""
    try:
        await runtime.loop.connect_accepted_socket(lambda: made or visitor, sock)
    except BaseException as error:
        sock.close()
        visitor.connection_lost(None)  # uvloop's transport, cancelled here, ends without a word
        if not isinstance(error, OSError):
            raise


class VisitorDoor:
    """A public port. While there is no room nothing is accepted and nothing is lost: visitors wait in the backlog of the socket.

    uvloop accepts by itself at half the cost. But it takes one visitor in each turn, which lets the backlog of a storm overflow, and where
    descriptors run out it closes those whom it cannot accept. So in a storm, and while descriptors are scarce, the door takes them off the
    backlog itself; on asyncio's own loop always, as that would take in more than there is room for.

    Connections from `balancers` begin with a PROXY header, which the door takes off: then it always accepts by itself.
    """

    def __init__(
        self,
        runtime: Runtime,
        sock: socket.socket,
        make: Callable[[], asyncio.BaseProtocol],
        balancers: Networks | None = None,
    ) -> None:
        self._runtime = runtime
        self._sock = sock
        self._make = make
        self._balancers = None if balancers is None else Balancers(runtime, balancers)
        self._quick = balancers is None and not isinstance(runtime.loop, asyncio.SelectorEventLoop)
        self._wanted = False
        self._storm = False
        self._taken: deque[tuple[socket.socket, Address]] = deque()  # off the backlog, and not served yet
        self._joining = False
        self._reader: Callable[[], None] | None = None  # what the loop calls when somebody has come
        self._serving = False  # the loop accepts by itself
        self._server: asyncio.Server | None = None
        self._changing = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def port(self) -> int:
        return int(self._sock.getsockname()[1])

    def open(self) -> None:
        self._wanted = True
        self._runtime.doors.add(self)
        self._runtime.keep_looking()
        self.adapt()

    def pause(self) -> None:
        self._wanted = False
        self._runtime.doors.discard(self)
        self.adapt()

    def leave(self) -> socket.socket:
        """Serve nobody any more. The socket is the caller's, and who comes to it waits in its backlog."""
        self.pause()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._balancers is not None:
            self._balancers.close()
        while self._taken:
            self._drop(*self._taken.popleft())
        return self._sock

    def close(self) -> None:
        self.leave().close()

    def adapt(self) -> None:
        """Accept as there is room for it."""
        runtime = self._runtime
        opened = self._wanted and not runtime.full
        self._serve(opened and self._quick and not runtime.scarce and not self._storm)
        self._read(self._glance if self._serving else self._take if opened else None)

    def _read(self, reader: Callable[[], None] | None) -> None:
        if reader == self._reader:
            return
        loop, fd = self._runtime.loop, self._sock.fileno()
        if self._reader is not None:
            loop.remove_reader(fd)
        self._reader = reader
        if reader is not None:
            loop.add_reader(fd, reader)

    # --- by the door ---------------------------------------------------------------------------------------------------

    def _take(self) -> None:
        """Take who is there off the backlog, and serve the first of them now."""
        runtime = self._runtime
        for _ in range(_TAKEN_PER_TURN):
            if runtime.full:
                break
            try:
                sock, who = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                break
            except OSError:
                runtime.starve()
                break
            sock.setblocking(False)
            runtime.coming += 1
            self._taken.append((sock, who))
            if sock.fileno() >= runtime.scarce_at or runtime.edges + runtime.coming >= runtime.budget:
                runtime.look()
        if self._taken and not self._joining:
            self._join_some()

    def _join_some(self) -> None:
        loop = self._runtime.loop
        for _ in range(min(len(self._taken), _JOINED_PER_TURN)):
            sock, who = self._taken.popleft()
            if self._balancers is None:
                self._admit(sock, who, who)
            else:
                self._balancers.hear(sock, who, functools.partial(self._admit, sock, who))
        self._joining = bool(self._taken)
        if self._joining:
            loop.call_soon(self._join_some)

    def _admit(self, sock: socket.socket, peer: Address, who: Address | None) -> None:
        """`who` is there, whose socket says `peer`; None for nobody."""
        if who is None:
            self._runtime.coming -= 1
        else:
            self._runtime.spawn(self._runtime.loop.create_task(self._join(sock, None if who is peer else who)))

    async def _join(self, sock: socket.socket, behind: Address | None) -> None:
        visitor = self._make()
        made = visitor if behind is None else Renamed(visitor, behind)
        self._runtime.coming -= 1  # from now on it counts as an edge, or will in a moment
        await let_in(self._runtime, sock, visitor, made)

    def _drop(self, sock: socket.socket, _: Address) -> None:
        self._runtime.coming -= 1
        sock.close()  # which resets it

    # --- by the loop ---------------------------------------------------------------------------------------------------

    def _glance(self) -> None:
        """Somebody has come, whom the loop is about to accept. See whether it can, and whether there are many; then not for a moment."""
        self._read(None)
        self._runtime.look()
        self._storm = queued(self._sock.fileno()) >= _STORM
        self._timer = self._runtime.loop.call_later(_CALM if self._storm else _GLANCE, self._again)
        if self._storm:
            self.adapt()

    def _again(self) -> None:
        self._timer = None
        if self._storm and self._taken:
            self._timer = self._runtime.loop.call_later(_CALM, self._again)
            return
        self._storm = False
        self.adapt()

    def _serve(self, serving: bool) -> None:
        if serving is self._serving:
            return
        self._serving = serving
        if not serving and self._server is not None:
            self._server.close()
            self._server = None
        if serving and not self._changing:
            self._changing = True
            self._runtime.spawn(self._runtime.loop.create_task(self._start()))

    async def _start(self) -> None:
        while self._serving:
            try:
                # The loop serves a dup() of the socket, so that closing its server leaves ours listening.
                self._server = await self._runtime.loop.create_server(
                    self._make, sock=self._sock.dup(), backlog=BACKLOG, start_serving=False
                )
                break
            except OSError:  # no descriptor was left: come back in a moment
                await asyncio.sleep(_COME_BACK)
        self._changing = False
        if self._server is not None:
            await self._server.start_serving()
