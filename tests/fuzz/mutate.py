"""Frames that a peer might send, and frames that none would: a plausible sequence, and what is done to it.

A `Peer` knows roughly what is going on, so that most of what it says is allowed and the session lives long enough to be interesting. `mutate`
then breaks some of it, with the structure of frames in mind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from fastrelay import wire
from fastrelay.auth import pin_texts
from fastrelay.errors import Code
from fastrelay.wire import Kind
from tests.support import pair

ZEROS = bytes(1 << 17)
NUMBERS = (0, 1, 2, 255, 256, 16_383, 16_384, 65_535, 65_536, 262_144, 2**31, 2**32 - 1)
OFFSETS = (*NUMBERS, 2**62 - 1, 2**62, 2**62 + 1, 2**63, 2**64 - 1)
SIZES = (0, 1, 2, 7, 8, 9, 100, 4096, 16_384, 40_000)
UNKNOWN = [kind for kind in range(wire.OPTIONAL, 0x100) if kind not in wire.SIZES]
"""Optional kinds that nobody knows."""


@dataclass
class Half:
    """A stream as the peer knows it: what it may still send, and what it has heard."""

    mine: bool
    limit: int
    sends: bool
    accepted: bool = False
    asked: bool = False  # STOP has come, TRUNC is owed
    sent: int = 0
    heard: int = 0
    told: int = 65_536  # the limit that the session was given


class Peer:
    """The other side of a session, with a mind of its own but no malice: what it says is allowed, most of the time."""

    def __init__(self, random: Random, *, dialer: bool, early: int = wire.EARLY) -> None:
        self.random = random
        self.early = early
        self.next_id = 1 if dialer else 2
        self.streams: dict[int, Half] = {}
        self.refused: list[int] = []  # streams that the session has reset: RESET is owed
        self.services = 0
        says: dict[Callable[[], bytes], int] = {
            self._open: 4,
            self._data: 30,
            self._fin: 3,
            self._window: 8,
            self._accept: 5,
            self._reset: 1,
            self._stop: 2,
            self._trunc: 3,
            self._tunnel: 3,
        }
        if dialer:
            says[self._expose] = 1
        else:
            says[self._pins] = 1
        self._says, self._weights = list(says), list(says.values())

    def told(self, frames: list[pair.Frame]) -> None:
        """What the session under test wrote, and what is owed for it."""
        for kind, number, payload in frames:
            if kind == Kind.OPEN:
                self.streams[number] = Half(mine=False, limit=wire.unpack_open(payload).limit, sends=False)
            stream = self.streams.get(number)
            if stream is None:
                continue
            if kind in (Kind.ACCEPT, Kind.WINDOW):
                stream.limit = max(stream.limit, wire.LIMIT.unpack_from(payload)[0])
            elif kind in (Kind.DATA, Kind.FIN):
                stream.heard += len(payload)
            elif kind == Kind.STOP and stream.sends:
                stream.asked = True
            elif kind == Kind.RESET:
                del self.streams[number]
                self.refused.append(number)

    def frame(self) -> bytes:
        if self.refused and self.random.random() < 0.5:
            return pair.reset(self.refused.pop(), Code.CANCEL)
        return self.random.choices(self._says, self._weights)[0]()

    def _pick(self, wanted: Callable[[Half], bool]) -> tuple[int, Half] | None:
        found = [(number, stream) for number, stream in list(self.streams.items())[-12:] if wanted(stream)]
        return self.random.choice(found) if found else None

    def _open(self) -> bytes:
        number = self.next_id
        self.next_id += 2 * self.random.choice((1, 1, 1, 2))
        limit = self.random.choice((0, 1, 1000, 65_536, 262_144))
        self.streams[number] = Half(mine=True, limit=self.early, sends=True, told=limit)
        return pair.open_(number, limit, int(self.random.random() < 0.02))

    def _data(self) -> bytes:
        picked = self._pick(lambda stream: stream.sends and stream.sent < stream.limit)
        if picked is None:
            return self._open()
        number, stream = picked
        size = min(self.random.choice(SIZES), stream.limit - stream.sent, wire.MIN_MAX_DATA)
        stream.sent += size
        return pair.data(number, ZEROS[:size])

    def _fin(self) -> bytes:
        picked = self._pick(lambda stream: stream.sends)
        if picked is None:
            return self._open()
        number, stream = picked
        size = min(self.random.choice((0, 0, 1, 300)), stream.limit - stream.sent)
        stream.sends = False
        return pair.fin(number, ZEROS[: max(size, 0)])

    def _window(self) -> bytes:
        picked = self._pick(lambda stream: True)
        if picked is None:
            return self._tunnel()
        number, stream = picked
        stream.told += self.random.choice((1, 16_384, 65_536))
        return pair.window(number, stream.told, self.random.choice((0, stream.heard)))

    def _accept(self) -> bytes:
        picked = self._pick(lambda stream: not stream.mine and not stream.accepted)
        if picked is None:
            return self._data()
        number, stream = picked
        stream.sends = stream.accepted = True
        stream.told = self.random.choice((0, 1000, 65_536, 262_144))
        return pair.accept(number, stream.told)

    def _reset(self) -> bytes:
        picked = self._pick(lambda stream: True)
        if picked is None:
            return self._tunnel()
        del self.streams[picked[0]]
        return pair.reset(picked[0], self.random.choice((*Code, 4711)))

    def _stop(self) -> bytes:
        picked = self._pick(lambda stream: stream.heard > 0)
        return pair.stop(picked[0]) if picked else self._data()

    def _trunc(self) -> bytes:
        unasked = self.random.random() < 0.1
        picked = self._pick(lambda stream: stream.sends and (stream.asked or unasked))
        if picked is None:
            return self._tunnel()
        picked[1].sends = False
        return pair.trunc(picked[0])

    def _tunnel(self) -> bytes:
        random = self.random
        return random.choice(
            (
                pair.ping(random.randbytes(8)),
                pair.pong(random.randbytes(8)),
                pair.pong(bytes(8)),
                wire.frame(random.choice(UNKNOWN), random.randint(0, 3), random.randbytes(random.randint(0, 20))),
                pair.goaway(Code.SHUTDOWN, "going") if random.random() < 0.02 else pair.ping(),
            )
        )

    def _pins(self) -> bytes:
        if self.random.random() < 0.8:  # as often as a session bears it
            return self._data()
        pins = [self.random.randbytes(32) for _ in range(self.random.randint(0, 2))]
        return wire.frame(Kind.PINS, 0, wire.pack_json(wire.Pins(pins=pin_texts(pins))))

    def _expose(self) -> bytes:
        self.services += 1
        return pair.expose(self.services)


def mutate(random: Random, frames: list[bytes]) -> int:
    """Break a sequence in place, in one to three ways; returns how many frames were touched."""
    touched = 0
    for _ in range(random.randint(1, 3)):
        touched += random.choice(WAYS)(random, frames)
    return touched


def _at(random: Random, frames: list[bytes]) -> int:
    return random.randrange(len(frames))


def _header(frame: bytes) -> tuple[int, int]:
    """First word and stream, also of a frame that was broken before."""
    word, stream = wire.HEADER.unpack_from(frame.ljust(8, b"\0"))
    return word, stream


def _flip(random: Random, frames: list[bytes]) -> int:
    """Bits, mostly of the header."""
    at = _at(random, frames)
    raw = bytearray(frames[at])
    for _ in range(random.choice((1, 1, 2, 8))):
        raw[random.randrange(min(len(raw), random.choice((8, 24, 5000))))] ^= 1 << random.randrange(8)
    frames[at] = bytes(raw)
    return 1


def _length(random: Random, frames: list[bytes]) -> int:
    """A length that is wrong by one, or altogether; or a payload that is, and says so."""
    at = _at(random, frames)
    word, stream = _header(frames[at])
    payload = frames[at][8:]
    length = max(0, (word & 0xFFFFFF) + random.choice((-1, 1, -8, 8, random.choice(NUMBERS)))) & 0xFFFFFF
    if random.random() < 0.7:
        payload = (payload + bytes(8))[:length]
        length = len(payload)
    frames[at] = wire.HEADER.pack(word & 0xFF000000 | length, stream) + payload
    return 1


def _stream(random: Random, frames: list[bytes]) -> int:
    """Another stream: the other parity, a neighbour, none."""
    at = _at(random, frames)
    word, stream = _header(frames[at])
    stream = random.choice((stream ^ 1, stream + 2, stream - 2, random.choice(NUMBERS))) & 0xFFFFFFFF
    frames[at] = wire.HEADER.pack(word, stream) + frames[at][8:]
    return 1


def _kind(random: Random, frames: list[bytes]) -> int:
    at = _at(random, frames)
    frames[at] = bytes((random.choice((*Kind, 0x0B, 0x18, 0x7F, 0x80, 0xFF)),)) + frames[at][1:]
    return 1


def _numbers(random: Random, frames: list[bytes]) -> int:
    """An edge of the range where a limit, an offset or a code may be."""
    at = _at(random, frames)
    raw = frames[at]
    width = random.choice((4, 8))
    place = 8 + random.choice((0, 1, 8))
    if len(raw) < place + width:
        return 0
    number = random.choice(OFFSETS) % (1 << 8 * width)
    frames[at] = raw[:place] + number.to_bytes(width, "big") + raw[place + width :]
    return 1


def _duplicate(random: Random, frames: list[bytes]) -> int:
    at = _at(random, frames)
    frames.insert(random.randint(at, len(frames)), frames[at])
    return 1


def _drop(random: Random, frames: list[bytes]) -> int:
    if len(frames) > 1:
        del frames[_at(random, frames)]
        return 1
    return 0


def _swap(random: Random, frames: list[bytes]) -> int:
    one, two = _at(random, frames), _at(random, frames)
    frames[one], frames[two] = frames[two], frames[one]
    return 2


def _truncate(random: Random, frames: list[bytes]) -> int:
    """Half a frame, followed by others."""
    at = _at(random, frames)
    frames[at] = frames[at][: random.randint(1, len(frames[at]))]
    return 1


def _splice(random: Random, frames: list[bytes]) -> int:
    """The head of one frame, the tail of another."""
    one, two = _at(random, frames), _at(random, frames)
    cut = random.randint(1, 12)
    frames[one] = frames[one][:cut] + frames[two][cut:]
    return 1


def _noise(random: Random, frames: list[bytes]) -> int:
    frames.insert(_at(random, frames), random.randbytes(random.choice((1, 8, 9, 30))))
    return 1


def _valid(random: Random, frames: list[bytes]) -> int:
    """A frame that is well formed, at a place where it has no business."""
    number = random.randint(0, 12)
    kind = random.choice(list(Kind))
    smallest, largest, of_stream = wire.SIZES.get(kind, (0, 40, True))
    size = min(largest, smallest + random.choice((0, 0, 0, 1, 20)))
    frames.insert(_at(random, frames), wire.frame(kind, number if of_stream else 0, random.randbytes(size)))
    return 1


WAYS: tuple[Callable[[Random, list[bytes]], int], ...] = (
    *(_flip, _length, _stream, _kind, _numbers, _truncate, _splice, _noise, _valid),
    *(_numbers, _duplicate, _drop, _swap) * 4,  # these leave the session alive more often
)


def chunks(random: Random, raw: bytes) -> list[bytes]:
    """The bytes as a transport might hand them over: whole, in a few pieces, or one at a time."""
    if not raw:
        return []
    size = random.choice((len(raw), len(raw), 4096, 100, 9, 1))
    if size >= len(raw):
        return [raw]
    size = max(size, len(raw) // 200)
    return [raw[at : at + size] for at in range(0, len(raw), size)]
