"""Heads of HTTP requests, as far as a door looks at them before anybody is greeted: are they whole, and of whom are they. Pure."""

from __future__ import annotations

import ipaddress
import re

from fastrelay.wire import MAX_HEAD, WEBSOCKET

END = b"\r\n\r\n"

_TUNNEL = re.compile(rb"\r\nSec-WebSocket-Protocol:[^\r\n]*" + re.escape(WEBSOCKET.encode()), re.IGNORECASE)
_FORWARDED = re.compile(rb"\r\nX-Forwarded-For:([^\r\n]*)", re.IGNORECASE)


def head_size(said: bytes | bytearray) -> int:
    """How many bytes must be there, when these are, for a head to be answered: those of a whole one, or one more; and what cannot become
    one any more is answered as it is.
    """
    found = said.find(END)
    if found >= 0:
        return found + len(END)
    hopeless = len(said) > MAX_HEAD or not (said[:1] or b"G").isalpha()
    return len(said) if hopeless else len(said) + 1


def asks_for_tunnel(head: bytes, path: str) -> bool:
    """Whether a whole head asks for a tunnel at `path` (protocol.md 2.1), rightly or not."""
    target = head.split(b" ", 2)[1:2]
    return target == [path.encode()] and _TUNNEL.search(head) is not None


def forwarded_for(head: bytes) -> str | None:
    """The address that the nearest proxy names, in the last X-Forwarded-For of a head. None where it names none."""
    fields = _FORWARDED.findall(head)
    return last_address(fields[-1]) if fields else None


def last_address(field: bytes) -> str | None:
    """The last address in the value of an X-Forwarded-For, None if it is none."""
    text = field.rpartition(b",")[2].strip().decode("latin-1")
    if text.startswith("["):  # some add a port
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None
