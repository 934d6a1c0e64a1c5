"""Tells when a socket can be written again, and that its peer has hung up, beside what the loop's transport reads from it.

asyncio and uvloop notice neither FIN nor RST while reading is paused, nor RST after EOF, and a transport that has something to write loses
the unread input when the write fails. So edges and plain tunnels write by themselves, and wait here: one edge-triggered epoll beside the
loop's own, whose descriptor the loop reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
from typing import Protocol


class Watched(Protocol):
    def on_writable(self) -> None: ...
    def on_hang_up(self, reset: bool, both: bool) -> None:
        """`reset`: the connection has failed. `both`: both directions are shut, without a sign of failure."""


_EVENTS = select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET


class Watch:
    """One for each loop. A descriptor is watched from `add` until `remove`, which must come before it is closed."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._watched: dict[int, Watched] = {}
        loop.add_reader(self._epoll.fileno(), self._ready)

    def add(self, fd: int, who: Watched) -> None:
        """Edge-triggered: what is so already is told once, soon after; from then on every change is. Adding twice does nothing."""
        if fd not in self._watched:
            self._watched[fd] = who
            self._epoll.register(fd, _EVENTS)

    def remove(self, fd: int) -> None:
        if self._watched.pop(fd, None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def close(self) -> None:
        self._loop.remove_reader(self._epoll.fileno())
        self._watched.clear()  # connections that end later need not be removed
        self._epoll.close()

    def _ready(self) -> None:
        for fd, events in self._epoll.poll(0):
            who = self._watched.get(fd)
            if who is None:
                continue
            if events & select.EPOLLOUT and not events & (select.EPOLLERR | select.EPOLLHUP):
                who.on_writable()
            if events & (select.EPOLLERR | select.EPOLLHUP):
                who.on_hang_up(bool(events & select.EPOLLERR), bool(events & select.EPOLLHUP))
