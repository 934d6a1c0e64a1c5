"""Options that several commands have, and what is read from them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import click

from fastrelay.errors import UsageError

loop_option = click.option(
    "--loop",
    type=click.Choice(["auto", "uvloop", "asyncio"]),
    default="auto",
    show_default=True,
    show_envvar=True,
    help="Event loop; auto is uvloop where it is installed.",
)


audit_option = click.option(
    "--audit",
    type=click.Path(path_type=Path),
    metavar="FILE",
    show_envvar=True,
    help="Append every event to FILE, for this user only; SIGHUP opens it anew. README, Audit log, lists the events.",
)


def expose_option(required: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """`--expose`, which a command must have or may have."""
    return click.option(
        "--expose",
        metavar="SPEC",
        multiple=True,
        required=required,
        show_envvar=True,
        help="What visitors reach: [NAME=][tcp://][PUBLIC:][HOST:]PORT or [NAME=][PUBLIC:]unix:/path. May be repeated.",
    )


def refuse_empty(variable: str) -> None:
    """What keeps somebody out is not to be switched off by a slip, such as an empty ${NAME} in a unit file."""
    if not os.environ.get(variable, "unset").strip():
        raise UsageError(f"{variable} is set but empty, which would keep nobody out: give it a value, or unset it.")


def read_token(token: str | None, token_file: Path | None) -> str | None:
    """What `--token` and `--token-file` say; None where neither is given."""
    if token is not None or token_file is None:
        return token
    try:
        return token_file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(
            f"The token file {token_file} cannot be read ({reason}): give one with the token in it."
        ) from None
