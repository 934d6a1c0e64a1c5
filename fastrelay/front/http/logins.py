"""What a request shows of who asks: HTTP Basic (RFC 7617) and Bearer (RFC 6750). Pure."""

from __future__ import annotations

import base64
import binascii

from fastrelay.front.http.messages import Fields


def basic(fields: Fields) -> bytes | None:
    """`user:password` of Basic; None where there is not exactly one Authorization that can be read so."""
    scheme, text = _shown(fields)
    if scheme != b"basic":
        return None
    try:
        pair = base64.b64decode(text, validate=True)
    except binascii.Error:
        return None
    return pair if b":" in pair else None


def password(fields: Fields) -> str | None:
    """That of Basic, whoever the user is; None where there is none, "" where it is not text."""
    pair = basic(fields)
    if pair is None:
        return None
    try:
        return pair.partition(b":")[2].decode()
    except UnicodeDecodeError:
        return ""


def token(fields: Fields) -> str:
    """The text of the token that is shown, as a Bearer token or as the password of Basic; "" where there is none."""
    scheme, text = _shown(fields)
    return text.decode("latin-1") if scheme == b"bearer" else password(fields) or ""


def _shown(fields: Fields) -> tuple[bytes, bytes]:
    """Scheme, in lower case, and credentials of the one Authorization; empty without it."""
    found = fields.values(b"authorization")
    if len(found) != 1:
        return b"", b""
    scheme, _, text = found[0].partition(b" ")
    return scheme.lower(), text.strip(b" ")
