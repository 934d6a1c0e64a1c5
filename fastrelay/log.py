"""What the process tells: one event a line, through stdlib logging, so that an embedding program decides where.

`event` names are stable and meant for machines; `text` is a sentence for people; `fields` are both's. README, "Audit log", lists them all.
"""

from __future__ import annotations

import datetime
import errno
import json
import logging
import ssl
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final

import msgspec

from fastrelay.errors import Code, PinError, ProtocolError

LOGGER = logging.getLogger("fastrelay")

Hear = Callable[[str, str, dict[str, object]], None]
_hear: Hear | None = None

CAUSES: Final[Mapping[Code, str]] = {
    Code.NO_ERROR: "fin",
    Code.PROTOCOL: "protocol",
    Code.FLOW_CONTROL: "protocol",
    Code.FRAME_SIZE: "protocol",
    Code.STREAM_STATE: "protocol",
    Code.INTERNAL: "internal",
    Code.CALM: "limit",
    Code.UNAUTHORIZED: "denied",
    Code.SUPERSEDED: "superseded",
    Code.NAME_TAKEN: "denied",
    Code.VERSION: "protocol",
    Code.SHUTDOWN: "shutdown",
    Code.TIMEOUT: "timeout",
    Code.DENIED: "denied",
    Code.REFUSED: "refused",
    Code.UNREACHABLE: "unreachable",
    Code.DIAL_TIMEOUT: "dial-timeout",
    Code.NO_SERVICE: "no-service",
    Code.LIMIT: "limit",
    Code.CONNECTION_RESET: "reset",
    Code.CANCEL: "cancel",
    Code.AWAY: "away",
    Code.DIAL_DENIED: "denied",
    Code.DIAL_FORBIDDEN: "denied",
}
"""What events call an end with this code."""


def cause(error: BaseException | None) -> str:
    """What events call the end of a tunnel, or of what should have become one; without an error it is lost."""
    if isinstance(error, ProtocolError):
        # A session whose token grants something else now ends without an error.
        return CAUSES[error.code or Code.UNAUTHORIZED]
    if isinstance(error, (PinError, ssl.SSLCertVerificationError)):
        return "denied"
    if isinstance(error, ssl.SSLError):
        return "protocol"
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
        return "limit"
    return "tunnel-lost"


def note(event: str, text: str, **fields: object) -> None:
    """What is too much for the console: it goes nowhere unless somebody audits. Where there are many, ask `audited` first.

    It does not pass through logging: what that costs is half of what the connection costs that the note is about.
    """
    if _hear is not None:
        _hear(event, text, fields)


def info(event: str, text: str, **fields: object) -> None:
    _say(logging.INFO, event, text, fields)


def warning(event: str, text: str, **fields: object) -> None:
    _say(logging.WARNING, event, text, fields)


def error(event: str, text: str, **fields: object) -> None:
    _say(logging.ERROR, event, text, fields)


def audited() -> bool:
    """Whether notes go anywhere."""
    return _hear is not None


def audit(hear: Hear | None) -> None:
    """Hand notes to `hear(event, text, fields)` from now on, or to nobody; it must not raise."""
    global _hear
    _hear = hear


def record(level: int, event: str, text: str, **fields: object) -> logging.LogRecord:
    """An event that is not said yet. A field that is None is left out."""
    fields = {name: value for name, value in fields.items() if value is not None}
    # The text is no %-format, for it holds what strangers sent: without arguments logging leaves it alone. Nor is the caller looked for.
    return LOGGER.makeRecord(LOGGER.name, level, "", 0, text, (), None, extra={"event": event, "fields": fields})


def _say(level: int, event: str, text: str, fields: dict[str, object]) -> None:
    if LOGGER.isEnabledFor(level):
        LOGGER.handle(record(level, event, text, **fields))


def line(when: float, level: str, event: str, text: str, fields: Mapping[str, object]) -> str:
    """One event as a JSON object, in ASCII: nothing that a stranger sent moves anybody's cursor. `when` is unix time; None is left out."""
    if None in fields.values():
        fields = {name: value for name, value in fields.items() if value is not None}
    members = {"ts": _timestamp(when), "level": level, "event": event, "text": text, **fields}
    try:
        made = msgspec.json.encode(members, enc_hook=str).decode()
    except (UnicodeEncodeError, OverflowError):  # a path that is not UTF-8, a number that nobody expects
        return json.dumps(members, default=str)
    # Of the control characters msgspec escapes those below the space.
    return made if made.isascii() and "\x7f" not in made else json.dumps(members, default=str)


@lru_cache(2)
def _second(when: int) -> str:
    return datetime.datetime.fromtimestamp(when, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _timestamp(when: float) -> str:
    """RFC 3339, in milliseconds."""
    second = int(when)
    return f"{_second(second)}.{int((when - second) * 1000):03}Z"


class JsonLines(logging.Formatter):
    """{"ts", "level", "event", "text", and the event's own fields}"""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = getattr(record, "fields", {})
        if record.exc_info is not None:
            fields = {**fields, "traceback": self.formatException(record.exc_info)}
        event = getattr(record, "event", record.name)
        return line(record.created, record.levelname.lower(), event, record.getMessage(), fields)
