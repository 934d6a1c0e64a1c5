"""Invariant: whatever a peer sends, only ProtocolError leaves a session; credit is never negative, the pool is exact to the byte, what is kept
of half frames is bounded, and nothing is called on an outlet after its end. In both roles, with local ends that accept, send, end, reset,
stop, hold and vanish at any moment.
"""

from __future__ import annotations

from random import Random

from fastrelay.errors import Code
from fastrelay.mux.stream import Recv, Send, Stream
from fastrelay.wire import HEADER_SIZE, MAX_CONTROL, Settings
from tests.fuzz.fuzzer import Fuzzer
from tests.fuzz.mutate import Peer, chunks, mutate
from tests.support.pair import Clock, Side, refusal


class Fuzz(Fuzzer):
    """One session after the other, each until it is refused, lost or silent."""

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self._begin()

    def _begin(self) -> None:
        random = self.random
        self.sessions += 1
        self.dialer = self.sessions % 2 == 0
        settings = Settings(
            max_data=random.choice((16_384, 1_048_576)),
            early=random.choice((0, 1000, 65_536)),
            max_streams=random.choice((1, 4, 65_535)),
        )
        self.side = Side(Clock(), dialer=self.dialer, ours=settings, pool=random.choice((0, 300_000, 1 << 40)))
        self.peer = Peer(random, dialer=not self.dialer, early=settings.early)
        self.harm = random.choice((0.02, 0.2, *(1.0,) * 60))  # some live long, most see much
        self.broken = False

    def step(self) -> None:
        """A sequence of frames, some of it broken, between things that happen here."""
        random, side = self.random, self.side
        for _ in range(random.randint(0, 3)):
            self._act()
        sequence = [self.peer.frame() for _ in range(random.choice((1, 2, 3, 5, 10)))]
        if random.random() < self.harm:
            self.mutated += mutate(random, sequence)
            self.broken = True
        self.count += len(sequence)
        code = refusal(lambda: self._feed(b"".join(sequence)))
        if code is not None:
            assert self.broken, "a peer that did nothing wrong was refused"
            self._end(code.name)
            return
        side.check()
        self.peer.told(side.sent())
        side.clock.now += random.choice((0.001, 0.01, 0.1, 1, 16))
        if side.session.tick(side.clock.now) is None:
            self._end("silence")
        elif random.random() < 0.002:
            self._end("lost")

    def _feed(self, raw: bytes) -> None:
        for chunk in chunks(self.random, raw):
            self.side.feed(chunk)
            assert len(self.side.decoder._carry) < HEADER_SIZE + MAX_CONTROL

    def _end(self, why: str) -> None:
        self.ended(why)
        side = self.side
        side.check()
        alive = [tap for tap in side.taps.values() if tap.stream is not None and tap.stream.outlet is tap]
        alive = [tap for tap in alive if tap.stream is not None and not tap.stream.ended]
        side.lose()
        assert all(tap.lost for tap in alive)
        if self.random.random() < 0.5:
            for tap in side.taps.values():
                tap.release()
        side.detach_all()
        side.check()
        assert side.pool.used == 0, "something was borrowed and never given back"
        self._begin()

    def _stream(self) -> Stream | None:
        """A stream that a local end has in its hands."""
        taps = [self.side.taps.get(number) for number in list(self.side.session.streams)[-12:]]
        held = [tap.stream for tap in taps if tap is not None and tap.stream is not None and tap.stream.outlet is tap]
        return self.random.choice(held) if held else None

    def _act(self) -> None:
        """Something that a role, a socket or the tunnel's writer does."""
        random, side = self.random, self.side
        what = random.randrange(12)
        stream = self._stream()
        if what == 0:
            side.open(held=random.random() < 0.3)
        elif what == 1:
            side.accepts, side.holds = random.random() < 0.7, random.random() < 0.3
        elif what == 2:
            side.session.flush()
        elif what == 3 and side.taps:
            tap = side.taps[random.choice(list(side.taps))]
            tap.release(random.choice((1, 1000, 100_000)))
        elif what == 4 and random.random() < 0.02:
            side.session.goaway(Code.SHUTDOWN, "going")
        elif stream is None:
            return
        elif what == 5 and stream.send is Send.PENDING:
            stream.accept()
        elif what in (6, 7) and stream.room():
            side.send(stream, bytes(random.randint(1, stream.room())))
        elif what == 8:
            stream.fin()
        elif what == 9:
            stream.reset(random.choice(list(Code)))
        elif what == 10 and stream.recv is not Recv.PENDING:
            stream.stop()
        elif what == 11:
            stream.detach()
