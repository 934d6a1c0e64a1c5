"""What every command says, and where: data on stdout, everything else on stderr, errors as sentences with an exit code."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence

import click

from fastrelay.errors import StartError, UsageError


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """An error of ours is a sentence and an exit code, never a traceback."""
    try:
        yield
    except UsageError as error:
        say(f"Error: {error}")
        sys.exit(2)
    except StartError as error:
        say(f"Error: {error}")
        sys.exit(3)


def table(rows: Sequence[Sequence[str]]) -> None:
    """Rows in columns that are as wide as they must be."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def say(text: str) -> None:
    _echo(text, err=True)


def _echo(text: str, *, err: bool) -> None:
    """A line for whoever reads; when nobody does any more, the connections of others go on all the same."""
    with contextlib.suppress(OSError):
        click.echo(text, err=err)


def data(line: str) -> None:
    """A line for programs. Where a person looks at both streams, the texts have said it."""
    from fastrelay.console import interactive

    if not interactive():
        _echo(line, err=False)
