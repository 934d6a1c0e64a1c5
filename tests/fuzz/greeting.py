"""Invariant: whatever a stranger says instead of a handshake, only ProtocolError leaves; nobody is let in whose frames were changed where the
proof covers them; and a side that has let the other in has heard exactly its two frames.
"""

from __future__ import annotations

from fastrelay import wire
from fastrelay.auth import ClientLogin, RelayLogin, Token, Verifier
from fastrelay.mux.decoder import Decoder
from fastrelay.mux.greeting import ClientGreeting, Greeting, RelayGreeting
from fastrelay.wire import HEADER_SIZE, MAX_CONTROL, MAX_DATA, Auth, Settings, Welcome
from tests.fuzz.fuzzer import Fuzzer
from tests.fuzz.mutate import Peer, chunks, mutate
from tests.fuzz.texts import odd_json
from tests.support.pair import frames, refusal

TOKEN = Token("k3yID_-0", bytes(range(32)))
KNOWN = Verifier.of(TOKEN)
ANY = Verifier("anybody0", cert=bytes(32))
"""Let in by a certificate, which a plaintext tunnel does not show."""


class Fuzz(Fuzzer):
    """One handshake after the other. What one of the two says is broken, and sometimes mixed with frames of a session."""

    def step(self) -> None:
        random = self.random
        self.sessions += 1
        said: dict[str, list[bytes]] = {"client": [], "relay": []}
        done: list[str] = []
        relay_decoder, client_decoder = Decoder({}), Decoder({})

        def over(decoder: Decoder, who: str) -> None:
            """The session would begin: what comes now is not the handshake's."""
            done.append(who)
            decoder.hand_to(lambda *_: None, lambda _: None, lambda _: None, MAX_DATA)

        def admit(auth: Auth, theirs: Settings) -> tuple[str, str]:
            assert (auth.name, auth.instance) == ("home", "inst-1"), "a name that the proof does not cover"
            return "s", ""

        def welcomed(welcome: Welcome, theirs: Settings) -> None:
            over(client_decoder, "client")

        relay = RelayGreeting(
            relay_decoder,
            RelayLogin(
                {KNOWN.key_id: KNOWN}.get,
                b"seed",
                None,
                random.randbytes(32),
                Settings(),
                "fuzz",
                find_cert=lambda _: ANY,
            ),
            said["relay"].append,
            admit,
            lambda: over(relay_decoder, "relay"),
        )
        client = ClientGreeting(
            client_decoder,
            ClientLogin(TOKEN, "home", "inst-1", None, random.randbytes(32), Settings(), "fuzz"),
            said["client"].append,
            welcomed,
        )
        client.start()
        broken = random.choice(("client", "relay"))
        sides: dict[str, tuple[Greeting, Decoder]] = {
            "client": (relay, relay_decoder),
            "relay": (client, client_decoder),
        }

        def talk() -> None:
            while any(said.values()):
                for who, (hears, decoder) in sides.items():
                    sequence, said[who][:] = list(said[who]), []
                    if sequence and who == broken and random.random() < 0.6:
                        sequence = self._break(sequence)
                    self.count += len(sequence)
                    for chunk in chunks(random, b"".join(sequence)):
                        hears.feed(memoryview(chunk), 0.0)
                        assert len(decoder._carry) < HEADER_SIZE + MAX_CONTROL

        code = refusal(talk)
        assert done in ([], ["relay"], ["relay", "client"])
        for left in said.values():
            frames(b"".join(left))
        self.ended(code.name if code is not None else "welcome" if len(done) == 2 else "silence")

    def _break(self, sequence: list[bytes]) -> list[bytes]:
        random = self.random
        if random.random() < 0.3:
            peer = Peer(random, dialer=True)
            sequence.insert(random.randint(0, len(sequence)), peer.frame())
            self.mutated += 1
        head, payload = sequence[0][:HEADER_SIZE], sequence[0][HEADER_SIZE:]
        odd = odd_json(random, payload) if random.random() < 0.3 else None
        if odd is not None:
            sequence[0] = wire.frame(head[0], 0, odd)
            self.mutated += 1
        elif random.random() < 0.3:
            raw = bytearray(sequence[0])  # inside the JSON, where a length still fits
            raw[random.randrange(len(raw))] = random.choice(b'"{}[]:,\\0123456789aA_-\xff')
            sequence[0] = bytes(raw)
            self.mutated += 1
        else:
            self.mutated += mutate(random, sequence)
        return sequence
