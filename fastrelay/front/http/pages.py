"""What a visitor is told when there is no answer of a target: a status, and a page that a person understands. Pure."""

from __future__ import annotations

import html
from http import HTTPStatus
from typing import Final

from fastrelay.errors import Code, MessageError

FAILED: Final = {
    Code.REFUSED: (502, "The service does not run: its machine is connected, and refused the connection."),
    Code.UNREACHABLE: (502, "The service cannot be reached from its machine."),
    Code.DIAL_TIMEOUT: (504, "The service did not answer its machine in time."),
    Code.NO_SERVICE: (502, "The service is not there any more."),
    Code.LIMIT: (503, "The service has as many visitors as it may have: try again in a moment."),
    Code.DENIED: (403, "This may not be reached from here."),
    Code.DIAL_DENIED: (403, "The client that should reach this does not allow it."),
}
"""Why a dial failed, as a status and a sentence."""
_AWAY: Final = (502, "The service's machine has lost its connection.")
_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}


def answer(error: MessageError) -> bytes:
    """A whole response that ends its connection."""
    status, phrase = error.status, _PHRASES.get(error.status, "Error")
    if error.plain:
        kind, body = "text/plain", f"{error.text}\n".encode()
    else:
        kind, body = "text/html", _page(status, phrase, error.text).encode()
    return (
        f"HTTP/1.1 {status} {phrase}\r\nContent-Type: {kind}; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
        f"Cache-Control: no-store\r\n{error.fields}Connection: close\r\n\r\n"
    ).encode() + body


def failed(code: Code) -> MessageError:
    """What is said of a stream that was reset before it answered."""
    return MessageError(*FAILED.get(code, _AWAY))


def _page(status: int, phrase: str, text: str) -> str:
    return (
        f"<!doctype html><meta charset=utf-8><title>{status} {phrase}</title>"
        f'<body style="font: 1.1em system-ui, sans-serif; margin: 4em auto; max-width: 36em">'
        f"<h1>{phrase}</h1><p>{html.escape(text)}<p style=color:gray>{status}, from the relay\n"
    )
