"""A client that dials what its rules allow, for a relay that names the places (protocol.md section 6.6)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from fastrelay import log
from fastrelay.config import Exposure, Target
from fastrelay.dialling import Rules
from fastrelay.errors import Code
from fastrelay.limits import DEFAULTS, Limits
from fastrelay.roles import client as client_module
from tests.attack.test_addresses import forms
from tests.conftest import Run
from tests.roles.test_client import LOCALHOST, ClientBench, client, soon
from tests.support.pair import Tap
from tests.support.peers import End
from tests.support.tunnel import Local, turns, until

__all__ = ["soon"]


@contextlib.asynccontextmanager
async def dialler(
    home: Path, *rules: str, exposures: tuple[Exposure, ...] = (), limits: Limits = DEFAULTS
) -> AsyncIterator[ClientBench]:
    """A client with these rules, whose session stands."""
    async with client(home, *exposures, limits=limits, allow_dial=Rules.parse(rules)) as bench:
        await until(lambda: bench.reached, "it is reachable")
        yield bench


@pytest.fixture
def there() -> Iterator[socket.socket]:
    """A target on all loopback addresses."""
    with socket.create_server(("0.0.0.0", 0)) as listener:
        listener.setblocking(False)
        yield listener


one_loop = pytest.mark.parametrize("loop_kind", ["asyncio"])
"""For what has nothing to do with the loop."""


def port_of(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


async def accepted(bench: ClientBench, listener: socket.socket) -> Local:
    async with asyncio.timeout(5):
        sock, _ = await bench.client.runtime.loop.sock_accept(listener)
    bench.locals.append(local := Local(sock))
    return local


async def refused(tap: Tap) -> Code | None:
    await until(lambda: tap.over, "it is refused")
    return tap.code


def denials(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    records = [vars(record) for record in caplog.records]
    return [record["fields"] | {"text": record["msg"]} for record in records if record.get("event") == "dial.denied"]


@pytest.mark.parametrize(
    ("rule", "host"),
    [
        ("127.0.0.0/8:{port}", "localhost"),
        ("127.0.0.1", LOCALHOST),
        ("127.0.0.1:1-65535", "[::ffff:127.0.0.1]"),
    ],
)
def test_what_a_rule_allows_is_dialled(run: Run, tmp_path: Path, there: socket.socket, rule: str, host: str) -> None:
    async def main() -> None:
        async with dialler(tmp_path / "c", rule.format(port=port_of(there))) as bench:
            tap = bench.relay.open(0, f"{host}:{port_of(there)}")
            local = await accepted(bench, there)
            await until(lambda: tap.accepted, "ACCEPT has arrived")
            await local.send(b"hello")
            await until(lambda: tap.received == b"hello", "it has arrived")
            assert tap.stream
            tap.stream.fin()
            assert await local.to_end() == (b"", End.EOF)
            local.eof()
            await until(lambda: tap.fin and not bench.relay.session.streams, "both ends")

    run(main())


@one_loop
@pytest.mark.parametrize(
    ("rules", "target", "rule"),
    [
        ((), "127.0.0.1:{port}", "none"),
        ((), "nonsense", "form"),
        (("0.0.0.0/0",), "127.1:{port}", "form"),
        (("0.0.0.0/0",), "127.0.0.1:{port}", "loopback"),
        (("*",), "127.0.0.1:{port}", "loopback"),
        (("*",), "localhost:{port}", "loopback"),
        (("localhost",), "localhost:{port}", "loopback"),
        (("0.0.0.0/0", "*"), "169.254.169.254:80", "link-local"),
        (("10.0.0.0/8",), "192.0.2.7:22", "address"),
        (("127.0.0.1:1",), "127.0.0.1:{port}", "port"),
        (("127.0.0.1:1",), "localhost:{port}", "port"),
        (("*.lab:{port}",), "db.lan:{port}", "name"),
    ],
)
def test_the_rest_is_denied_and_the_session_goes_on(
    run: Run,
    tmp_path: Path,
    there: socket.socket,
    caplog: pytest.LogCaptureFixture,
    rules: tuple[str, ...],
    target: str,
    rule: str,
) -> None:
    port = port_of(there)
    notes: list[tuple[str, dict[str, object]]] = []

    async def main() -> None:
        async with dialler(tmp_path / "c", *(one.format(port=port) for one in rules)) as bench:
            before, _ = await bench.joined()
            assert await refused(bench.relay.open(0, target.format(port=port))) is Code.DIAL_DENIED
            assert not before.over
            await bench.joined()
            assert len(bench.relay.sessions) == 1

    with caplog.at_level(logging.INFO, "fastrelay"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "_hear", lambda event, _, fields: notes.append((event, fields)))
        run(main())
    (told,) = denials(caplog)
    assert (told["rule"], told["target"], told["visitor"]) == (rule, target.format(port=port), "192.0.2.9:51544")
    assert told["target"] in told["text"] and "--allow-dial" in told["text"] and told["text"].endswith(".")
    noted = [fields for event, fields in notes if event in ("stream.refused", "target.refused")]
    assert [(fields["target"], fields["cause"]) for fields in noted] == [(target.format(port=port), "denied")]
    with pytest.raises(BlockingIOError):
        there.accept()


@one_loop
def test_what_attackers_say_is_denied(
    run: Run, tmp_path: Path, there: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every form of an address, with rules that look as if they let everybody everywhere: only the one that is exposed is dialled."""
    dialled: list[Any] = []
    monkeypatch.setattr(client_module, "Dial", lambda *args: dialled.append(args))

    async def main() -> None:
        async with dialler(tmp_path / "c", "0.0.0.0/0:22", "::/0:22", "*.lab:22") as bench:
            for form in forms(port_of(there)):
                text = form.decode("utf-8", "replace")[:80]
                bench.relay.open(0, text)
            last = bench.relay.open(0, "10.0.0.5:23")
            await refused(last)

    run(main())
    places = {str(args[5]) for args in dialled}
    allowed = {"10.0.0.1:22", "192.168.1.1:22", "172.16.0.1:22", "100.64.0.1:22"}
    names = {place for place in places - allowed if not place.rpartition(":")[0].strip("[]").replace(".", "").isdigit()}
    assert places == allowed | names
    for args in dialled:  # a name is judged when it has been resolved: see tests/net/test_dial.py
        assert args[-1] is not None, "whatever is dialled is judged"


@one_loop
def test_who_dials_is_in_the_audit_log(
    run: Run, tmp_path: Path, there: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[tuple[str, dict[str, object]]] = []

    async def main() -> None:
        monkeypatch.setattr(log, "_hear", lambda event, _, fields: notes.append((event, fields)))
        async with dialler(tmp_path / "c", "127.0.0.1") as bench:
            tap = bench.relay.open(0, f"127.0.0.1:{port_of(there)}")
            local = await accepted(bench, there)
            await until(lambda: tap.accepted, "ACCEPT has arrived")
            local.eof()
            assert tap.stream
            tap.stream.fin()
            await until(lambda: not bench.relay.session.streams, "both ends")
            await until(lambda: "target.closed" in [event for event, _ in notes], "it was told")

    run(main())
    told = {event: fields for event, fields in notes if event.startswith("target.")}
    assert told.keys() == {"target.opened", "target.closed"}
    for fields in told.values():
        assert fields["target"] == f"127.0.0.1:{port_of(there)}" and fields["service"] is None
    assert told["target.closed"]["cause"] == "fin"


@one_loop
def test_denials_do_not_flood(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_COMPLAIN_EVERY", 60.0)

    async def main() -> None:
        async with dialler(tmp_path / "c", "127.0.0.1") as bench:
            with socket.create_server((LOCALHOST, 0)) as sock:
                nobody = port_of(sock)
            taps = [bench.relay.open(0, f"10.0.0.{number}:22") for number in range(100)]
            taps += [bench.relay.open(0, f"127.0.0.1:{nobody}") for _ in range(100)]
            for tap in taps:
                await refused(tap)

    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())
    assert [told.get("count") for told in denials(caplog)] == [None, 99]
    failures = [vars(record) for record in caplog.records if vars(record).get("event") == "target.failed"]
    assert [record["fields"].get("count") for record in failures] == [None, 99]


@one_loop
def test_names_that_hang_keep_no_service_from_its_target(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many look-ups as a relay likes that never end: a service whose target has a name is still reached."""
    over = threading.Event()
    real = socket.getaddrinfo

    def slow(host: Any, *rest: Any, **more: Any) -> Any:
        if str(host).endswith(".slow"):
            over.wait(20)
            raise OSError("nobody knows")
        return real(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", slow)

    async def main() -> None:
        with socket.create_server((LOCALHOST, 0)) as listener:
            listener.setblocking(False)
            served = Exposure("named", 0, Target("localhost", port_of(listener)))
            async with dialler(tmp_path / "c", "*.slow", exposures=(served,)) as bench:
                taps = [bench.relay.open(0, f"n{number}.slow:80") for number in range(50)]
                await turns(10)
                bench.relay.open()
                await accepted(bench, listener)
                assert not any(tap.over for tap in taps)
                over.set()
                for tap in taps:
                    assert await refused(tap) is Code.UNREACHABLE

    try:
        run(main())
    finally:
        over.set()


@one_loop
def test_places_that_hang_keep_no_service_from_its_target(run: Run, tmp_path: Path) -> None:
    """More dials that nobody answers than may be made at once: half of the turns are for services."""

    async def main() -> None:
        with socket.create_server((LOCALHOST, 0), backlog=0) as hanging, contextlib.ExitStack() as stack:
            for _ in range(4):  # the queue is full: the kernel drops what else knocks
                knock = stack.enter_context(socket.socket())
                knock.setblocking(False)
                knock.connect_ex(hanging.getsockname())
            async with dialler(tmp_path / "c", "127.0.0.1", limits=Limits(dials=4)) as bench:
                taps = [bench.relay.open(0, f"127.0.0.1:{port_of(hanging)}") for _ in range(20)]
                await turns(10)
                for _ in range(5):
                    await bench.joined()
                assert not any(tap.over for tap in taps)

    run(main())


@one_loop
def test_what_is_dialled_is_told_at_the_start(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with dialler(tmp_path / "c", "10.0.0.0/8:22", "*.lab"):
            pass

    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())
    told = [vars(record) for record in caplog.records if vars(record).get("event") == "dial.ready"]
    assert [record["fields"] for record in told] == [{"rules": ("10.0.0.0/8:22", "*.lab")}]
    assert "10.0.0.0/8:22 or *.lab" in told[0]["msg"]
