"""Invariant: for any bytes, cut in any way, what is read out of WebSocket frames is what the library reads, or both refuse them; only
ProtocolError leaves, and what is kept is less than a head and a control frame.
"""

from __future__ import annotations

from websockets.frames import Frame, Opcode

from fastrelay.net.framing import CLOSE, PING, PONG, TEXT
from tests.fuzz.fuzzer import Fuzzer
from tests.fuzz.mutate import chunks
from tests.net.test_framing import Log, check

_DATA = (Opcode.BINARY, Opcode.BINARY, Opcode.CONT)
_CONTROL = (Opcode.PING, Opcode.PONG)
_PLACES = 14
"""The first bytes of a frame, where its head is."""


class Fuzz(Fuzzer):
    """One sequence of frames after the other, each to a new reader; most of them broken."""

    def step(self) -> None:
        random = self.random
        masked = random.random() < 0.5
        parts = []
        for _ in range(random.choice((1, 2, 5, 20))):
            control = random.random() < 0.2
            size = random.choice((0, 1, 5, 125) if control else (0, 1, 125, 126, 300, 65_535, 65_536))
            opcode = random.choice(_CONTROL if control else _DATA)
            fin = control or random.random() < 0.7
            part = bytearray(Frame(opcode, bytes(size), fin).serialize(mask=masked))
            if random.random() < 0.15:
                self.mutated += 1
                if random.random() < 0.3:
                    del part[random.randrange(len(part)) :]
                else:
                    part[random.randrange(min(len(part), _PLACES))] = random.randrange(256)
            parts.append(bytes(part))
        raw = b"".join(parts)
        whole = Log(masked).read([raw])
        log = Log(masked).read(chunks(random, raw))
        assert log.told == whole.told, raw.hex()
        check(log, raw, masked)
        names = {PING: "a ping", PONG: "a pong", CLOSE: "a close", TEXT: "text"}
        last = names[log.controls[-1][0]] if log.controls else "payload" if log.payload else "nothing"
        self.ended(log.error.name if log.error is not None else last)
        self.sessions += 1
        self.count += len(parts)
