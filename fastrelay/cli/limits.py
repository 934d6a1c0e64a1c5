"""`--limit`, and a help text that lists what it may set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fastrelay.limits import Side

limit_option = click.option(
    "--limit",
    metavar="NAME=VALUE",
    multiple=True,
    show_envvar=True,
    help="Set a limit: how many, how much or how long. May be repeated. The names are below, with their defaults.",
)


class Limited(click.Command):
    """A command with `--limit`."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from fastrelay.limits import lines

        with formatter.section("Limits, and what happens when they are reached"):
            formatter.write_dl(list(lines(self._side())))

    def _side(self) -> Side:
        from fastrelay.limits import Side

        return Side.RELAY if self.name == "server" else Side.CLIENT
