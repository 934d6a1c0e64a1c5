"""Notices that the machine woke up or that its network changed, where the system tells: then waiting, or trusting a tunnel, is wrong."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

from fastrelay.net.runtime import Runtime

_LOOK_EVERY = 5.0
_SLEPT = 2.0
"""Seconds by which the clock that counts sleep has run ahead of the one that does not."""
_SETTLE = 0.3
"""Seconds: a change of network is a burst of messages."""
# linux/rtnetlink.h: links, addresses and routes of both families.
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400


class Changes:
    """Calls `changed()` soon after each change, until `close`."""

    def __init__(self, runtime: Runtime, changed: Callable[[], None]) -> None:
        self._loop = runtime.loop
        self._changed = changed
        self._settling: asyncio.TimerHandle | None = None
        self._ahead = _slept()
        self._look = self._loop.call_later(_LOOK_EVERY, self._wake_check)
        self._netlink = _netlink()
        if self._netlink is not None:
            self._loop.add_reader(self._netlink.fileno(), self._read)

    def close(self) -> None:
        self._look.cancel()
        if self._settling is not None:
            self._settling.cancel()
        if self._netlink is not None:
            self._loop.remove_reader(self._netlink.fileno())
            self._netlink.close()

    def _wake_check(self) -> None:
        self._look = self._loop.call_later(_LOOK_EVERY, self._wake_check)
        ahead = _slept()
        if ahead - self._ahead > _SLEPT:
            self._changed()
        self._ahead = ahead

    def _read(self) -> None:
        assert self._netlink is not None
        try:
            while self._netlink.recv(65536):
                pass
        except OSError:
            pass  # nothing more, or more than the buffer held: both mean a change
        if self._settling is None:
            self._settling = self._loop.call_later(_SETTLE, self._settled)

    def _settled(self) -> None:
        self._settling = None
        self._changed()


def _slept() -> float:
    """Seconds that the machine has slept since it booted, 0 where it cannot be told."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return 0.0 if clock is None else time.clock_gettime(clock) - time.monotonic()


def _netlink() -> socket.socket | None:
    """A socket that becomes readable when a link, address or route changes; None where there is none."""
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    except (AttributeError, OSError):
        return None
    try:
        sock.bind((0, _GROUPS))
    except OSError:
        sock.close()
        return None
    return sock
