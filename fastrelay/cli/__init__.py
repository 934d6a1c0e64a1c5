"""The command line: argv becomes a configuration, signals become stops, errors become sentences and exit codes.

Exit codes: 0 done, 1 failed while running, 2 usage, 3 cannot start or refused for good, 130 interrupted.
Imports of what runs are inside the commands, so that help and mistakes answer at once.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

import click

from fastrelay import __version__
from fastrelay.cli.callers import dial, forward, list_, socks
from fastrelay.cli.clients import client
from fastrelay.cli.keys import key
from fastrelay.cli.options import expose_option, loop_option
from fastrelay.cli.output import data, say, sentences
from fastrelay.cli.running import run
from fastrelay.cli.servers import server
from fastrelay.cli.tokens import token
from fastrelay.errors import StartError

if TYPE_CHECKING:
    from fastrelay.config import Exposure, Public


@click.group(context_settings={"auto_envvar_prefix": "FASTRELAY", "help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fastrelay", allow_from_autoenv=False)  # images set FASTRELAY_VERSION
def cli() -> None:
    """Reach services behind NAT through a machine with an address.

    `fastrelay demo` shows it on this machine alone. For two machines: `fastrelay server` on the one with an address, and on the other
    the line that it prints.
    """


@cli.command()
@expose_option(required=False)
@loop_option
def demo(expose: tuple[str, ...], loop: str) -> None:
    """Relay and client in one process on this machine: the whole way of a byte, in one command."""
    from fastrelay.app import run_demo
    from fastrelay.config import parse_expose
    from fastrelay.limits import DEFAULTS

    exposures = tuple(parse_expose(spec) for spec in expose)

    def reachable(exposure: Exposure, public: Public) -> None:
        if not exposures:
            say(
                f"\nA relay and a client run on this machine. Send a byte through them:\n\n    curl http://{public.host}:{public.port}/\n"
            )
        else:
            say(f"\n{exposure.target} is reachable through a relay on this machine, at {public.url}.\n")
        say("Ctrl-C drains and stops.")
        data(public.url)

    run(lambda on_stop: run_demo(exposures, reachable, on_stop), loop, DEFAULTS.drain_time)


@cli.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def bench(words: tuple[str, ...]) -> None:
    """Measure this relay beside others, on this machine; from a checkout."""
    try:
        from bench.__main__ import main as measure
    except ModuleNotFoundError as error:
        raise StartError(
            f"The bench is not here (there is no Python module {error.name}): it runs in a clone of the repository, after `pip install -e '.[bench]'`."
        ) from error
    measure(args=list(words), prog_name="fastrelay bench")


for command in (server, client, forward, dial, list_, socks, token, key):
    cli.add_command(command)


def main() -> NoReturn:
    """The console script."""
    with sentences():
        try:
            cli(standalone_mode=False)
        except click.exceptions.Exit as done:
            sys.exit(done.exit_code)
        except click.Abort:
            sys.exit(130)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
    sys.exit(0)
