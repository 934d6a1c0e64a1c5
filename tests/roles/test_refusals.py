"""Why a connection ended, in words: each of these is another thing to do for whoever reads it."""

from __future__ import annotations

import errno

import pytest

from fastrelay.errors import Code, ProtocolError
from fastrelay.roles.refusals import explain


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TimeoutError(), "handshake took too long"),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), "nothing was acknowledged"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "closed"),
        (None, "closed"),
        (ConnectionAbortedError("nothing heard for 45 s"), "nothing heard"),
        (ProtocolError(Code.CALM, "too much of one thing"), "too much"),
        (ProtocolError(Code.PROTOCOL, "frame of unknown kind"), "does not speak the fastrelay protocol"),
    ],
)
def test_why_a_session_ended(error: Exception | None, words: str) -> None:
    assert words in explain(error, b"")
