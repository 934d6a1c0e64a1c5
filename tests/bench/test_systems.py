"""bench.systems: whatever is installed starts, carries bytes both ways through each tunnel, and leaves no process behind."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import socket
import subprocess
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import systems
from bench.programs import LOOPBACK, BenchError, Place, Running, run, tree
from bench.systems import SYSTEMS, System

PREFIXED = Place(("env",), ("env",), "127.0.0.2", "127.0.0.3")
"""As on a link: commands are entered by a prefix, and each side has an address of its own."""
INSTALLED_APART = [system for system in SYSTEMS.values() if system.install]
each = pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS)


@pytest.fixture(scope="module")
def target() -> Iterator[int]:
    """The port of an echo, on every address: without a relay, visitors come to that of the client."""
    with socket.create_server(("0.0.0.0", 0), backlog=64) as listener, ExitStack() as ends:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    sock, _ = listener.accept()
                    ends.enter_context(sock)
                    threading.Thread(target=echo, args=(sock,), daemon=True).start()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def echo(sock: socket.socket) -> None:
    with sock, contextlib.suppress(OSError):
        while piece := sock.recv(65_536):
            sock.sendall(piece)


def answer(address: tuple[str, int], said: bytes) -> bytes:
    with socket.create_connection(address, 10) as visitor:
        visitor.sendall(said)
        return visitor.recv(len(said), socket.MSG_WAITALL)


def installed(system: System) -> None:
    if reason := system.missing():
        pytest.skip(reason)


def alive(pid: int) -> bool:
    """A process that runs; one that waits to be reaped by whoever adopted it does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def carries(way: Running) -> None:
    for number, visitor in enumerate(way.visitors):
        assert answer(visitor, b"%d" % number) == b"%d" % number


def all_end(pids: list[int]) -> None:
    deadline = time.monotonic() + 5
    while left := [pid for pid in pids if alive(pid)]:
        assert time.monotonic() < deadline, f"{left} run on"
        time.sleep(0.02)


@each
def test_two_of_a_system_at_once(system: System, tmp_path: Path, target: int) -> None:
    installed(system)
    with ExitStack() as stack:
        ways = [system.start(stack, LOOPBACK, tmp_path, target) for _ in range(2)]
        assert [len(way.visitors) for way in ways] == [1, 1]
        for way in ways:
            carries(way)
        pids = [tree(way.pids) for way in ways]
        assert not set(pids[0]) & set(pids[1])
    all_end([*pids[0], *pids[1]])


@each
def test_two_tunnels_in_another_place(system: System, tmp_path: Path, target: int) -> None:
    installed(system)
    with ExitStack() as stack:
        way = system.start(stack, LOOPBACK if system.loopback_only else PREFIXED, tmp_path, target, 2)
        carries(way)
        pids = tree(way.pids)
        assert all(map(alive, way.pids))
        if system.name != "direct":
            assert len(set(way.visitors)) == 2
            assert {host for host, _ in way.visitors} == {"127.0.0.1"}, "where visitors are looked for"
            assert len(way.pids) >= 2, "both ends are counted"
    all_end(pids)


@each
def test_it_says_its_version(system: System) -> None:
    installed(system)
    assert re.match(r"(Linux )?\d+\.\d+", system.version())


def test_only_a_plain_tunnel_is_bound_to_loopback(tmp_path: Path) -> None:
    assert [system.name for system in SYSTEMS.values() if system.loopback_only] == ["fastrelay"]
    with ExitStack() as stack, pytest.raises(BenchError, match="fastrelay-tls"):
        SYSTEMS["fastrelay"].start(stack, PREFIXED, tmp_path, 1)


@pytest.mark.parametrize("system", INSTALLED_APART, ids=lambda system: str(system.name))
def test_what_is_missing_is_a_sentence_with_the_line_that_installs_it(
    system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systems, "find", lambda program: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    reason = system.missing()
    assert re.fullmatch(r"\S.* install it with `[a-z]+ [^`]+`\.", reason)
    with ExitStack() as stack, pytest.raises(BenchError, match=re.escape(reason)):
        system.start(stack, LOOPBACK, tmp_path, 1)


def test_what_is_written_for_frp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is rarely installed where tests run."""
    monkeypatch.setattr(systems, "find", lambda program: f"/bin/{program}")
    server, clients, _ = systems._frp(tmp_path, systems.Ends(("10.0.0.1", 7000), [8001, 8002], 80))
    assert tomllib.loads(Path(server[-1]).read_text()) == {
        "bindAddr": "10.0.0.1",
        "bindPort": 7000,
        "proxyBindAddr": "127.0.0.1",
    }
    proxies = [tomllib.loads(Path(client[-1]).read_text())["proxies"] for client in clients]
    assert [proxy["remotePort"] for (proxy,) in proxies] == [8001, 8002]
    assert [proxy["localPort"] for (proxy,) in proxies] == [80, 80]
    assert len({proxy["name"] for (proxy,) in proxies}) == 2


def test_nginx_without_its_stream_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systems, "find", lambda program: f"/bin/{program}")
    for arguments, missing in (
        ("--with-stream --with-stream_ssl_module", False),
        ("--modules-path=/nowhere --with-stream=dynamic", True),
        ("--with-http_v2_module", True),
    ):
        systems._stream_module.cache_clear()
        said = SimpleNamespace(stderr=f"configure arguments: {arguments}\n")
        monkeypatch.setattr(subprocess, "run", lambda *_, said=said, **__: said)
        assert bool(SYSTEMS["nginx"].missing()) is missing
    systems._stream_module.cache_clear()


def test_a_program_that_ends_while_it_starts_is_an_error(target: int) -> None:
    with ExitStack() as stack:
        program = run(stack, "true")
        program.wait(10)
        with pytest.raises(BenchError, match="ended while it started"):
            systems._standing(LOOPBACK, "it", [("127.0.0.1", target)], [program])
