"""The audit logs of a relay and a client beside each other: every end has its cause on both sides, and its bytes to the byte."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastrelay.auth import Token
from tests.support.grants import make_token, revoke
from tests.support.payload import Checker, Keystream
from tests.support.peers import (
    Address,
    End,
    accept,
    connect,
    exactly,
    hang_up,
    knock,
    read,
    read_to_end,
    reset,
    send,
    send_and_end,
    until,
)
from tests.support.processes import BEST, Client, Process, Server, Way, environment

IN, OUT = 70_001, 50_003
"""Bytes from the visitor and to it: more than one frame, and none of them round."""


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def told(path: Path, event: str, **fields: object) -> dict[str, Any]:
    """The only line of this event with these fields, as soon as it is there."""

    def found() -> list[dict[str, Any]]:
        return [line for line in lines(path) if line["event"] == event and fields.items() <= line.items()]

    until(found, f"{event} {fields} in {path.name}: {lines(path)[-5:]}")
    assert len(found()) == 1, found()
    return found()[0]


class Audited:
    """A relay and a client that both keep an audit log."""

    def __init__(
        self, home: Path, way: Way = BEST, *options: str, client: tuple[str, ...] = (), more: tuple[str, ...] = ()
    ) -> None:
        self.home = home
        self.relay_log, self.client_log = home / "relay.audit", home / "client.audit"
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.target = "{}:{}".format(*self.listener.getsockname())
        with socket.create_server(("127.0.0.1", 0)) as gone:
            self.nobody = "{}:{}".format(*gone.getsockname())
        self.stack = contextlib.ExitStack()
        self.stack.enter_context(self.listener)
        self.server = self.stack.enter_context(Server(home / "server", way, "--audit", str(self.relay_log), *options))
        self.token = self.server.token()
        expose = [f"there={self.target}", f"refuses={self.nobody}", f"missing=unix:{home}/none.sock", *more]
        self.client = self.stack.enter_context(
            Client(
                self.server.url, self.token, home / "client", "--audit", str(self.client_log), *client,
                expose=expose, loop=way.loop, name="tested",
            )
        )  # fmt: skip
        self.there, self.refuses, self.missing, *self.more = self.client.addresses()

    def pair(self) -> tuple[socket.socket, socket.socket]:
        visitor = connect(self.there)
        return visitor, accept(self.listener)

    def exchange(self) -> tuple[socket.socket, socket.socket, str]:
        """A visitor and its target, IN bytes from the one and OUT from the other; and what the visitor is called."""
        visitor, target = self.pair()
        send(visitor, Keystream("in"), IN)
        read(target, Checker("in"), IN)
        send(target, Keystream("out"), OUT)
        read(visitor, Checker("out"), OUT)
        return visitor, target, name_of(visitor)

    def closed(self, visitor: str, cause: str, bytes_in: int = IN, bytes_out: int = OUT) -> None:
        """Both logs tell the same of this visitor."""
        carried = {"bytes_in": bytes_in, "bytes_out": bytes_out, "cause": cause, "service": "there"}
        relay = told(self.relay_log, "visitor.closed", visitor=visitor)
        client = told(self.client_log, "target.closed", visitor=visitor)
        assert relay | carried == relay and client | carried == client
        assert (relay["session"], relay["stream"]) == (client["session"], client["stream"])
        assert relay["port"] == self.there[1] and relay["name"] == "tested" and client["target"] == self.target
        assert 0 < relay["seconds"] < 60 and relay["level"] == client["level"] == "note"
        for opened in (
            told(self.relay_log, "visitor.opened", visitor=visitor),
            told(self.client_log, "target.opened", visitor=visitor),
        ):
            assert (opened["session"], opened["stream"]) == (relay["session"], relay["stream"])

    def close(self) -> None:
        self.stack.close()


def name_of(visitor: socket.socket) -> str:
    return "{}:{}".format(*visitor.getsockname())


@pytest.fixture(scope="module", params=[BEST, pytest.param(Way(False, "asyncio"), marks=pytest.mark.slow)], ids=repr)
def audited(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Audited]:
    made = Audited(tmp_path_factory.mktemp("audited"), request.param)
    yield made
    made.close()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Audited]:
    made = Audited(tmp_path)
    yield made
    made.close()


# --- visitors and targets ---------------------------------------------------------------------------------------------------


def test_fin(audited: Audited) -> None:
    visitor, target, name = audited.exchange()
    with visitor, target:
        send_and_end(visitor, Keystream("more"), 11)
        assert read_to_end(target, Checker("more")) is End.EOF
        send_and_end(target, Keystream("last"), 7)
        assert read_to_end(visitor, Checker("last")) is End.EOF
    audited.closed(name, "fin", IN + 11, OUT + 7)


def test_resets_are_somebodys(audited: Audited) -> None:
    visitor, target, name = audited.exchange()
    with target:
        reset(visitor)
        assert hang_up(target)
    audited.closed(name, "visitor-reset")
    visitor, target, name = audited.exchange()
    with visitor:
        reset(target)
        assert hang_up(visitor)
    audited.closed(name, "target-reset")


def test_what_a_visitor_never_read_went_through_the_tunnel(audited: Audited) -> None:
    visitor, target = audited.pair()
    name = name_of(visitor)
    with target:
        send(target, Keystream("out"), OUT)
        until(lambda: len(visitor.recv(OUT, socket.MSG_PEEK)) == OUT, "all of it is there")
        reset(visitor)
        assert hang_up(target)
    audited.closed(name, "visitor-reset", 0, OUT)


@pytest.mark.parametrize(("service", "cause"), [("refuses", "refused"), ("missing", "unreachable")])
def test_targets_that_are_not_there(audited: Audited, service: str, cause: str) -> None:
    where: Address = getattr(audited, service)
    with knock(where) as visitor:
        until(lambda: visitor.getsockname()[1], "it has a port")
        name = name_of(visitor)
        with contextlib.suppress(OSError):  # it may be over by now
            visitor.sendall(b"early words")
        assert hang_up(visitor)
    relay = told(audited.relay_log, "visitor.closed", visitor=name)
    client = told(audited.client_log, "target.refused", visitor=name)
    assert (relay["cause"], relay["bytes_out"]) == (client["cause"], 0) == (cause, 0)
    assert relay["service"] == client["service"] == service and client["bytes_in"] <= relay["bytes_in"] <= 11
    assert (relay["session"], relay["stream"]) == (client["session"], client["stream"])
    assert not [
        line for line in lines(audited.client_log) if line.get("visitor") == name and line["event"] == "target.opened"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("way", [BEST, Way(False, "asyncio")], ids=repr)
def test_every_beginning_has_its_end(tmp_path: Path, way: Way) -> None:
    """Whatever visitors and targets do: each is in both logs once, and the sums are those of all of them."""
    dice = random.Random(7)
    audited = Audited(tmp_path, way)
    with contextlib.ExitStack() as stack:
        stack.callback(audited.close)
        expected: dict[str, set[str]] = {}
        for _ in range(200):
            visitor, target = (stack.enter_context(end) for end in audited.pair())
            name = name_of(visitor)
            visitor.sendall(bytes(dice.randrange(1, 40_000)))
            target.sendall(bytes(dice.randrange(1, 40_000)))
            match dice.randrange(5):
                case 0:
                    visitor.shutdown(socket.SHUT_WR)
                    target.shutdown(socket.SHUT_WR)
                    causes = {"fin"}
                case 1:
                    reset(visitor)
                    causes = {"visitor-reset"}
                case 2:
                    reset(target)
                    causes = {"target-reset"}
                case 3:
                    visitor.shutdown(socket.SHUT_WR)
                    reset(target)
                    causes = {"target-reset"}
                case _:
                    causes = {"shutdown"}
            expected[name] = causes
        over = sum(causes != {"shutdown"} for causes in expected.values())
        for path, event in ((audited.relay_log, "visitor.closed"), (audited.client_log, "target.closed")):
            until(lambda: path.read_text().count(f'"{event}"') == over, f"{over} times {event}")  # noqa: B023
        audited.client.signal(signal.SIGINT)
        until(lambda: "Draining" in audited.client.stderr, "it drains")
        audited.client.signal(signal.SIGINT)
        audited.client.wait()
        gone = told(audited.relay_log, "client.gone")
    relay, client = lines(audited.relay_log), lines(audited.client_log)
    ends = {}
    for log, noun in ((relay, "visitor"), (client, "target")):
        begun = [(line["visitor"], line["stream"]) for line in log if line["event"] == f"{noun}.opened"]
        ended = {line["visitor"]: line for line in log if line["event"] == f"{noun}.closed"}
        assert sorted(begun) == sorted((name, line["stream"]) for name, line in ended.items()) and len(begun) == 200
        assert {name: {line["cause"]} for name, line in ended.items()} == expected
        ends[noun] = ended
    for name, causes in expected.items():
        one, other = ends["visitor"][name], ends["target"][name]
        assert one["stream"] == other["stream"]
        if causes == {"fin"}:
            assert (one["bytes_in"], one["bytes_out"]) == (other["bytes_in"], other["bytes_out"])
        # What was on its way when the other side had enough is counted where it was sent.
        assert one["bytes_in"] >= other["bytes_in"] and one["bytes_out"] <= other["bytes_out"]
    down = next(line for line in client if line["event"] == "tunnel.down")
    for total, ended in ((gone, ends["visitor"]), (down, ends["target"])):
        assert total["streams"] == 200
        for field in ("bytes_in", "bytes_out"):
            assert total[field] == sum(line[field] for line in ended.values())


# --- tunnels ------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_session_has_its_beginning_and_what_was_carried(own: Audited) -> None:
    ends = [own.exchange() for _ in range(3)]
    begun = told(own.relay_log, "server.started")
    assert begun["tls"] and begun["bind"] == "{}:{}".format(*own.server.address)
    started = told(own.client_log, "client.started", name="tested")
    assert started["key_id"] == own.token.split(".")[1] and f"there={own.target}" in started["exposures"]
    session = told(own.client_log, "tunnel.up")["session"]
    here = told(own.relay_log, "client.connected", session=session, name="tested")
    assert here["key_id"] == started["key_id"]
    assert told(own.relay_log, "service.ready", service="there")["port"] == own.there[1]

    own.client.kill()
    for visitor, target, name in ends:
        assert hang_up(visitor)
        visitor.close()
        target.close()
        closed = told(own.relay_log, "visitor.closed", visitor=name)
        assert (closed["bytes_in"], closed["bytes_out"], closed["cause"]) == (IN, OUT, "tunnel-lost")
    gone = told(own.relay_log, "client.gone", session=session)
    assert (gone["streams"], gone["bytes_in"], gone["bytes_out"]) == (3, 3 * IN, 3 * OUT)
    assert gone["cause"] == "tunnel-lost" and 0 < gone["seconds"] < 60


@pytest.mark.slow
def test_a_relay_that_ends_at_once(own: Audited) -> None:
    visitor, target, name = own.exchange()
    own.server.signal(signal.SIGINT)
    until(lambda: "Draining" in own.server.stderr, "it drains")
    late = knock(own.there)
    assert hang_up(late), "nobody listens"
    late.close()
    own.server.signal(signal.SIGINT)
    assert own.server.wait() == 130
    assert hang_up(visitor) and hang_up(target)
    visitor.close()
    target.close()
    own.closed(name, "shutdown")
    assert told(own.relay_log, "client.gone")["cause"] == "shutdown"
    assert told(own.relay_log, "server.stopped")["pid"] == own.server.pid
    assert lines(own.relay_log)[-1]["event"] == "server.stopped"
    down = told(own.client_log, "tunnel.down")
    assert (down["cause"], down["streams"], down["bytes_in"], down["bytes_out"]) == ("shutdown", 1, IN, OUT)
    assert own.client.logs("tunnel.retry", "shutdown")


@pytest.mark.slow
def test_what_takes_too_long(tmp_path: Path) -> None:
    """A target that never answers, one whose visitor does not wait for it, and half a connection on which nothing moves."""
    with contextlib.ExitStack() as stack:
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        stack.enter_context(connect(silent.getsockname()))  # nobody else gets in now
        audited = Audited(
            tmp_path, BEST, "--limit", "half-open-time=1", client=("--limit", "dial-time=1"),
            more=("silent={}:{}".format(*silent.getsockname()),),
        )  # fmt: skip
        stack.callback(audited.close)
        visitor, target, half = audited.exchange()
        stack.enter_context(visitor)
        stack.enter_context(target)
        visitor.shutdown(socket.SHUT_WR)
        (where,) = audited.more
        waits, hurries = stack.enter_context(connect(where)), connect(where)
        names = name_of(waits), name_of(hurries)
        hurries.sendall(b"early words")
        told(audited.relay_log, "visitor.opened", visitor=names[1])
        reset(hurries)
        assert hang_up(waits)
        for name, causes in zip(names, (("dial-timeout",) * 2, ("visitor-reset",) * 2), strict=True):
            relay = told(audited.relay_log, "visitor.closed", visitor=name)
            client = told(audited.client_log, "target.refused", visitor=name)
            assert (relay["cause"], client["cause"]) == causes
            assert relay["bytes_in"] == client["bytes_in"] == (11 if name == names[1] else 0)
        assert hang_up(visitor)
        audited.closed(half, "timeout")


@pytest.mark.slow
def test_a_tunnel_that_is_lost_while_a_target_is_dialled(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        stack.enter_context(connect(silent.getsockname()))
        audited = Audited(tmp_path, more=("silent={}:{}".format(*silent.getsockname()),))
        stack.callback(audited.close)
        visitor = stack.enter_context(connect(audited.more[0]))
        name = name_of(visitor)
        for end in audited.pair():  # so the client has read what was said before
            end.close()
        audited.server.kill()
        assert hang_up(visitor)
        assert told(audited.client_log, "target.refused", visitor=name)["cause"] == "tunnel-lost"
        assert told(audited.client_log, "tunnel.down")["cause"] == "tunnel-lost"


@pytest.mark.slow
def test_a_relay_that_ends_in_order(own: Audited) -> None:
    own.server.signal(signal.SIGTERM)
    assert own.server.wait() == 0
    assert told(own.relay_log, "client.gone")["cause"] == "shutdown"
    assert told(own.client_log, "tunnel.down")["cause"] == "shutdown"


@pytest.mark.slow
def test_a_client_that_ends_in_order(own: Audited) -> None:
    own.client.signal(signal.SIGTERM)
    assert own.client.wait() == 0
    assert told(own.relay_log, "client.gone")["cause"] == "shutdown"
    assert told(own.client_log, "tunnel.down")["cause"] == "shutdown"
    assert lines(own.client_log)[-1] | {"event": "client.stopped", "cause": "shutdown"} == lines(own.client_log)[-1]


@pytest.mark.slow
def test_a_session_that_is_taken_over(own: Audited, tmp_path: Path) -> None:
    visitor, target, name = own.exchange()
    twin = tmp_path / "twin"
    (instance,) = (tmp_path / "client").rglob("instance")
    (twin / "fastrelay" / "client").mkdir(mode=0o700, parents=True)
    shutil.copy(instance, twin / "fastrelay" / "client")
    with visitor, target, Client(own.server.url, own.token, twin, expose=[own.target], name="tested") as second:
        second.addresses()
        assert hang_up(visitor) and hang_up(target)
        own.closed(name, "superseded")
        assert own.client.wait() == 3
    assert told(own.relay_log, "client.gone", cause="superseded")["streams"] == 1
    assert told(own.client_log, "client.stopped")["cause"] == "superseded"
    assert "refused" in told(own.client_log, "process.failed")["text"]


def test_who_is_refused(audited: Audited) -> None:
    """Not a client at all, and one without a right token; a client that asks for what it may not have is told, and let go."""
    home = audited.home
    with connect(audited.server.address) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        name = name_of(stranger)
        with contextlib.suppress(OSError):
            stranger.recv(1000)
    assert told(audited.relay_log, "client.refused", client=name)["cause"] == "protocol"
    wrong = dataclasses.replace(Token.parse(audited.token), secret=bytes(32)).text()
    with Client(audited.server.url, wrong, home / "wrong", expose=["22"], name="wrong") as client:
        assert client.wait() == 3
    denied = told(audited.relay_log, "client.refused", cause="denied")
    assert denied["code"] == "UNAUTHORIZED" and denied["level"] == "warning"
    greedy = Client(audited.server.url, audited.token, home / "greedy", expose=["x=1:22"], name="greedy")
    with greedy:
        assert greedy.wait() == 3
    refused = told(audited.relay_log, "service.refused", name="greedy", service="x")
    assert (refused["port"], refused["error"], refused["rule"]) == (1, "not-granted", "privileged-port")
    assert told(audited.relay_log, "client.gone", name="greedy")["streams"] == 0


@pytest.mark.slow
def test_a_guest(own: Audited, tmp_path: Path) -> None:
    """A token for one visitor at a time, of whom only some networks may come; and it is revoked."""
    made = make_token(own.home / "server", "guest", ports="relay", max_streams=1)
    token = dataclasses.replace(made, pins=Token.parse(own.token).pins).text()
    with Client(
        own.server.url, token, tmp_path / "guest", "--visitors", "closed=192.0.2.0/24", "--audit", str(tmp_path / "audit"),
        expose=[f"there={own.target}", f"closed={own.target}"], name="guest",
    ) as guest:  # fmt: skip
        there, closed = guest.addresses()
        first = connect(there)
        target = accept(own.listener)
        send(first, Keystream("in"), IN)
        read(target, Checker("in"), IN)
        for where, cause, service in ((there, "limit", "there"), (closed, "denied", "closed")):
            with knock(where) as visitor:
                until(lambda: visitor.getsockname()[1], "it has a port")
                name = name_of(visitor)
                assert hang_up(visitor)
            refused = told(own.relay_log, "visitor.refused", visitor=name)
            assert (refused["cause"], refused["service"], refused["name"]) == (cause, service, "guest")
        revoke(own.home / "server", "guest")
        assert hang_up(first) and hang_up(target)
        assert guest.wait() == 3
        name = name_of(first)
        first.close()
        target.close()
    assert told(own.relay_log, "client.dismissed")["token"] == "guest"
    for path, event in ((own.relay_log, "visitor.closed"), (tmp_path / "audit", "target.closed")):
        last = told(path, event, visitor=name)
        assert (last["cause"], last["bytes_in"], last["bytes_out"]) == ("denied", IN, 0)
    assert told(own.relay_log, "client.gone")["cause"] == told(tmp_path / "audit", "tunnel.down")["cause"] == "denied"


# --- the file -----------------------------------------------------------------------------------------------------------------


def test_rotation_by_signal(audited: Audited, tmp_path: Path) -> None:
    """As logrotate does it: move, SIGHUP, and after that nothing more comes to the old file."""
    for process, path in ((audited.server, audited.relay_log), (audited.client, audited.client_log)):
        until(path.read_bytes, "the first lines are there")
        path.rename(tmp_path / f"{path.name}.1")
        process.signal(signal.SIGHUP)
        until(path.exists, "it has begun a new one")
        assert path.stat().st_mode & 0o777 == 0o600
    old = [(tmp_path / f"{path.name}.1").read_bytes() for path in (audited.relay_log, audited.client_log)]
    visitor, target, name = audited.exchange()
    reset(visitor)
    target.close()
    audited.closed(name, "visitor-reset")
    assert old == [(tmp_path / f"{path.name}.1").read_bytes() for path in (audited.relay_log, audited.client_log)]


DEBUG = """
import logging, sys
logging.basicConfig(level=1)
logging.getLogger("asyncio").setLevel = lambda level: None
from fastrelay.cli import main
main()
"""


@pytest.mark.slow
def test_no_secret_is_anywhere(tmp_path: Path) -> None:
    """Everything that is said at any level, by a relay and clients with a right, a wrong and a damaged token, and what others can read."""
    state, audit = tmp_path / "server", tmp_path / "audit"
    with Server(state, BEST, "--audit", str(audit)) as first:
        token = first.token()
    loud = {"PYTHONASYNCIODEBUG": "1"}
    command = [sys.executable, "-c", DEBUG]
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        server = stack.enter_context(
            Process(
                [*command, "server", "--bind", "127.0.0.1:0", "--state", str(state), "--audit", str(audit)],
                environment(tmp_path, **loud),
            )
        )
        relay = server.line(0)
        wrong = dataclasses.replace(Token.parse(token), secret=bytes(range(32))).text()
        file = tmp_path / "token"
        file.write_text(token)
        secrets = {part for text in (token, wrong) for part in text.split(".")[2:3]}
        said = [server]
        for number, text in enumerate((wrong, token[:-1], wrong[:60])):
            client = stack.enter_context(
                Process(
                    [*command, "client", relay, "--expose", "22", "--audit", str(tmp_path / f"audit{number}")],
                    environment(tmp_path / f"c{number}", FASTRELAY_TOKEN=text, **loud),
                )
            )
            said.append(client)
            assert client.wait() in (2, 3)
        client = stack.enter_context(
            Process(
                [*command, "client", relay, "--expose", str(listener.getsockname()[1]), "--token-file", str(file),
                 "--audit", str(tmp_path / "audit-right")],
                environment(tmp_path / "right", **loud),
            )
        )  # fmt: skip
        said.append(client)
        where = client.line(0).removeprefix("tcp://").split(":")
        with connect((where[0], int(where[1]))) as visitor, accept(listener) as target:
            payload = b"the payload is nobody's business"
            visitor.sendall(payload)
            assert exactly(target, len(payload)) == payload
        for process in (server, client):
            shown = Path(f"/proc/{process.pid}/cmdline").read_bytes()
            assert not [secret for secret in secrets if secret.encode() in shown]
            process.signal(signal.SIGTERM)
            assert process.wait() == 0
        assert any("DEBUG" in process.stderr for process in said), "this test hears debug"
    texts = {process.stderr + "\n".join(process.out) for process in said}
    texts |= {path.read_text() for path in tmp_path.rglob("*audit*")}
    assert len(texts) >= 7
    for text in texts:
        for secret in secrets:
            assert secret not in text and secret[:16] not in text
        assert payload.decode() not in text
