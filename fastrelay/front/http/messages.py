"""One direction of an HTTP connection, cut into heads and bodies (RFC 9112). Pure.

httptools (llhttp, strict) alone decides what a message is: it is told where a head ends, and tells where a body does. It is never given more
than one message at a time, so what follows one cannot be read two ways. A head is handed on as fields and written anew by `heads`; a body
is handed on as the bytes that came, chunks and trailers included.

Invariant: what is passed on has been read by the parser before, and a message ends where the parser says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

import httptools

from fastrelay.errors import MessageError

MOST_HEAD: Final = 16_384
"""Bytes of a head."""
MOST_FIELDS: Final = 100

Field = tuple[bytes, bytes]
"""(name as it came, value)"""


class Fields(list[Field]):
    """The fields of a head, in order. `names` are theirs in lower case: most questions are about one that is not there."""

    __slots__ = ("names",)

    def __init__(self, fields: Iterable[Field] = ()) -> None:
        super().__init__(fields)
        self.names = {name.lower() for name, _ in self}

    @classmethod
    def none(cls) -> Fields:
        """Those of a head that has not begun."""
        fields = cls.__new__(cls)
        fields.names = set()
        return fields


_BLANK: Final = b"\r\n\r\n"
_SPACE: Final = 0x20
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


def values(fields: Fields, name: bytes) -> list[bytes]:
    """The values of all fields called `name` (lower case)."""
    return [value for field, value in fields if field.lower() == name] if name in fields.names else []


def members(fields: Fields, name: bytes) -> list[bytes]:
    """The members of a list field (RFC 9110, 5.6.1), in lower case."""
    if name not in fields.names:
        return []
    found = (member.strip(b" \t").lower() for value in values(fields, name) for member in value.split(b","))
    return [member for member in found if member]


class _Messages:
    """What requests and responses share: the end of a head, then the end of a body."""

    parser: httptools.HttpRequestParser | httptools.HttpResponseParser

    def __init__(self) -> None:
        self.in_body = False
        """Whether what comes next belongs to a body; else it belongs to a head."""
        self.fields = Fields.none()
        self._raw = b""  # of a head that is not whole
        self._left: int | None = None  # bytes of a body whose length is known
        self._chunked = False
        self._tail = b""  # of a body in chunks, in which its end may have begun
        self._headed = False
        self._done = False
        self._keep_alive = False
        self.renew()

    def renew(self) -> None:
        """Begin anew with the next message, whatever the parser expects of this one."""
        raise NotImplementedError

    def take_head(self, data: memoryview) -> int:
        """Take bytes of a head, up to its end; `whole` says whether it was reached. Returns how many. Raises MessageError."""
        before = len(self._raw)
        raw = self._raw + data[: MOST_HEAD + 1 - before]
        end = raw.find(_BLANK, max(0, before - 3)) + len(_BLANK)
        self._headed = False
        if end < len(_BLANK):
            if len(raw) > MOST_HEAD:
                raise MessageError(431, f"The head is longer than {MOST_HEAD} bytes.")
            self._raw = raw
            return len(data)
        head = raw[:end]
        self._raw = b""
        self.fields = Fields.none()
        self._feed(head)
        if not self._headed or not self._is_http(head if head[0] > _SPACE else head.lstrip(b"\r\n")):
            raise MessageError(
                400, "The head is not one of HTTP."
            )  # but empty lines, or of a protocol that llhttp knows as well
        if len(self.fields) > MOST_FIELDS:
            raise MessageError(431, f"The head has more than {MOST_FIELDS} fields.")
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

    def take_body(self, data: memoryview) -> int:
        """How many of these bytes are of the body; behind its last one `in_body` is false. Raises MessageError."""
        if not self._chunked:
            size = len(data)
            if self._left is not None:
                size = min(size, self._left)
                self._left -= size
            self._feed(data[:size])
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

    def _begin_body(self) -> None:
        self.in_body = not self._done
        self._tail = b""
        fields = self.fields
        self._chunked = b"transfer-encoding" in fields.names
        if self._chunked and [one.lower() for one in values(fields, b"transfer-encoding")] != [b"chunked"]:
            raise MessageError(501, "No transfer coding but chunked is served.")
        self._left = int(values(fields, b"content-length")[0]) if b"content-length" in fields.names else None

    def _is_http(self, head: bytes) -> bool:
        """Whether this is a head of HTTP by its first line."""
        raise NotImplementedError

    def _feed(self, data: bytes | memoryview) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError as error:
            raise MessageError(400, f"It is not HTTP/1.1: {str(error)[:100]}.") from error

    # --- from the parser -----------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._done = False

    def on_header(self, name: bytes, value: bytes) -> None:
        fields = self.fields
        fields.append((name, value))
        fields.names.add(name.lower())

    def on_headers_complete(self) -> None:
        self._headed = True
        self._keep_alive = bool(self.parser.should_keep_alive())  # behind the body it has forgotten

    def on_message_complete(self) -> None:
        self._done = True
        self.in_body = False


class Requests(_Messages):
    """What a visitor sends."""

    parser: httptools.HttpRequestParser
    _host: bytes | None = None  # the last one that was judged, and is one

    def renew(self) -> None:
        self.in_body = False
        self._url = b""
        self.parser = httptools.HttpRequestParser(self)

    def _is_http(self, head: bytes) -> bool:
        end = head.index(b"\r\n")
        return head[end - 9 : end - 3] == b" HTTP/"

    def on_url(self, url: bytes) -> None:
        self._url += url

    def head(self) -> Request:
        """The head that is whole now. Raises MessageError for what is HTTP but cannot be served without a doubt."""
        parser = self.parser
        fields, self.fields = self.fields, Fields.none()  # trailers are not of the head
        version = parser.get_http_version()
        method = parser.get_method()
        if version not in ("1.1", "1.0"):
            raise MessageError(505, "Only HTTP/1.1 and HTTP/1.0 are served here.")
        if method == b"CONNECT":
            raise MessageError(405, "CONNECT is not served here.")
        if version == "1.0" and b"transfer-encoding" in fields.names:
            raise MessageError(400, "HTTP/1.0 has no transfer codings.")
        target, self._url = self._url, b""
        hosts = values(fields, b"host")
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
        return Request(method, target, version, fields, host, upgrade, keep_alive)

    def _upgrade(self, fields: Fields) -> bytes:
        if b"upgrade" not in fields.names or b"upgrade" not in members(fields, b"connection"):
            return b""
        asked = values(fields, b"upgrade")
        if len(asked) != 1 or not _PROTOCOL.fullmatch(asked[0]):
            raise MessageError(400, "Upgrade names one protocol.")
        if self._left or self._chunked:
            raise MessageError(400, "A request with Upgrade has no body here.")
        return asked[0]


class Responses(_Messages):
    """What a target sends. `bodiless` is set before the head of the answer to a HEAD request."""

    parser: httptools.HttpResponseParser
    bodiless = False

    def renew(self) -> None:
        self.in_body = False
        self._reason = b""
        self.parser = httptools.HttpResponseParser(self)

    def _is_http(self, head: bytes) -> bool:
        return head.startswith(b"HTTP/")

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def head(self) -> Response:
        """The head that is whole now. Raises MessageError."""
        parser = self.parser
        fields, self.fields = self.fields, Fields.none()
        status = parser.get_status_code()
        version = parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise MessageError(502, "The target does not speak HTTP/1.1.")
        keep_alive = self._keep_alive
        reason, self._reason = self._reason, b""
        upgrade = b", ".join(values(fields, b"upgrade")) if status == 101 else b""
        if status == 101 or self.bodiless:
            keep_alive = keep_alive or status == 101
            if self.in_body or status == 101:
                self.renew()
        return Response(status, reason, version, fields, upgrade, keep_alive)
