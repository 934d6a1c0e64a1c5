"""`--state` of the commands that work on a relay's files."""

from __future__ import annotations

from pathlib import Path

import click

state_option = click.option(
    "--state",
    type=click.Path(path_type=Path),
    envvar="FASTRELAY_SERVER_STATE",
    show_envvar=True,
    help="The relay's state directory.",
)
