"""A relay and clients under TLS in this process: client certificates (protocol.md 4.6), and a change of the relay's key (4.3)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import socket
import ssl
import stat
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrelay.auth import Token, pin_texts
from fastrelay.config import ClientConfig, Exposure, PortRange, Relay, ServerConfig, Target
from fastrelay.errors import StartError
from fastrelay.net import keys
from fastrelay.net.tls import Identity, client_context, file_pin, load_identity, make_identity, server_context
from fastrelay.policy import FIRST_GRANT, Key
from fastrelay.roles import keyring
from fastrelay.roles.client import Client
from fastrelay.roles.server import Server
from fastrelay.roles.trust import Trust
from fastrelay.state import ClientState, ServerState
from fastrelay.state.tokens import TokenStore, new_token
from tests.conftest import Run
from tests.support.certificates import Authority, Pair, bad_ones, self_signed
from tests.support.tunnel import Local, until

LOCALHOST = "127.0.0.1"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come at once, and so do looks at files."""
    monkeypatch.setattr(random, "random", lambda: 0.01)
    monkeypatch.setattr(keyring, "_LOOK_EVERY", 0.02)


one_loop = pytest.mark.parametrize("loop_kind", ["uvloop"], indirect=True)
"""For what no loop does in its own way."""


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class House:
    """A relay whose files are in `home`, its clients, and an echo behind each."""

    def __init__(self, home: Path, **options: Any) -> None:
        self.home = home
        self.options = options
        self.port = 0
        first = random.randrange(10_000, 32_000, 10)
        self.ports = PortRange(first, first + 9)
        self.guests: list[Guest] = []
        self.state = home / "server"

    def start(self) -> None:
        config = ServerConfig(
            bind_host=LOCALHOST, bind_port=self.port, ports=self.ports, advertise="", state=self.state,
            cert=None, key=None, plaintext=False, **self.options,
        )  # fmt: skip
        self.server = Server(config, ServerState.open(self.state))
        self.server.start()
        self.port = self.server.port
        self.token = self.server.token()

    @property
    def pair(self) -> keys.Pair:
        return self.state / "relay.crt", self.state / "relay.key"

    async def keep(self, key: Key) -> None:
        with TokenStore(self.state).edit() as kept:
            kept.append(key)
        await until(lambda: self.server._state.find(key.key_id) == key, "the relay has taken note", 2)

    def revoke(self, key: Key) -> None:
        with TokenStore(self.state).edit() as kept:
            kept.remove(key)

    def guest(self, name: str = "home", token: str | None = None, **options: Any) -> Guest:
        made = Guest(self, name, self.token if token is None else token, **options)
        self.guests.append(made)
        return made

    async def close(self) -> None:
        for guest in self.guests:
            await guest.close()
        await self.server.close()
        self.echo.close()

    async def begin(self) -> None:
        self.echo = await asyncio.get_running_loop().create_server(Echo, LOCALHOST, 0)
        self.start()


class Guest:
    """One client, started at once."""

    def __init__(self, house: House, name: str, token: str, state: str = "", port: int = 0, **options: Any) -> None:
        relay = Relay(LOCALHOST, port or house.port, tls=True)
        target = Target(LOCALHOST, house.echo.sockets[0].getsockname()[1])
        self.state = house.home / (state or name)
        config = ClientConfig(
            relay=relay, token=token, exposures=(Exposure("web", 0, target),), name=name, state=self.state, **options
        )
        self.ports: list[int] = []
        self.closed = False
        self.client = Client(
            config, ClientState.open(self.state, relay.url, name), lambda _, public: self.ports.append(public.port)
        )
        self.running = asyncio.ensure_future(self.client.run())

    async def here(self) -> None:
        await until(lambda: self.ports or self.running.done(), "it is reachable")
        if self.running.done():
            self.running.result()

    async def verdict(self) -> str:
        """The sentence with which it gives up."""
        async with asyncio.timeout(5):
            with pytest.raises(StartError) as caught:
                await self.running
        await self.close()
        return str(caught.value)

    async def visit(self) -> Local:
        local = Local(socket.socket())
        local.sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(local.sock, (LOCALHOST, self.ports[0]))
        await self.ask(local)
        return local

    async def ask(self, local: Local) -> None:
        await local.send(b"hello")
        assert await local.read(5) == b"hello"

    def told(self) -> list[str]:
        """The pins that it has kept."""
        found = list(self.state.glob("*.pins"))
        assert len(found) <= 1
        if not found:
            return []
        assert stat.S_IMODE(found[0].stat().st_mode) == 0o600
        pins: list[str] = [text.rstrip("=") for text in json.loads(found[0].read_text())["pins"]]
        return [text.replace("+", "-").replace("/", "_") for text in pins]

    async def close(self) -> None:
        """May be called again."""
        if self.closed:
            return
        self.closed = True
        await self.client.close()
        await asyncio.gather(self.running, return_exceptions=True)


@asynccontextmanager
async def house(home: Path, **options: Any) -> AsyncIterator[House]:
    made = House(home, **options)
    await made.begin()
    try:
        yield made
    finally:
        await made.close()


def said(caplog: pytest.LogCaptureFixture, event: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if vars(record).get("event") == event]


def certified(label: str, pair: Pair) -> Key:
    return Key.for_certificate(new_token().key_id, file_pin(pair[0]), label, FIRST_GRANT, 0.0)


def shows(pair: Pair) -> dict[str, Any]:
    return {"client_cert": pair[0], "client_key": pair[1]}


# --- pins --------------------------------------------------------------------------------------------------------------

KEYS = [bytes([number]) * 32 for number in range(4)]
sets = st.lists(st.sampled_from(KEYS), max_size=2, unique=True).map(tuple)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return self_signed(tmp_path_factory.mktemp("certificate"), "mine")


@settings(max_examples=20)
@given(of_the_token=sets, told=st.lists(sets | st.none(), max_size=6), by_token=st.booleans(), given_pins=sets)
def test_what_is_trusted(
    certificate: Pair,
    of_the_token: tuple[bytes, ...],
    told: list[tuple[bytes, ...] | None],
    by_token: bool,
    given_pins: tuple[bytes, ...],
) -> None:
    """The last set that the relay told, else the token's, and never both; None in `told` is a restart."""
    token = Token("k3yID_-0", bytes(32), of_the_token).text() if by_token else ""
    relay = Relay("relay.example", 7443, tls=True)
    with tempfile.TemporaryDirectory() as home:
        config = ClientConfig(
            relay=relay, token=token, exposures=(), name="home", state=Path(home), pins=given_pins, **shows(certificate)
        )
        state = ClientState.open(Path(home), relay.url, "home")
        trust = Trust(config, state)
        expected = given_pins or (of_the_token if by_token else ())
        for pins in told:
            if pins is None:
                state.close()
                state = ClientState.open(Path(home), relay.url, "home")
                trust = Trust(config, state)
            else:
                trust.learn(pins)
                if by_token and expected and pins:
                    expected = pins
            assert trust._pins == expected
        state.close()


# --- client certificates -----------------------------------------------------------------------------------------------


def test_a_certificate_instead_of_a_token(run: Run, tmp_path: Path) -> None:
    """With the relay held against --pin; and gone within a second when the record is."""
    authority = Authority(tmp_path)
    mine = authority.issue("mine")

    async def main() -> None:
        async with house(tmp_path, client_ca=authority.path) as relay:
            key = certified("mine", mine)
            await relay.keep(key)
            guest = relay.guest(token="", pins=relay.server.pins, **shows(mine))
            await guest.here()
            local = await guest.visit()
            stranger = relay.guest("stranger", "", pins=relay.server.pins, **shows(authority.issue("stranger")))
            assert "--no-token" in await stranger.verdict()
            nobody = relay.guest("nobody", "", pins=(b"x" * 32,), **shows(mine))
            assert "--pin" in await nobody.verdict()
            keys.prepare(relay.pair)
            await until(lambda: len(relay.server.pins) == 2, "the relay has taken note", 3)
            await guest.ask(local)
            assert not guest.told(), "without a token nothing is learned"
            relay.revoke(key)
            start = asyncio.get_running_loop().time()
            await until(guest.running.done, "it was sent away", 2)
            assert asyncio.get_running_loop().time() - start < 1
            local.close()

    run(main())


@one_loop
def test_without_a_pin_the_cas_decide(run: Run, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    mine = authority.issue("mine")

    async def main() -> None:
        async with house(tmp_path, client_ca=authority.path) as relay:
            await relay.keep(certified("mine", mine))
            assert "not trusted here" in await relay.guest(token="", **shows(mine)).verdict()

    run(main())


@one_loop
def test_a_certificate_beside_a_token(run: Run, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    mine, other = authority.issue("mine"), authority.issue("other")

    async def main() -> None:
        async with house(tmp_path, client_ca=authority.path) as relay:
            secret = new_token()
            await relay.keep(Key.made(secret, "mine", FIRST_GRANT, 0.0, file_pin(mine[0])))
            token = Token(secret.key_id, secret.secret, relay.server.pins).text()
            guest = relay.guest(token=token, **shows(mine))
            await guest.here()
            (await guest.visit()).close()
            for name, certificate in (("none", {}), ("wrong", shows(other))):
                assert (
                    "only together with the client certificate"
                    in await relay.guest(name, token, **certificate).verdict()
                )
            assert "no token" in await relay.guest("empty", "", pins=relay.server.pins, **shows(mine)).verdict()

    run(main())


def test_a_certificate_may_be_required(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    authority = Authority(tmp_path)

    async def main() -> None:
        async with house(tmp_path, client_ca=authority.path, require_client_cert=True) as relay:
            assert "--client-cert" in await relay.guest("bare").verdict()
            await until(lambda: said(caplog, "client.refused"), "the relay says so")
            assert "only clients with a certificate" in said(caplog, "client.refused")[0]
            await relay.guest(**shows(authority.issue("any"))).here()

    run(main())


def test_bad_certificates(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The relay's log says what is wrong, the client where to look; it goes on trying, and is in with a good one."""
    authority = Authority(tmp_path)
    bad = bad_ones(authority, tmp_path)
    bad["long"] = (authority.issue("long", padding=120_000), "excessive message size")
    good = authority.issue("good")

    async def main() -> None:
        async with house(tmp_path, client_ca=authority.path) as relay:
            for name, (pair, why) in bad.items():
                caplog.clear()
                guest = relay.guest(name.lower().replace(" ", "-"), **shows(pair))
                await until(lambda: said(caplog, "tunnel.retry"), f"{name} is refused")
                assert str(pair[0]) in said(caplog, "tunnel.retry")[0], name
                assert why in said(caplog, "client.refused")[0], name
                await guest.close()
            pair = bad["expired"][0]
            guest = relay.guest("renewed", **shows(pair))
            await until(lambda: len(said(caplog, "tunnel.retry")) > 1, "it tries again")
            for old, new in zip(pair, good, strict=True):
                shutil.copyfile(new, old)
            await guest.here()

    run(main())


@pytest.mark.parametrize("shown", [True, False])
def test_a_relay_that_says_in_tls_what_is_wrong(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, shown: bool
) -> None:
    """Ours cannot; others send an alert, which comes when the client holds its own handshake for done."""
    authority = Authority(tmp_path)
    pair = tmp_path / "other.crt", tmp_path / "other.key"
    make_identity(*pair)
    context = server_context(load_identity(*pair), authority.path)
    context.verify_mode = ssl.CERT_REQUIRED
    mine = shows(bad_ones(authority, tmp_path)["expired"][0]) if shown else {}

    def answer(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock, contextlib.suppress(ssl.SSLError):
            context.wrap_socket(sock, server_side=True).close()

    async def main() -> None:
        async with house(tmp_path) as relay:
            with socket.create_server((LOCALHOST, 0)) as listener:
                listener.settimeout(5)
                answered = asyncio.ensure_future(asyncio.to_thread(answer, listener))
                pins = (file_pin(pair[0]),)
                guest = relay.guest(port=listener.getsockname()[1], pins=pins, **mine)
                await until(lambda: said(caplog, "tunnel.retry"), "it is refused")
                await answered
                await guest.close()
            told = said(caplog, "tunnel.retry")[0]
            assert (str(tmp_path / "expired.crt") in told) is shown

    run(main())


# --- the relay's key changes -------------------------------------------------------------------------------------------


def test_a_change_of_the_key(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A client that is here and one that is away have heard of the next key; one that has not is told what to do."""

    async def main() -> None:
        async with house(tmp_path) as relay:
            first = load_identity(*relay.pair)
            guest, away, deaf = relay.guest("here"), relay.guest("away"), relay.guest("deaf")
            for one in (guest, away, deaf):
                await one.here()
                assert one.told() == [], "it knows nothing that is not in its token"
            await deaf.close()
            local = await guest.visit()
            following = keys.prepare(relay.pair)
            both = pin_texts([first.pin, following.pin])
            await until(lambda: guest.told() == away.told() == both, "they were told", 3)
            assert Token.parse(relay.server.token()).pins == (first.pin, following.pin)
            late = relay.guest("late")
            await late.here()
            assert late.told() == both, "WELCOME says so too"
            for one in (away, late):
                await one.close()
            moving = asyncio.ensure_future(chatter(local, 0.2))
            assert keys.switch(relay.pair).pin == following.pin
            await until(lambda: guest.told() == both[1:], "it was told of the end", 3)
            assert relay.server.pins == (following.pin,)
            assert await moving > 1, "live streams go on"
            assert len(guest.ports) == 1 and not said(caplog, "tunnel.retry")
            for name in ("away", "late"):
                again = relay.guest(name)
                await again.here()
                assert again.told() == both[1:]
            told = await relay.guest("deaf").verdict()
            assert "does not match the token" in told and "fastrelay token show" in told
            await relay.guest("deaf", relay.server.token()).here()
            (await guest.visit()).close()
            local.close()

    run(main())


async def chatter(local: Local, seconds: float) -> int:
    """Questions and answers on one stream."""
    asked, end = 0, asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < end:
        await local.send(b"x" * 100_000)
        assert await local.read(100_000) == b"x" * 100_000
        asked += 1
    return asked


def test_a_handshake_that_began_with_the_old_key(run: Run, tmp_path: Path) -> None:
    """TLS was made with the old certificate, HELLO comes when the new one is there: the binding is the old one's."""

    async def main() -> None:
        async with house(tmp_path) as relay:
            keys.prepare(relay.pair)
            seen = relay.server.on_connected

            def change(link: Any) -> Any:
                relay.server.on_connected = seen  # type: ignore[method-assign]
                keys.switch(relay.pair)
                assert relay.server._shown is not None
                relay.server._shown.look()
                assert relay.server._shown.look() or relay.server._shown.look()
                return seen(link)

            relay.server.on_connected = change  # type: ignore[method-assign]
            guest = relay.guest()
            await guest.here()
            assert guest.told() == pin_texts(relay.server.pins)

    run(main())


@one_loop
def test_an_old_state_directory_is_not_the_relay_any_more(run: Run, tmp_path: Path) -> None:
    """Nor is who has stolen the old key; the sentence says how to go back to the token."""

    async def main() -> None:
        async with house(tmp_path) as relay:
            shutil.copytree(relay.state, tmp_path / "old")
            keys.prepare(relay.pair)
            guest = relay.guest()
            await guest.here()
            keys.switch(relay.pair)
            await until(lambda: len(guest.told()) == 1, "it was told", 3)
            await guest.close()
            await relay.server.close()
            shutil.rmtree(relay.state)
            (tmp_path / "old").rename(relay.state)
            relay.start()
            told = await relay.guest().verdict()
            kept = next(guest.state.glob("*.pins"))
            assert "has said of its keys" in told and str(kept) in told
            kept.unlink()
            await relay.guest().here()

    run(main())


@one_loop
def test_a_thief_of_the_key_teaches_nothing(run: Run, tmp_path: Path) -> None:
    """He has the key and no token: TLS is made, the proof is not, and what he says of pins is not kept."""

    async def main() -> None:
        async with house(tmp_path / "real") as relay, house(tmp_path / "thief") as thief:
            await thief.server.close()
            for name in ("relay.crt", "relay.key"):
                shutil.copyfile(relay.state / name, thief.state / name)
            keys.prepare(thief.pair)
            thief.start()
            await thief.keep(Key.made(Token(Token.parse(relay.token).key_id, bytes(32)), "guess", FIRST_GRANT, 0.0))
            guest = relay.guest(port=thief.port)
            assert "refused" in await guest.verdict()
            assert not guest.told()

    run(main())


@one_loop
def test_a_thief_of_the_key_who_sits_between(run: Run, tmp_path: Path) -> None:
    """He can read a tunnel until the key is changed, and no longer: the proof names the certificate that the client has seen."""

    async def main() -> None:
        async with house(tmp_path) as relay:
            for path in relay.pair:
                shutil.copyfile(path, tmp_path / path.name)
            heard: list[bytes] = []
            thief = await between(load_identity(tmp_path / "relay.crt", tmp_path / "relay.key"), relay.port, heard)
            guest = relay.guest(port=thief.sockets[0].getsockname()[1])
            await guest.here()
            (await guest.visit()).close()
            assert any(b"hello" in data for data in heard), "it all went through his hands"
            keys.prepare(relay.pair)
            await until(lambda: len(relay.server.pins) == 2, "the relay has taken note", 3)
            await guest.close()
            shutil.rmtree(guest.state)  # so that it goes by its token
            keys.switch(relay.pair)
            await until(lambda: len(relay.server.pins) == 1, "the relay has taken note", 3)
            told = await relay.guest(port=thief.sockets[0].getsockname()[1]).verdict()
            assert "something between the two reads the tunnel" in told
            thief.close()
            await thief.wait_closed()

    run(main())


async def between(stolen: Identity, port: int, heard: list[bytes]) -> asyncio.Server:
    """Ends TLS with a stolen key, and goes on to the relay with what it hears."""

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                heard.append(data)
                writer.write(data)
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(LOCALHOST, port, ssl=client_context(True), server_hostname="relay")
        await asyncio.gather(pipe(reader, there[1]), pipe(there[0], writer))

    return await asyncio.start_server(accept, LOCALHOST, 0, ssl=server_context(stolen))


@one_loop
def test_a_new_token_text_counts_again(run: Run, tmp_path: Path) -> None:
    """What was learned belongs to the token's text: another text of the same token is not bound by it."""

    async def main() -> None:
        async with house(tmp_path) as relay:
            guest = relay.guest()
            await guest.here()
            keys.prepare(relay.pair)
            await until(lambda: len(guest.told()) == 2, "it was told", 3)
            await guest.close()
            wrong = Token.parse(relay.token)
            wrong = Token(wrong.key_id, wrong.secret, (b"w" * 32,))
            assert "does not match the token" in await relay.guest(token=wrong.text()).verdict()

    run(main())


@one_loop
def test_a_disk_that_is_full(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with house(tmp_path) as relay:
            guest = relay.guest()
            await guest.here()

            def full(*_: object) -> None:
                raise OSError(28, "No space left on device")

            monkeypatch.setattr(guest.client._trust._state, "save_pins", full)
            keys.prepare(relay.pair)
            await until(lambda: said(caplog, "state.not_saved"), "it says so", 3)
            assert "No space left" in said(caplog, "state.not_saved")[0]
            (await guest.visit()).close()

    run(main())
