"""What a person sees: log lines, and the texts of the first minute. Data goes to stdout, everything else to stderr.

On a terminal a line is for people; elsewhere it is one JSON object. NO_COLOR and TERM=dumb are honoured.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time

from fastrelay.log import JsonLines

_SIGNS = {logging.WARNING: ("!", "33"), logging.ERROR: ("✗", "31")}


class Lines(logging.Formatter):
    """`12:04:51  ! text`"""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%H:%M:%S", time.localtime(record.created))
        sign, colour = _SIGNS.get(record.levelno, (" ", ""))
        # Names and addresses come from strangers: nothing of theirs may move the cursor.
        message = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in record.getMessage())
        text = f"{when}  {paint(sign, colour)} {message}"
        return text if record.exc_info is None else f"{text}\n{self.formatException(record.exc_info)}"


def set_up_logging() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.INFO)  # notes are for the audit log
    handler.setFormatter(Lines() if sys.stderr.isatty() else JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    loops = logging.getLogger("asyncio")
    loops.setLevel(logging.WARNING)
    loops.addFilter(_worth_saying)


def _worth_saying(record: logging.LogRecord) -> bool:
    """Loops complain of writes between the end of a connection and the moment when they tell of it: that is what ends look like."""
    return record.msg not in ("SSL connection is closed", "socket.send() raised exception.")


def paint(text: str, colour: str) -> str:
    if not colour or not sys.stderr.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{colour}m{text}\x1b[0m"


def interactive() -> bool:
    """Somebody looks at both streams: the texts say everything, and stdout needs no line for programs."""
    return sys.stdout.isatty() and sys.stderr.isatty()


def own_address(bind_host: str) -> str:
    """The address to tell people: the one that is bound, or for all of them the one that packets would leave from (none are sent)."""
    if bind_host not in ("::", "0.0.0.0", ""):
        return bind_host
    for family, far in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.connect((far, 9))
                return str(sock.getsockname()[0])
        except OSError:
            continue
    return "localhost"
