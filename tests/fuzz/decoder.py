"""Invariant: for any bytes, cut in any way, the decoder makes the same calls as the reference that reads frame by frame, or raises the same
ProtocolError; nothing else leaves it, and what it keeps is less than a header and a control frame.
"""

from __future__ import annotations

from fastrelay.errors import Code
from tests.fuzz.fuzzer import Fuzzer
from tests.fuzz.mutate import Peer, chunks, mutate
from tests.mux.test_decoder import Log, joined, reference


class Fuzz(Fuzzer):
    """One sequence after the other, each to a new decoder."""

    def step(self) -> None:
        random = self.random
        peer = Peer(random, dialer=random.random() < 0.5)
        sequence = [peer.frame()[:4104] for _ in range(random.choice((1, 2, 5, 20)))]
        self.mutated += mutate(random, sequence)
        raw = b"".join(sequence)
        log = Log()
        log.feed(chunks(random, raw))
        assert log.events == joined(reference(raw)), raw.hex()
        last = log.events[-1] if log.events else ("", 0, None)
        self.ended(last[2].name if isinstance(last[2], Code) else "a control frame" if last[0][:2] == "0x" else last[0])
        self.sessions += 1
        self.count += len(sequence)
