"""Options that several commands have, and what is read from them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastrelay.errors import UsageError

if TYPE_CHECKING:
    from fastrelay.config import ClientConfig, Exposure
    from fastrelay.dialling import Rules
    from fastrelay.limits import Limits

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
        help="What visitors reach: [NAME=][tcp://][PUBLIC:][HOST:]PORT; or [NAME=]private://[HOST:]PORT, which has no public port, and which "
        "`fastrelay forward` and `dial` reach by NAME. unix:/path may stand for HOST:PORT. May be repeated.",
    )


@dataclass(frozen=True)
class Credentials:
    """What a client shows of itself, and how it knows the relay, as typed."""

    token: str | None
    token_file: Path | None
    client_cert: Path | None
    client_key: Path | None
    pins: tuple[str, ...]
    behind_proxy: bool
    state: Path | None

    def config(
        self, relay: str, name: str, exposures: tuple[Exposure, ...], limits: Limits, allow_dial: Rules | None = None
    ) -> ClientConfig:
        """The configuration of a client with these. `relay` "-" is what FASTRELAY_RELAY says."""
        from fastrelay.auth import Token, parse_pin
        from fastrelay.config import ClientConfig, parse_relay
        from fastrelay.dialling import NO_RULES
        from fastrelay.state import default_state

        if relay == "-":
            relay = os.environ.get("FASTRELAY_RELAY", "")
            if not relay.strip():
                raise UsageError("There is no relay: name it, or set FASTRELAY_RELAY.")
        secret = read_token(self.token, self.token_file)
        if secret is not None:
            Token.parse(secret)
        return ClientConfig(
            relay=parse_relay(relay),
            token=secret or "",
            exposures=exposures,
            name=name,
            state=self.state or default_state("client"),
            limits=limits,
            client_cert=self.client_cert,
            client_key=self.client_key,
            pins=tuple(parse_pin(pin) for pin in self.pins),
            behind_proxy=self.behind_proxy,
            allow_dial=allow_dial or NO_RULES,
        )


def credential_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of every command that logs in at a relay; it takes them as one argument, `credentials`."""

    @functools.wraps(command)
    def collected(
        token: str | None,
        token_file: Path | None,
        client_cert: Path | None,
        client_key: Path | None,
        pins: tuple[str, ...],
        behind_proxy: bool,
        state: Path | None,
        **others: Any,
    ) -> None:
        credentials = Credentials(token, token_file, client_cert, client_key, pins, behind_proxy, state)
        command(credentials=credentials, **others)

    made: Callable[..., None] = collected
    for option in reversed(_CREDENTIALS):
        made = option(made)
    return made


_CREDENTIALS = [
    click.option(
        "--token",
        metavar="TOKEN",
        envvar="FASTRELAY_TOKEN",
        show_envvar=True,
        help="The relay's token (`fastrelay token show` there). Processes of other users can read it here: --token-file is better.",
    ),
    click.option(
        "--token-file",
        type=click.Path(path_type=Path),
        envvar="FASTRELAY_TOKEN_FILE",
        show_envvar=True,
        help="A file that holds the token.",
    ),
    click.option(
        "--client-cert",
        type=click.Path(path_type=Path),
        envvar="FASTRELAY_CLIENT_CERT",
        show_envvar=True,
        help="This client's TLS certificate chain (PEM), beside the token or instead of it; with --client-key.",
    ),
    click.option(
        "--client-key",
        type=click.Path(path_type=Path),
        envvar="FASTRELAY_CLIENT_KEY",
        show_envvar=True,
        help="The key of --client-cert (PEM).",
    ),
    click.option(
        "--pin",
        "pins",
        metavar="PIN",
        multiple=True,
        envvar="FASTRELAY_CLIENT_PIN",
        show_envvar=True,
        help="The relay's key (`fastrelay key show` there) instead of the token's pins; twice while it changes.",
    ),
    click.option(
        "--behind-proxy",
        is_flag=True,
        envvar="FASTRELAY_CLIENT_BEHIND_PROXY",
        show_envvar=True,
        help="A proxy in front of the relay, such as a CDN, ends TLS: its certificate is what the CAs must vouch for; with wss://.",
    ),
    click.option(
        "--state",
        type=click.Path(path_type=Path),
        envvar="FASTRELAY_CLIENT_STATE",
        show_envvar=True,
        help="Directory that says which installation this is.",
    ),
]


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
