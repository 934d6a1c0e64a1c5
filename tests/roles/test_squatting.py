"""The squatting matrix: whatever a client asks for, it never has a port or a name that is not its own. Wrong grants: 0.

Home has a token for the name `home` and all five ports of the relay, and holds the first of them, here or away. Mallory has a token for
the name `mallory` and the first three, and wants everything. What was granted is read from the relay, not from its answers.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fastrelay import config, policy, wire
from fastrelay.auth import Token
from fastrelay.errors import Code
from fastrelay.net.listen import listen
from fastrelay.policy import Allowed, Key
from fastrelay.roles.registry import Registry
from fastrelay.state import Reservation
from fastrelay.wire import Kind
from tests.conftest import Run
from tests.roles.test_server import LOCALHOST, RelayBench, relay
from tests.support.grants import make_token
from tests.support.tunnel import Peer, until

pytestmark = pytest.mark.parametrize("loop_kind", ["asyncio"])  # nothing here has to do with the loop
NAME = config.NAME  # one test takes it away from the relay


class Scene:
    """A relay, home and mallory. `away` says that home's client has gone."""

    def __init__(self, bench: RelayBench, home: Token, mallory: Token, everybody: Token) -> None:
        self.bench = bench
        self.first = bench.ports.first
        self.tokens = {"home": home, "mallory": mallory, "everybody": everybody}
        self.number = 0

    def wrong(self) -> list[str]:
        """Names and ports that somebody has at this moment and should not."""
        found = []
        for tunnel in self.bench.server._tunnels.values():
            label = tunnel.key.label
            instance = self.bench.server.registry.reservations(0)[tunnel.name].instance
            if label != "everybody" and tunnel.name != label:
                found.append(f"{label} is called {tunnel.name}")
            if (tunnel.name == "home") is not (instance == "home-inst"):
                found.append(f"{tunnel.name} is the installation {instance}")
            if not NAME.fullmatch(tunnel.name):
                found.append(f"{tunnel.name!r} is no name")
            mine = range(self.first, self.first + 5) if label == "home" else range(self.first + 1, self.first + 3)
            found += [
                f"{label} has port {service.port}" for service in tunnel.services.values() if service.port not in mine
            ]
        owner = dict(self.bench.server.registry._owner)[self.first]
        if owner != "home":
            found.append(f"the port of home belongs to {owner}")
        return found

    async def ask(self, peer: Peer, port: int) -> wire.Exposed:
        self.number += 1
        return await self.bench.expose(peer, self.number, f"s{self.number}", port)


@asynccontextmanager
async def scene(path: Path, away: bool) -> AsyncIterator[Scene]:
    async with relay(path) as bench:
        first = bench.ports.first
        await bench.close()
        tokens = [
            make_token(bench.home, "home", ports=f"{first}-{first + 4}"),
            make_token(bench.home, "mallory", ports=f"{first}-{first + 2}"),
            make_token(bench.home, "everybody", names=["*"], ports=f"{first}-{first + 2}"),
        ]
        bench.start()
        made = Scene(bench, *tokens)
        peer, _ = await bench.client("home", "home-inst", made.tokens["home"])
        assert (await bench.expose(peer, 1, "ssh", first)).port == first
        if away:
            peer.close()
            await until(lambda: not bench.server._tunnels, "home is away")
        yield made


# --- ports -------------------------------------------------------------------------------------------------------------

ASKS: dict[str, tuple[Callable[[Scene], int], str]] = {
    "another's": (lambda it: it.first, "port-"),  # taken, or reserved while it is away
    "outside the grant": (lambda it: it.first + 3, "not-granted"),
    "before the grant": (lambda it: it.first - 1, "not-granted"),
    "outside the range": (lambda it: it.first + 5, "not-granted"),
    "the relay's own": (lambda it: it.bench.port, "not-granted"),
    "another program's": (lambda it: it.first + 2, "port-taken"),
    "1": (lambda _: 1, "not-granted"),
    "22": (lambda _: 22, "not-granted"),
    "443": (lambda _: 443, "not-granted"),
    "1023": (lambda _: 1023, "not-granted"),
    "65535": (lambda _: 65_535, "not-granted"),
    "65536": (lambda _: 65_536, "bad-request"),
    "-1": (lambda _: -1, "bad-request"),
    "its own and 65536 more": (lambda it: it.first + 1 + 65_536, "bad-request"),
    "2^32": (lambda _: 1 << 32, "bad-request"),
}


@pytest.mark.parametrize("away", [False, True], ids=["present", "absent"])
def test_ports(run: Run, tmp_path: Path, away: bool) -> None:
    async def main() -> None:
        async with scene(tmp_path / "r", away) as it:
            peer, _ = await it.bench.client("mallory", "m", it.tokens["mallory"])
            with listen(LOCALHOST, it.first + 2):
                for what, (port, error) in ASKS.items():
                    answer = await it.ask(peer, port(it))
                    assert not answer.port and answer.error.startswith(error), what
                    assert not it.wrong(), what
                # Any port is one of its own; and then there is none any more.
                assert (await it.ask(peer, 0)).port == it.first + 1
                assert (await it.ask(peer, 0)).error == "no-port"
            assert (await it.ask(peer, it.first + 2)).port == it.first + 2
            assert not it.wrong()
            home, _ = await it.bench.client("home", "home-inst", it.tokens["home"])
            assert (await it.bench.expose(home, 1, "ssh", it.first)).port == it.first

    run(main())


@pytest.mark.parametrize("away", [False, True], ids=["present", "absent"])
@pytest.mark.parametrize("step", [97, pytest.param(1, marks=pytest.mark.slow)])
def test_all_ports_there_are(run: Run, tmp_path: Path, away: bool, step: int) -> None:
    """65,536 asks by one client, or every 97th and those where something begins. They go past the wire, where they would be too many:
    protocol.md section 12.
    """

    async def main() -> list[int]:
        async with scene(tmp_path / "r", away) as it:
            await it.bench.client("mallory", "m", it.tokens["mallory"])
            (tunnel,) = [one for one in it.bench.server._tunnels.values() if one.name == "mallory"]
            asked = {*range(65_536, 0, -step), *range(1, 1100), *range(it.first - 100, it.first + 100), it.bench.port}
            granted = []
            for port in sorted(asked, reverse=True):
                answer, _ = tunnel._expose(wire.Expose(service=port, name=f"s{port}", port=port))
                if answer.port:
                    granted.append(answer.port)
            assert not it.wrong()
            return [port - it.first for port in granted]

    assert run(main()) == [2, 1]


# --- names -------------------------------------------------------------------------------------------------------------

LIKE_HOME = [
    "HOME",
    "Home",
    "hоme",
    "ｈome",
    "home\u200b",
    "home\n",
    "home\0",
    " home",
    "-home",
    "_home",
    ".",
    "h" * 64,
]
"""Not names at all (protocol.md section 4.1): in other case, with letters of other alphabets, too short or too long."""
NEAR_HOME = ["home.", "home_", "home-", "home2", "localhost", "h" * 63, "mallory."]
"""Names of their own."""


async def enters(it: Scene, name: str, instance: str, token: str) -> Code | None:
    """None, or why not."""
    peer, answer = await it.bench.client(name, instance, it.tokens[token], wants=None)
    if answer.kind == Kind.WELCOME:
        return None
    code = wire.unpack_goaway(answer.payload)[1]
    peer.close()
    return code


@pytest.mark.parametrize("away", [False, True], ids=["present", "absent"])
def test_names(run: Run, tmp_path: Path, away: bool) -> None:
    async def main() -> None:
        async with scene(tmp_path / "r", away) as it:
            for token in it.tokens:
                for name in LIKE_HOME:
                    assert await enters(it, name, "home-inst", token) is Code.PROTOCOL, name
            for token in it.tokens:  # nobody is called "", and none of these reaches anybody
                assert await enters(it, "", "home-inst", token) is Code.DENIED
            for name in ["home", *NEAR_HOME]:
                for instance in ("home-inst", "m"):
                    assert await enters(it, name, instance, "mallory") is Code.DENIED, name
            for name in NEAR_HOME:
                assert await enters(it, name, "home-inst", "home") is Code.DENIED, name
            # Its own name and its own token do not help another installation; nor does a token for all names.
            assert await enters(it, "home", "m", "home") is Code.NAME_TAKEN
            assert await enters(it, "home", "m", "everybody") is Code.NAME_TAKEN
            assert not it.wrong()
            for name in NEAR_HOME:
                assert await enters(it, name, "m", "everybody") is None, "a name of its own is nobody else's"
            assert await enters(it, "home", "home-inst", "home") is None
            assert not it.wrong()

    run(main())


# --- the matrix itself -------------------------------------------------------------------------------------------------


async def everything(it: Scene) -> list[str]:
    """All of the above, whatever the answers are: what was granted that should not be."""
    found: list[str] = []
    for token in it.tokens:
        for name in ["home", *LIKE_HOME, *NEAR_HOME]:
            await enters(it, name, "m", token)
            found += it.wrong()
    peer, answer = await it.bench.client("mallory", "other", it.tokens["mallory"])
    assert answer.kind == Kind.WELCOME
    for port, _ in ASKS.values():
        await it.ask(peer, port(it))
        found += it.wrong()
    return found


def takes_every_name(self: Registry, name: str, instance: str, session: object, now: float) -> object | None:
    reservation = self._reserved.get(name)
    self._reserved[name] = Reservation(instance, now, reservation.ports if reservation is not None else {})
    self._here[name] = session
    return None


class Nobodys(dict[int, str]):
    def __contains__(self, port: object) -> bool:
        return False

    def get(self, port: int, default: Any = None) -> Any:
        return default


def no_names(patch: pytest.MonkeyPatch, it: Scene) -> None:
    patch.setattr(Key, "refuse_name", lambda *_: None)


def no_ports(patch: pytest.MonkeyPatch, it: Scene) -> None:
    patch.setattr(Allowed, "refusal", lambda *_: None)


def no_owners_of_ports(patch: pytest.MonkeyPatch, it: Scene) -> None:
    registry = it.bench.server.registry
    patch.setattr(registry, "_owner", Nobodys(registry._owner))


def no_owners_of_names(patch: pytest.MonkeyPatch, it: Scene) -> None:
    patch.setattr(Registry, "claim", takes_every_name)


def no_form_of_names(patch: pytest.MonkeyPatch, it: Scene) -> None:
    for room in (config, policy):
        patch.setattr(room, "NAME", re.compile(".*", re.DOTALL))


@pytest.mark.parametrize(
    "removed", [None, no_names, no_ports, no_owners_of_ports, no_owners_of_names, no_form_of_names]
)
def test_the_matrix_sees_a_check_that_is_missing(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    removed: Callable[[pytest.MonkeyPatch, Scene], None] | None,
) -> None:
    async def main() -> list[str]:
        async with scene(tmp_path / "r", away=True) as it:
            if removed is not None:
                removed(monkeypatch, it)
            return await everything(it)

    found = run(main())
    assert bool(found) is (removed is not None), found
