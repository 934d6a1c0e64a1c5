"""`fastrelay key …`: the relay's own key and its change, on the relay's machine. A running relay takes note by itself."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fastrelay.cli.output import say
from fastrelay.cli.state import state_option
from fastrelay.errors import StartError

if TYPE_CHECKING:
    from fastrelay.net.keys import Pair
    from fastrelay.net.tls import Identity


@click.group()
def key() -> None:
    """The relay's own key, which clients know by its pin, and its change.

    First `prepare`: clients that are connected, or connect from then on, hear of the next key. Some days later `switch`. A client that was
    away all the time between needs a new token. If the old key may have been stolen, make new tokens as well.
    """


@key.command()
@state_option
def show(state: Path | None) -> None:
    """Print the relay's pins and until when its certificates are valid."""
    from fastrelay.net.keys import next_pair
    from fastrelay.net.tls import load_identity

    with _own(state, change=False) as current:
        following = next_pair(current)
        _print("current", load_identity(*current))
        if all(path.exists() for path in following):
            _print("next", load_identity(*following))


@key.command()
@state_option
def prepare(state: Path | None) -> None:
    """Make the next key, and have clients told of it."""
    from fastrelay.net import keys

    with _own(state, change=True) as current:
        _print("next", keys.prepare(current))
    say(
        "Clients hear of it now, or when they connect. When all have been here, run `fastrelay key switch`; new tokens carry both pins until then."
    )


@key.command()
@state_option
def switch(state: Path | None) -> None:
    """Use the next key from now on; nothing is kept of the old one."""
    from fastrelay.net import keys

    with _own(state, change=True) as current:
        _print("current", keys.switch(current))
    say(
        "Clients that connect from now on see the new key; connections go on. A client that has not heard of it needs a new token."
    )


@contextlib.contextmanager
def _own(state: Path | None, *, change: bool) -> Iterator[Pair]:
    """The relay's own pair; with `change` no other command changes it meanwhile."""
    from fastrelay.state import ServerState, default_state, files

    kept = ServerState.open(state or default_state("server"), read_only=True)
    current = kept.identity_paths
    if not current[0].exists():
        raise StartError(
            f"The relay has no key of its own in {kept.path}: it makes one when it starts without --cert and --plaintext; a certificate "
            "given with --cert is renewed where it comes from, and the relay takes note."
        )
    if not change:
        yield current
        return
    with files.sentences(kept.path):
        lock = files.lock(kept.path / "keys.lock", wait=True)
    try:
        yield current
    finally:
        if lock is not None:
            os.close(lock)


def _print(which: str, identity: Identity) -> None:
    from fastrelay.auth import pin_texts

    click.echo(
        f"{which:<8} {pin_texts([identity.pin])[0]}  valid from {identity.since:%Y-%m-%d} until {identity.until:%Y-%m-%d}"
    )
