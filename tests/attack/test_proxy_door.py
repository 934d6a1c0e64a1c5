"""Programs at the local proxy that never say what they want (`fastrelay socks`)."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from pathlib import Path

import pytest

from tests.attack.neighbours import cpu, unharmed
from tests.e2e.doors import SocksProxy
from tests.support import need
from tests.support.peers import connect
from tests.support.processes import BEST

SLOW = 2000
DEADLINE = 10.0
WORDS = (b"\x05\x01\x00\x05\x01\x00\x03\xff" + b"a" * 255, b"CONNECT example.com:443 HTTP/1.1\r\nX: " + b"y" * 255)


@pytest.mark.slow
@pytest.mark.usefixtures("only_long")
def test_dribblers(tmp_path: Path) -> None:
    """Each says a byte a second. They are reset after 10 s, and everybody else is served all the while."""
    need.files(SLOW + 500)
    with SocksProxy(tmp_path, BEST) as door, contextlib.ExitStack() as stack:
        proxy = door.proxy
        used, before = cpu(proxy), proxy.files()
        slow: dict[int, tuple[socket.socket, bytes, float]] = {}
        poll = select.poll()
        for number in range(SLOW):
            sock = stack.enter_context(connect(door.address))
            slow[sock.fileno()] = sock, WORDS[number % 2], time.monotonic()
            poll.register(sock, 0)  # a reset is always told
        most = len(slow)
        lived: list[float] = []
        served: list[float] = []
        for turn in range(int(DEADLINE) + 3):
            begun = time.monotonic()
            for sock, words, _ in list(slow.values()):
                with contextlib.suppress(OSError):
                    sock.send(words[turn : turn + 1])
            for _ in range(10):
                start = time.monotonic()
                with door.pair() as pair:
                    pair.visitor.sendall(b"hello")
                    assert pair.target.recv(5) == b"hello"
                served.append(time.monotonic() - start)
                for number, _ in poll.poll(0):
                    sock, _, since = slow.pop(number)
                    poll.unregister(number)
                    lived.append(time.monotonic() - since)
                time.sleep(max(0.0, 0.1 - (time.monotonic() - start)))
            time.sleep(max(0.0, 1 - (time.monotonic() - begun)))
        assert not slow and len(lived) == most
        assert min(lived) >= DEADLINE - 0.1 and max(lived) < DEADLINE + 3
        assert proxy.files() <= before + 2
        unharmed(proxy)
        print(
            f"\n{most} dribblers at the proxy: ended after {min(lived):.1f} to {max(lived):.1f} s; {len(served)} others served, "
            f"worst {max(served) * 1e3:.0f} ms; {cpu(proxy) - used:.1f} s of CPU"
        )
