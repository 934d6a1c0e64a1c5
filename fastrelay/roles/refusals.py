"""What a relay says of strangers at its tunnel port, and why a connection ended, for people."""

from __future__ import annotations

import errno
import ssl

from fastrelay import log
from fastrelay.errors import Code, HandshakeError, ProtocolError
from fastrelay.limits import Limits
from fastrelay.net.gate import Reached


class Refusals:
    """The words of a tunnel door (`net.listen.Porter`): events `client.refused` and `limit.reached`."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def refused(self, who: str, error: Exception | None, first: bytes) -> None:
        broken = error if isinstance(error, ProtocolError) else None
        known = broken.fields if broken is not None else {}
        log.warning(
            "client.refused",
            f"Refused {who or 'a connection'}: {explain(error, first)}.",
            client=who,
            code=broken.code.name if broken is not None else None,
            name=known.get("name") or None,
            token=known.get("token"),
            key_id=known.get("key_id"),
            rule=known.get("rule"),
            cause=log.cause(error),
        )

    def refused_more(self, source: str, count: int) -> None:
        log.warning("client.refused", f"Refused {count} more connections{_of(source)}.", source=source, count=count)

    def limited(self, limit: str, source: str, count: int) -> None:
        value = getattr(self._limits, limit.replace("-", "_"))
        if limit == Reached.PENALTY.value:
            text = f"Too many logins{_of(source)} fail: from now on they are answered slowly for a while"
        else:
            text = f"{value} connections{_of(source)} have not logged in yet, as many as may be: older ones are closed for new ones"
        more = f" ({count} more times)" if count else ""
        log.warning(
            "limit.reached", f"{text}{more}.", limit=limit, value=value, who=source or "strangers", count=count or 1
        )


def _of(source: str) -> str:
    return f" of {source}" if source else ""


def explain(error: Exception | None, first: bytes) -> str:
    """Why a connection to the tunnel port ended, for people."""
    if isinstance(error, HandshakeError):
        return error.text
    if first[:1] == b"\x16":
        return "it speaks TLS, and this relay's tunnels are plaintext; use tcp:// for it"
    if first[:4] in (b"GET ", b"POST", b"HEAD", b"PUT ", b"OPTI", b"CONN"):
        return "it speaks HTTP; this port is for fastrelay clients"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or "").replace("_", " ").lower()
        if "http request" in reason:
            return "it speaks HTTP; this port is for fastrelay clients, over TLS"
        if any(word in reason for word in ("wrong version", "record layer", "packet length", "unexpected message")):
            return "it does not speak TLS, which this port needs"
        return f"the TLS handshake failed ({reason or error})"
    if isinstance(error, ProtocolError):
        return (
            error.text
            if error.code is not Code.PROTOCOL
            else f"it does not speak the fastrelay protocol ({error.text})"
        )
    if isinstance(error, TimeoutError):
        return "nothing was acknowledged any more" if error.errno == errno.ETIMEDOUT else "the handshake took too long"
    if error is None or isinstance(error, ConnectionResetError):
        return "the connection was closed"
    return str(error) or type(error).__name__


def why(error: OSError) -> str:
    """What the system says, for the middle of a sentence."""
    return error.strerror.lower() if error.strerror else str(error)
