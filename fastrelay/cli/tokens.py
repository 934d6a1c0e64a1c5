"""`fastrelay token …`: what the relay's owner does with its tokens, on the relay's machine."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def token() -> None:
    """The relay's tokens; on the relay's machine."""


@token.command("show")
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    envvar="FASTRELAY_SERVER_STATE",
    show_envvar=True,
    help="The relay's state directory.",
)
@click.option(
    "--cert",
    type=click.Path(path_type=Path),
    envvar="FASTRELAY_SERVER_CERT",
    show_envvar=True,
    help="The certificate that the relay is given, if any.",
)
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    envvar="FASTRELAY_SERVER_KEY",
    show_envvar=True,
    help="The key of --cert.",
)
def show(state: Path | None, cert: Path | None, key: Path | None) -> None:
    """Print the first token: whoever has it may expose services on this relay."""
    from fastrelay.net.tls import load_identity, pins_of
    from fastrelay.state import ServerState, default_state

    kept = ServerState.open(state or default_state("server"), read_only=True)
    paths = (cert, key) if cert is not None and key is not None else kept.identity_paths
    # A relay with --plaintext has never needed a certificate.
    identity = load_identity(*paths) if paths[0].exists() or cert is not None else None
    click.echo(kept.token(pins_of(identity)).text())
