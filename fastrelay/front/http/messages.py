"""One direction of an HTTP connection, cut into heads and bodies (RFC 9112). Pure.

httptools (llhttp, strict) alone decides what a message is: it is told where a head ends, and tells where a body does. It is never given more
than one message at a time, so what follows one cannot be read two ways. A head is handed on as fields and written anew by `heads`; a body
is handed on as the bytes that came, chunks and trailers included.

Most visitors and services say the same again: a small head that came before, byte for byte, is what it was found to be then, and the parser is
asked neither about it nor about its body, whose length is known. Where a message begins the parser remembers nothing but whether there may be
one, so it would say the same.

Invariant: what is passed on has been read by the parser before, and a message ends where the parser says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Final, Generic, NamedTuple, TypeVar

import httptools

from fastrelay.errors import MessageError

MOST_HEAD: Final = 16_384
"""Bytes of a head."""
MOST_FIELDS: Final = 100
REPEATED: Final = 1024
"""Bytes of a head that is remembered, and how many heads are: then all are forgotten."""

_KNOWN: Final = (b"connection", b"content-length", b"host", b"te", b"transfer-encoding", b"upgrade")
_FIND: Final = re.compile(rb"(?i)\r\n(%b):([^\r]*)" % b"|".join(_KNOWN))
_WHITE: Final = b" \t"


class Fields:
    """The fields of a head. `raw` are their lines as they came, a CRLF before each and one behind the last.

    llhttp has taken the head before, and is strict: no line is folded, CR and LF stand at its end alone, and nothing between a name and its
    colon. So where a field begins and ends can be seen two ways by nobody.
    """

    __slots__ = ("known", "raw")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.known: dict[bytes, list[bytes]] = {}
        """What a relay asks for in every head, found in one pass: values by names in lower case."""
        known = self.known
        for came, value in _FIND.findall(raw):
            name = came.lower()
            if name in known:
                known[name].append(value.strip(_WHITE))
            else:
                known[name] = [value.strip(_WHITE)]

    @classmethod
    def of(cls, fields: Iterable[tuple[bytes, bytes]]) -> Fields:
        """Those with these names and values."""
        return cls(b"\r\n" + b"".join(b"%b: %b\r\n" % field for field in fields))

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        """(name as it came, value), in order."""
        for line in self.raw.split(b"\r\n")[1:-1]:
            name, _, value = line.partition(b":")
            yield name, value.strip(_WHITE)

    def __len__(self) -> int:
        return self.raw.count(b"\r\n") - 1

    def values(self, name: bytes) -> list[bytes]:
        """The values of all fields called `name` (lower case)."""
        if name in _KNOWN:
            return self.known.get(name, [])
        return [value for field, value in self if field.lower() == name]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fields) and self.raw == other.raw

    def __hash__(self) -> int:
        return hash(self.raw)


_BLANK: Final = b"\r\n\r\n"
_SPACE: Final = 0x20
_REASON: Final = len("HTTP/1.1 200 ")
_NONE: Final = Fields(b"\r\n")
_HOST: Final = re.compile(rb"([a-z0-9_.-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::[0-9]{1,5})?")
_TARGET: Final = re.compile(rb"(?i:https?)://([^/?#]*)([^#]*)")
_PROTOCOL: Final = re.compile(rb"[!-~]{1,64}")


class Request(NamedTuple):
    """`target` is in origin form; `host` the one Host, in lower case; `upgrade` what it asks to be upgraded to, b"" if nothing."""

    method: bytes
    target: bytes
    version: str
    fields: Fields
    host: bytes
    upgrade: bytes
    keep_alive: bool


class Response(NamedTuple):
    """`upgrade` is what a 101 has switched to."""

    status: int
    reason: bytes
    version: str
    fields: Fields
    upgrade: bytes
    keep_alive: bool


def members(fields: Fields, name: bytes) -> list[bytes]:
    """The members of a list field (RFC 9110, 5.6.1), in lower case."""
    found = fields.values(name)
    return [member for part in b",".join(found).lower().split(b",") if (member := part.strip(_WHITE))] if found else []


Head = TypeVar("Head", Request, Response)
Seen = dict[bytes, tuple[Any, bool, int | None]]
"""Heads that came before: what they are, whether a body follows, and its length."""


class _Messages(Generic[Head]):
    """What requests and responses share: the end of a head, then the end of a body."""

    parser: httptools.HttpRequestParser | httptools.HttpResponseParser
    bodiless = False
    _seen: ClassVar[Seen]

    def __init__(self) -> None:
        self.in_body = False
        """Whether what comes next belongs to a body; else it belongs to a head."""
        self.fields = _NONE
        self._raw = b""  # of a head that is not whole
        self._text = b""  # of a whole one, if it may be remembered
        self._known: Head | None = None  # what came before
        self._left: int | None = None  # bytes of a body whose length is known
        self._chunked = False
        self._tail = b""  # of a body in chunks, in which its end may have begun
        self._headed = False
        self._done = False
        self._keep_alive = True  # of the last one that the parser was asked about
        self.renew()

    def renew(self) -> None:
        """Begin anew with the next message, whatever the parser expects of this one."""
        raise NotImplementedError

    def take_head(self, data: bytes | memoryview) -> int:
        """Take bytes of a head, up to its end; `whole` says whether it was reached. Returns how many. Raises MessageError."""
        before = len(self._raw)
        most = MOST_HEAD + 1 - before
        fresh = bytes(data if len(data) <= most else data[:most])
        raw = self._raw + fresh if before else fresh
        end = raw.find(_BLANK, max(0, before - 3)) + len(_BLANK)
        self._headed = False
        if end < len(_BLANK):
            if len(raw) > MOST_HEAD:
                raise MessageError(431, f"The head is longer than {MOST_HEAD} bytes.")
            self._raw = raw
            return len(data)
        head = raw[:end]
        self._raw = b""
        seen = self._seen.get(head) if self._keep_alive and not self.bodiless else None
        if seen is not None:
            self._known, self.in_body, self._left = seen
            self._headed, self._chunked = True, False
            return end - before
        self._known = None
        self._text = head if end <= REPEATED else b""
        self._done = False
        self._feed(head)
        if head[0] <= _SPACE:
            head = head.lstrip(b"\r\n")
        first = head.find(b"\r\n")
        if not self._headed or not self._is_http(head[:first]):
            raise MessageError(
                400, "The head is not one of HTTP."
            )  # but empty lines, or of a protocol that llhttp knows as well
        if head.count(b"\r\n") > MOST_FIELDS + 2:
            raise MessageError(431, f"The head has more than {MOST_FIELDS} fields.")
        self.fields = Fields(head[first:-2])
        self._begin_body()
        return end - before

    @property
    def whole(self) -> bool:
        return self._headed

    @property
    def between(self) -> bool:
        """Whether the last message is over and the next has not begun."""
        return not self.in_body and not self._raw

    @property
    def until_end(self) -> bool:
        """Whether this is a body that ends with its connection."""
        return self.in_body and not self._chunked and self._left is None

    def take_body(self, data: bytes | memoryview) -> int:
        """How many of these bytes are of the body; behind its last one `in_body` is false. Raises MessageError."""
        if not self._chunked:
            size = len(data)
            if self._left is not None:
                size = min(size, self._left)
                self._left -= size
            if self._known is None:
                self._feed(data[:size])
            else:
                self.in_body = bool(self._left)
            return size
        # A body in chunks ends with a blank line, so the parser is given what lies between blank lines, and asked.
        text = self._tail + data
        behind = len(self._tail)
        used = 0
        while self.in_body and used < len(data):
            found = text.find(_BLANK, max(0, used + behind - 3))
            stop = len(data) if found < 0 else found + len(_BLANK) - behind
            self._feed(data[used:stop])
            used = stop
        self._tail = text[-3:] if self.in_body else b""
        return used

    def _remember(self, head: Head) -> None:
        """What the whole head is, if all that follows from it is known and the parser goes on behind its body as it began."""
        if not self._text or self.bodiless or self._chunked or not head.keep_alive or head.upgrade:
            return
        if self.in_body and self._left is None:
            return
        if len(self._seen) >= REPEATED:
            self._seen.clear()
        self._seen[self._text] = head, self.in_body, self._left

    def _begin_body(self) -> None:
        self.in_body = not self._done
        self._tail = b""
        fields = self.fields
        self._chunked = b"transfer-encoding" in fields.known
        if self._chunked and [one.lower() for one in fields.known[b"transfer-encoding"]] != [b"chunked"]:
            raise MessageError(501, "No transfer coding but chunked is served.")
        self._left = int(fields.known[b"content-length"][0]) if b"content-length" in fields.known else None

    def _is_http(self, first: bytes) -> bool:
        """Whether this is the first line of a head."""
        raise NotImplementedError

    def _feed(self, data: bytes | memoryview) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError as error:
            raise MessageError(400, f"It is not HTTP/1.1: {str(error)[:100]}.") from error

    # --- from the parser -----------------------------------------------------------------------------------------------

    def on_headers_complete(self) -> None:
        self._headed = True
        self._keep_alive = bool(self.parser.should_keep_alive())  # behind the body it has forgotten

    def on_message_complete(self) -> None:
        self._done = True
        self.in_body = False


class Requests(_Messages[Request]):
    """What a visitor sends."""

    parser: httptools.HttpRequestParser
    _seen: ClassVar[Seen] = {}
    _host: bytes | None = None  # the last one that was judged, and is one

    def renew(self) -> None:
        self.in_body = False
        self._keep_alive = True
        self._url = b""
        self.parser = httptools.HttpRequestParser(self)

    def _is_http(self, first: bytes) -> bool:
        return first[-9:-3] == b" HTTP/"

    def on_url(self, url: bytes) -> None:
        self._url += url

    def head(self) -> Request:
        """The head that is whole now. Raises MessageError for what is HTTP but cannot be served without a doubt."""
        if self._known is not None:
            return self._known
        parser = self.parser
        fields = self.fields
        version = parser.get_http_version()
        method = parser.get_method()
        if version not in ("1.1", "1.0"):
            raise MessageError(505, "Only HTTP/1.1 and HTTP/1.0 are served here.")
        if method == b"CONNECT":
            raise MessageError(405, "CONNECT is not served here.")
        if version == "1.0" and self._chunked:
            raise MessageError(400, "HTTP/1.0 has no transfer codings.")
        target, self._url = self._url, b""
        hosts = fields.known.get(b"host", ())
        if len(hosts) != 1:
            raise MessageError(400, f"A request has one Host, not {len(hosts)}.")
        host = hosts[0].lower()
        if target.startswith(b"/"):
            pass
        elif absolute := _TARGET.fullmatch(target):
            if absolute[1].lower() != host:
                raise MessageError(400, "The target and Host name different hosts.")
            target = absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]
        elif (target, method) != (b"*", b"OPTIONS"):
            raise MessageError(400, "The target is not a path.")
        if host != self._host:  # most visitors name the same one again
            if not _HOST.fullmatch(host):
                raise MessageError(400, "Host is not a host.")
            self._host = host
        keep_alive = self._keep_alive
        upgrade = self._upgrade(fields)
        if upgrade:
            keep_alive = True
            self.renew()  # the parser waits for another protocol, which may be refused
        made = Request(method, target, version, fields, host, upgrade, keep_alive)
        self._remember(made)
        return made

    def _upgrade(self, fields: Fields) -> bytes:
        if b"upgrade" not in fields.known or b"upgrade" not in members(fields, b"connection"):
            return b""
        asked = fields.known[b"upgrade"]
        if len(asked) != 1 or not _PROTOCOL.fullmatch(asked[0]):
            raise MessageError(400, "Upgrade names one protocol.")
        if self._left or self._chunked:
            raise MessageError(400, "A request with Upgrade has no body here.")
        return asked[0]


class Responses(_Messages[Response]):
    """What a target sends. `bodiless` is set before the head of the answer to a HEAD request."""

    parser: httptools.HttpResponseParser
    _seen: ClassVar[Seen] = {}

    def renew(self) -> None:
        self.in_body = False
        self._keep_alive = True
        self._reason = b""
        self.parser = httptools.HttpResponseParser(self)

    def _is_http(self, first: bytes) -> bool:
        self._reason = first[_REASON:]
        return first.startswith(b"HTTP/")

    def head(self) -> Response:
        """The head that is whole now. Raises MessageError."""
        if self._known is not None:
            return self._known
        parser = self.parser
        fields = self.fields
        status = parser.get_status_code()
        version = parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise MessageError(502, "The target does not speak HTTP/1.1.")
        keep_alive, reason = self._keep_alive, self._reason
        upgrade = b", ".join(fields.values(b"upgrade")) if status == 101 else b""
        if status == 101 or self.bodiless:
            keep_alive = keep_alive or status == 101
            if self.in_body or status == 101:
                self.renew()
        made = Response(status, reason, version, fields, upgrade, keep_alive)
        if status >= 200:
            self._remember(made)
        return made
