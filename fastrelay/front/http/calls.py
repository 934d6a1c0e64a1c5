"""What a call through a client asks for: `/client/ID/SCHEME/HOST…` and X-PROXY-DESTINATION. Pure.

A path is passed on byte for byte: what its dots and percent signs mean is the target's business, and nothing here looks for them.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from fastrelay.config import NAME, join_host, parse_host
from fastrelay.errors import MessageError, UsageError
from fastrelay.front.http.messages import Fields

CLIENT: Final = b"/client/"
REQUEST: Final = b"/request"
DESTINATION: Final = b"x-proxy-destination"

CLIENT_TIME: Final = 15.0
"""Seconds that a call through a named client has until the head of its answer, unless it says otherwise."""
MOST_TIME: Final = 3600.0

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_AUTHORITY: Final = re.compile(rb"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_.-]{1,253})(?::([0-9]{1,5}))?")
_URL: Final = re.compile(rb"(?i:(https?))://([^/?#]+)((?:[/?][!-\"$-~]*)?)(?:#[!-~]*)?")
_TIME: Final = re.compile(rb"[0-9]{1,4}(?:\.[0-9]{1,3})?")
_RIGHT: Final = "write it like /client/home/http/10.0.0.5:8080/path?query"


class Destination(NamedTuple):
    """Where a call ends: `scheme` is http or https, `host` in the form that sockets take, `authority` what the target gets as Host, `path`
    with its query in origin form.
    """

    scheme: str
    host: str
    port: int
    authority: bytes
    path: bytes

    @property
    def target(self) -> str:
        """What the client dials."""
        return join_host(self.host, self.port)


class ClientCall(NamedTuple):
    """A call through the client of this name; `time` in seconds until the head of the answer must be there."""

    client: str
    destination: Destination
    time: float


def client_call(target: bytes) -> ClientCall:
    """What a request for `/client/…` asks for. Raises MessageError."""
    path, mark, query = target.partition(b"?")
    words = path.removeprefix(CLIENT).split(b"/", 3)
    if len(words) < 3:
        raise MessageError(400, f"The path names no client, scheme and host; {_RIGHT}.")
    name = words[0].decode("latin-1")
    if not NAME.fullmatch(name):
        raise MessageError(400, f"The path names no client, which has 1 to 63 of a-z 0-9 . _ -; {_RIGHT}.")
    if words[1] not in (b"http", b"https"):
        raise MessageError(400, f"The scheme in the path is not http or https; {_RIGHT}.")
    query, time = _take_time(query)
    rest = b"/" + (words[3] if len(words) > 3 else b"") + (b"?" + query if mark and (query or not time) else b"")
    try:
        destination = _destination(words[1].decode(), words[2], rest)
    except ValueError as why:
        raise MessageError(400, f"The path names no host to reach: {why}; {_RIGHT}.") from None
    return ClientCall(name, destination, time or CLIENT_TIME)


def destination(fields: Fields) -> Destination:
    """Where X-PROXY-DESTINATION leads. Raises MessageError, with the status and texts of wsp."""
    found = fields.values(DESTINATION)
    if not found:
        raise MessageError(526, "Missing X-PROXY-DESTINATION header")
    url = _URL.fullmatch(found[0]) if len(found) == 1 else None
    try:
        if url is None:
            raise ValueError
        path = url[3]
        return _destination(url[1].decode().lower(), url[2], path if path.startswith(b"/") else b"/" + path)
    except ValueError:
        raise MessageError(526, "Unable to parse X-PROXY-DESTINATION header") from None


def _destination(scheme: str, authority: bytes, path: bytes) -> Destination:
    """Raises ValueError with half a sentence that says why not."""
    found = _AUTHORITY.fullmatch(authority)
    port = int(found[2]) if found and found[2] else _DEFAULT_PORTS[scheme]
    if found is None:
        raise ValueError("it is HOST or HOST:PORT in ASCII, names of other letters in their xn-- form")
    if not 0 < port < 65_536:
        raise ValueError("a port is from 1 to 65535")
    try:
        host = parse_host(found[1].decode())
    except UsageError:
        raise ValueError("it is not a name or an address") from None
    return Destination(scheme, host, port, authority, path)


def _take_time(query: bytes) -> tuple[bytes, float]:
    """The query without `timeout`, which is the relay's, and its value; 0 where there is none. Raises MessageError."""
    members = query.split(b"&")
    mine = [member for member in members if member.partition(b"=")[0] == b"timeout"]
    if not mine:
        return query, 0.0
    text = mine[0].partition(b"=")[2]
    time = float(text) if len(mine) == 1 and _TIME.fullmatch(text) else 0.0
    if not 0 < time <= MOST_TIME:
        raise MessageError(400, f"timeout is a number of seconds, above 0 and up to {MOST_TIME:g}, and is given once.")
    return b"&".join(member for member in members if member not in mine), time
