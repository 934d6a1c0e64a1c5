"""Payloads that know themselves: byte `i` of stream `s` is byte `i` of an AES-CTR keystream made from `s`.

So a receiver sees at once whether a byte is wrong, from another stream, or from another offset.
"""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

BLOCK = 256 * 1024
_ZEROS = bytes(BLOCK)


class Keystream:
    """The bytes of one stream, in order, once. `offset` counts those that were taken."""

    def __init__(self, seed: object) -> None:
        key = hashlib.sha256(repr(seed).encode()).digest()
        self._cipher = Cipher(algorithms.AES(key[:16]), modes.CTR(key[16:])).encryptor()
        self.offset = 0

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        self.offset += size
        if size <= BLOCK:
            return self._cipher.update(_ZEROS[:size])
        return self._cipher.update(bytes(size))


class Checker:
    """What a receiver got so far; `feed` raises AssertionError at the first byte that is not the next of the stream."""

    def __init__(self, seed: object) -> None:
        self.seed = seed
        self._stream = Keystream(seed)

    @property
    def received(self) -> int:
        return self._stream.offset

    def feed(self, data: bytes) -> None:
        start = self.received
        expected = self._stream.take(len(data))
        if data != expected:
            wrong = next(i for i, pair in enumerate(zip(data, expected, strict=True)) if pair[0] != pair[1])
            raise AssertionError(f"stream {self.seed!r}: byte {start + wrong} is not the byte that was sent")
