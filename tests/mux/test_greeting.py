"""The handshake between a client and a relay in memory: four frames in order, nothing else, and then the session."""

from __future__ import annotations

from random import Random

import pytest

from fastrelay import wire
from fastrelay.auth import ClientLogin, RelayLogin, Token, Verifier
from fastrelay.errors import Code, ProtocolError, RefusedError
from fastrelay.mux.decoder import Decoder
from fastrelay.mux.greeting import ClientGreeting, Greeting, RelayGreeting
from fastrelay.wire import Kind, Settings
from tests.support import pair
from tests.support.pair import frames, refusal

TOKEN = Token("k3yID_-0", bytes(range(32)))
OTHER = Token("k3yID_-0", bytes(32))
CLIENT = Settings(max_streams=11)
RELAY = Settings(max_streams=22)


class Talk:
    """Both sides of a handshake. `log` has what each was told at its end."""

    def __init__(self, *, token: Token = TOKEN, verifier: Verifier | None = None, admit: Code | None = None) -> None:
        self.to_relay = bytearray()
        self.to_client = bytearray()
        self.log: list[object] = []
        self.later: list[tuple[str, int, int]] = []
        known = verifier or Verifier.of(TOKEN)
        self.client_decoder = Decoder({})
        self.relay_decoder = Decoder({})
        self.client = ClientGreeting(
            self.client_decoder,
            ClientLogin(token, "home", "inst-1", None, b"c" * 32, CLIENT, "test/1"),
            self.to_relay.extend,
            self._welcomed,
        )
        self.relay = RelayGreeting(
            self.relay_decoder,
            RelayLogin({known.key_id: known}.get, b"seed", None, b"s" * 32, RELAY, "test/2"),
            self.to_client.extend,
            self._admit,
            self._done,
        )
        self.refusal = admit

    def _admit(self, auth: wire.Auth, theirs: Settings) -> tuple[str, str]:
        if self.refusal is not None:
            raise ProtocolError(self.refusal, "no")
        self.log.append((auth.name, auth.instance, theirs))
        return "session-1", "relay.example"

    def _done(self) -> None:
        self._take_over(self.relay_decoder, "relay")

    def _welcomed(self, welcome: wire.Welcome, theirs: Settings) -> None:
        self.log.append((welcome.session, welcome.host, theirs))
        self._take_over(self.client_decoder, "client")

    def _take_over(self, decoder: Decoder, who: str) -> None:
        """What a session does when it begins."""

        def stray(stream: int) -> None:
            self.later.append((who, Kind.DATA, stream))

        decoder.hand_to(lambda kind, stream, _: self.later.append((who, kind, stream)), stray, stray, wire.MAX_DATA)

    def run(self, cuts: Random | None = None) -> list[tuple[str, int]]:
        """All of it, in chunks of random sizes; the frames that were sent, in order."""
        self.client.start()
        sent: list[tuple[str, int]] = []
        while self.to_relay or self.to_client:
            for queue, greeting, who in ((self.to_relay, self.relay, "client"), (self.to_client, self.client, "relay")):
                sent += [(who, frame.kind) for frame in frames(queue)]
                raw = bytes(queue)
                queue.clear()
                while raw:
                    size = cuts.randint(1, 9) if cuts else len(raw)
                    greeting.feed(memoryview(raw[:size]), 0.0)
                    raw = raw[size:]
        return sent


ORDER = [("client", Kind.HELLO), ("relay", Kind.HELLO), ("client", Kind.AUTH), ("relay", Kind.WELCOME)]


@pytest.mark.parametrize("cuts", [None, Random(1), Random(2)], ids=["whole", "cut", "cut otherwise"])
def test_four_frames_in_order(cuts: Random | None) -> None:
    talk = Talk()
    assert talk.run(cuts) == ORDER
    assert talk.log == [("home", "inst-1", CLIENT), ("session-1", "relay.example", RELAY)]
    assert not talk.later


def test_what_follows_welcome_in_the_same_chunk_is_the_sessions() -> None:
    behind = pair.ping() + pair.open_(2) + pair.data(9, b"x" * 20_000)
    for at in range(0, 400, 7):
        talk = Talk()
        talk.client.start()
        talk.relay.feed(memoryview(bytes(talk.to_relay)), 0.0)
        talk.to_relay.clear()
        talk.client.feed(memoryview(bytes(talk.to_client)), 0.0)
        talk.to_client.clear()
        talk.relay.feed(memoryview(bytes(talk.to_relay)), 0.0)
        raw = bytes(talk.to_client) + behind
        for piece in filter(None, (raw[:at], raw[at:])):
            talk.client.feed(memoryview(piece), 0.0)
        assert talk.later == [("client", Kind.PING, 0), ("client", Kind.OPEN, 2), ("client", Kind.DATA, 9)]


class Untouched:
    """A login that must not be asked: what came was not due."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"{name} was asked about a frame that was not due")


def at_step(step: int) -> tuple[Greeting, Kind]:
    """A greeting that has come so far, its login taken away, and the kind that is due."""
    talk = Talk()
    talk.client.start()
    relay, client = talk.relay, talk.client
    if step >= 1:
        relay.feed(memoryview(bytes(talk.to_relay)), 0.0)
        talk.to_relay.clear()
    if step == 3:
        client.feed(memoryview(bytes(talk.to_client)), 0.0)
    greeting, due = [(relay, Kind.HELLO), (client, Kind.HELLO), (relay, Kind.AUTH), (client, Kind.WELCOME)][step]
    greeting._login = Untouched()  # type: ignore[attr-defined]
    return greeting, due


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("payload", [b"\xff\0[", b"{}", b""], ids=["rubbish", "{}", "empty"])
def test_nothing_else_is_even_parsed(step: int, payload: bytes) -> None:
    for kind in (*Kind, 0x80, 0xFF):
        if kind == Kind.GOAWAY:
            continue
        row = wire.SIZES.get(kind, (0, wire.MAX_CONTROL, False))
        raw = wire.frame(kind, int(row[2] or kind < Kind.TRUNC), payload.ljust(row[0], b"\xff")[: row[1]])
        greeting, due = at_step(step)
        if kind != due:
            assert refusal(lambda: greeting.feed(memoryview(raw), 0.0)) is Code.PROTOCOL  # noqa: B023
        else:
            with pytest.raises(AssertionError, match="not due"):
                greeting.feed(memoryview(raw), 0.0)


@pytest.mark.parametrize("step", range(4))
def test_a_refusal_is_not_an_error_of_the_other_side(step: int) -> None:
    greeting, _ = at_step(step)
    with pytest.raises(RefusedError, match="NAME_TAKEN: another one") as caught:
        greeting.feed(memoryview(pair.goaway(Code.NAME_TAKEN, "another one")), 0.0)
    assert caught.value.code is Code.NAME_TAKEN


def test_a_stranger_cannot_make_anybody_keep_much() -> None:
    for kind, size in ((Kind.DATA, wire.MIN_MAX_DATA), (Kind.HELLO, wire.MAX_CONTROL)):
        greeting, _ = at_step(0)
        raw = wire.HEADER.pack(kind << 24 | size + 1, int(kind is Kind.DATA))
        assert refusal(lambda: greeting.feed(memoryview(raw), 0.0)) is Code.FRAME_SIZE  # noqa: B023


@pytest.mark.parametrize("token", [OTHER, Token("unknown0", bytes(32))], ids=["wrong secret", "unknown id"])
def test_a_wrong_token_is_not_admitted(token: Token) -> None:
    talk = Talk(token=token)
    assert refusal(talk.run) is Code.UNAUTHORIZED
    assert not talk.log and not talk.later and not talk.to_client


def test_a_relay_that_does_not_know_the_token_is_not_believed() -> None:
    """It lets the client in with the stored key, but has made up the server key."""
    real = Verifier.of(TOKEN)
    talk = Talk(verifier=Verifier(real.key_id, real.stored_key, bytes(32)))
    assert refusal(talk.run) is Code.UNAUTHORIZED
    assert talk.log == [("home", "inst-1", CLIENT)]
    assert not talk.later


def test_who_is_not_admitted_gets_no_welcome() -> None:
    talk = Talk(admit=Code.NAME_TAKEN)
    assert refusal(talk.run) is Code.NAME_TAKEN
    assert not talk.to_client and not talk.later


def test_the_base_is_no_greeting() -> None:
    greeting = Greeting(Decoder({}), bytearray().extend)
    with pytest.raises(NotImplementedError):
        greeting.feed(memoryview(wire.frame(Kind.HELLO, 0)), 0.0)
