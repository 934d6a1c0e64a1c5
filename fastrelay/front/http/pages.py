"""What a visitor is told when there is no answer of a target: a status, and a page that a person understands. Pure."""

from __future__ import annotations

import html
from http import HTTPStatus
from typing import Final

from fastrelay.errors import Code

FAILED: Final = {
    Code.REFUSED: (502, "The service does not run: its machine is connected, and refused the connection."),
    Code.UNREACHABLE: (502, "The service cannot be reached from its machine."),
    Code.DIAL_TIMEOUT: (504, "The service did not answer its machine in time."),
    Code.NO_SERVICE: (502, "The service is not there any more."),
    Code.LIMIT: (503, "The service has as many visitors as it may have: try again in a moment."),
    Code.DENIED: (403, "This may not be reached from here."),
}
"""Why a dial failed, as a status and a sentence."""
_AWAY: Final = (502, "The service's machine has lost its connection.")


def page(status: int, text: str) -> bytes:
    """A whole response that ends its connection."""
    phrase = HTTPStatus(status).phrase
    body = (
        f"<!doctype html><meta charset=utf-8><title>{status} {phrase}</title>"
        f'<body style="font: 1.1em system-ui, sans-serif; margin: 4em auto; max-width: 36em">'
        f"<h1>{phrase}</h1><p>{html.escape(text)}<p style=color:gray>{status}, from the relay\n"
    ).encode()
    return (
        f"HTTP/1.1 {status} {phrase}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    ).encode() + body


def failed(code: Code) -> tuple[int, str]:
    """Status and sentence for a stream that was reset before it answered."""
    return FAILED.get(code, _AWAY)
