"""The network changes, or the machine wakes up."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from fastrelay.net import changes as changes_module
from fastrelay.net.changes import Changes
from fastrelay.net.runtime import Runtime
from tests.conftest import Run
from tests.support import need
from tests.support.tunnel import until


def test_a_wake_is_told_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    slept = [100.0]
    monkeypatch.setattr(changes_module, "_LOOK_EVERY", 0.01)
    monkeypatch.setattr(changes_module, "_slept", lambda: slept[0])
    monkeypatch.setattr(changes_module, "_netlink", lambda: None)

    async def main() -> None:
        runtime = Runtime()
        told: list[float] = []
        changes = Changes(runtime, lambda: told.append(time.monotonic()))
        await asyncio.sleep(0.05)
        assert not told
        slept[0] += 1.0  # clocks may be adjusted a little
        await asyncio.sleep(0.05)
        assert not told
        slept[0] += 60.0
        await until(lambda: told, "the wake was told")
        await asyncio.sleep(0.05)
        assert len(told) == 1
        changes.close()
        slept[0] += 60.0
        await asyncio.sleep(0.05)
        assert len(told) == 1, "after the end nothing is told"
        await runtime.close()

    run(main())


def test_a_burst_of_messages_is_one_change(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    near.setblocking(False)
    monkeypatch.setattr(changes_module, "_SETTLE", 0.05)
    monkeypatch.setattr(changes_module, "_netlink", lambda: near)

    async def main() -> None:
        runtime = Runtime()
        told: list[float] = []
        changes = Changes(runtime, lambda: told.append(time.monotonic()))
        for _ in range(20):
            far.send(b"a link, an address, a route")
            await asyncio.sleep(0.001)
        assert not told
        await until(lambda: told, "the change was told")
        await asyncio.sleep(0.1)
        assert len(told) == 1
        far.send(b"another one")
        await until(lambda: len(told) == 2, "the next change was told")
        far.send(b"and one that is never told")
        await asyncio.sleep(0.005)
        changes.close()
        await asyncio.sleep(0.1)
        assert len(told) == 2
        far.close()
        await runtime.close()

    run(main())


def test_the_clock_of_sleep_is_read() -> None:
    assert abs(changes_module._slept() - changes_module._slept()) < 1


def test_a_change_of_addresses_is_told(run: Run) -> None:
    need.root("to change the addresses of a machine")
    ip = need.program("ip")
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-n", "true"], capture_output=True, check=False).returncode:
        need.missing("a network namespace cannot be made here")

    async def main() -> None:
        # A name space for this thread only while the socket is made: it stays in the one it was made in.
        holder = subprocess.Popen([unshare, "-n", "sleep", "30"])
        try:
            await until(lambda: _namespace(holder.pid) != _namespace(os.getpid()), "the namespace is there")
            sock = await asyncio.to_thread(_netlink_in, holder.pid)
            runtime = Runtime()
            told: list[float] = []
            original = changes_module._netlink
            changes_module._netlink = lambda: sock
            try:
                changes = Changes(runtime, lambda: told.append(time.monotonic()))
            finally:
                changes_module._netlink = original
            await asyncio.sleep(0.4)
            assert not told
            nsenter = need.program("nsenter")
            command = [nsenter, "-t", str(holder.pid), "-n", ip, "address", "add", "192.0.2.77/32", "dev", "lo"]
            subprocess.run(command, check=True)
            await until(lambda: told, "the new address was told", 5)
            changes.close()
            await runtime.close()
        finally:
            holder.kill()
            holder.wait()
        await asyncio.get_running_loop().shutdown_default_executor()

    run(main())


def _namespace(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/net").readlink())


def _netlink_in(pid: int) -> socket.socket:
    """A netlink socket in another process's network namespace; only this thread goes there, and it ends."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    number = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        assert libc.setns(number, 0x40000000) == 0, os.strerror(ctypes.get_errno())
    finally:
        os.close(number)
    sock = changes_module._netlink()
    assert sock is not None
    return sock
