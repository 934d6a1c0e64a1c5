"""A place behind a client, as visitors name it, beside the names of services (protocol.md section 6.6)."""

from __future__ import annotations

from fastrelay.config.exposures import check_service
from fastrelay.config.hosts import NAME, check_name
from fastrelay.dialling import MOST, Place, read_place
from fastrelay.errors import UsageError


def read_through(text: str) -> tuple[str, Place]:
    """The client and the place of `CLIENT/HOST:PORT`. Raises ValueError, half a sentence that says why not."""
    client, slash, place = text.partition("/")
    if not slash or not NAME.fullmatch(client):
        raise ValueError(f"{client!r} is not the name of a client")
    if len(text.encode()) > MOST:
        raise ValueError(f"it has more than {MOST} bytes")
    return client, read_place(place)


def check_goal(text: str) -> None:
    """Raises UsageError for what is neither the name of a private service nor CLIENT/HOST:PORT."""
    if "/" not in text:
        check_service(text)
        return
    try:
        read_through(text)
    except ValueError as why:
        raise UsageError(
            f"The place {text!r} is not understood: {why}; write it like home/10.0.0.5:22, home/db.lan:5432 or home/[2001:db8::7]:22."
        ) from None


def check_client(name: str) -> None:
    """Raises UsageError for what cannot be the name of a client."""
    check_name(name, "client")
