"""`fastrelay forward`, `dial`, `socks` and `list`: what visits services of other clients, and places behind them."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from fastrelay.cli.limits import Limited, limit_option
from fastrelay.cli.options import Credentials, credential_options, loop_option, read_token
from fastrelay.cli.output import data, say, table
from fastrelay.cli.running import run
from fastrelay.errors import StartError, UsageError

if TYPE_CHECKING:
    from fastrelay.front.via_http import Call


@click.command(cls=Limited)
@click.argument("words", nargs=-1, metavar="[RELAY] NAME [LOCAL]")
@click.option(
    "--via-http",
    metavar="URL",
    show_envvar=True,
    help="Without a tunnel, and without RELAY: by POST /tcpproxy at the HTTP front of a relay, as in https://relay.example.com; NAME is CLIENT/HOST:PORT.",
)
@credential_options
@limit_option
@loop_option
def forward(
    words: tuple[str, ...], via_http: str | None, credentials: Credentials, limit: tuple[str, ...], loop: str
) -> None:
    """Lead connections to LOCAL to the private service NAME, or to CLIENT/HOST:PORT, where that client dials.

    RELAY as in `fastrelay client`, or - for FASTRELAY_RELAY. LOCAL is [HOST:]PORT; without it any free port of 127.0.0.1, which is printed.
    """
    from fastrelay.app import run_forward, run_via_http
    from fastrelay.config import check_goal, join_host
    from fastrelay.limits import Side, parse_limits

    relay, *rest = ("", *words) if via_http is not None else words or ("",)
    if not 1 <= len(rest) <= 2:
        what = "NAME and, if you like, LOCAL" if via_http is not None else "RELAY, NAME and, if you like, LOCAL"
        raise click.UsageError(f"It takes {what}.", click.get_current_context())
    name, local = rest[0], (*rest, "")[1]
    check_goal(name)
    bind = _local(local)
    limits = parse_limits(limit, Side.CLIENT)

    def ready(host: str, port: int) -> None:
        where = join_host(host, port)
        if sys.stderr.isatty():
            say(f"\n{where} leads to {name}. Ctrl-C drains and stops.\n")
        data(f"tcp://{where}")

    if via_http is not None:
        call = _call(via_http, name, credentials)
        run(lambda on_stop: run_via_http(call, bind, limits.drain_time, ready, on_stop), loop, limits.drain_time)
        return
    config = credentials.config(relay, "", (), limits)
    run(lambda on_stop: run_forward(config, name, bind, ready, on_stop), loop, limits.drain_time)


def _call(url: str, name: str, credentials: Credentials) -> Call:
    from fastrelay.auth import Token
    from fastrelay.config import parse_front, read_through
    from fastrelay.front.via_http import Call

    if "/" not in name:
        raise UsageError(f"Over HTTP no private service is reached, such as {name!r}: name CLIENT/HOST:PORT.")
    if credentials.client_cert is not None or credentials.client_key is not None or credentials.pins:
        raise UsageError("A call over HTTP shows a token only: leave out --client-cert, --client-key and --pin.")
    text = read_token(credentials.token, credentials.token_file)
    if not text:
        raise UsageError("There is no token: give --token or --token-file, or set FASTRELAY_TOKEN.")
    token = Token.parse(text)
    return Call(parse_front(url), *read_through(name), Token(token.key_id, token.secret).text())


@click.command()
@click.argument("relay")
@click.argument("name")
@credential_options
@loop_option
def dial(relay: str, name: str, credentials: Credentials, loop: str) -> None:
    """Join standard input and output with the private service NAME, or with CLIENT/HOST:PORT, where that client dials.

    As in `ssh -o ProxyCommand='fastrelay dial RELAY %h' NAME`. An end of input is an end for the other side, and the other direction goes on.
    Exits with 0 when both have ended, with 3 when the other side cannot be reached, and with 1 when the connection was reset.
    """
    from fastrelay.app import run_dial
    from fastrelay.cli.stdio import Stdio
    from fastrelay.config import check_goal
    from fastrelay.errors import Code
    from fastrelay.limits import DEFAULTS
    from fastrelay.roles.visiting import why_missed

    check_goal(name)
    config = credentials.config(relay, "", (), DEFAULTS)
    stdio = Stdio()
    stdio.start()
    ended = run(lambda on_stop: run_dial(config, name, stdio.socket, on_stop), loop, None, quiet=True)
    if ended is None:
        sys.exit(1)  # a signal that is not Ctrl-C
    code, reached = ended
    if not reached:
        raise StartError(f"{why_missed(name, code)}.")
    stdio.finish()
    if code is not Code.NO_ERROR:
        say(f"Error: The connection to {name} was reset.")
        sys.exit(1)


@click.command(cls=Limited)
@click.argument("relay")
@click.argument("client")
@click.argument("local", default="")
@credential_options
@limit_option
@loop_option
def socks(relay: str, client: str, local: str, credentials: Credentials, limit: tuple[str, ...], loop: str) -> None:
    """Run a SOCKS5 and HTTP CONNECT proxy at LOCAL whose connections CLIENT makes.

    Names are resolved there. What may be reached is what the token grants and --allow-dial of that client lists. RELAY as in
    `fastrelay client`, or - for FASTRELAY_RELAY. LOCAL is [HOST:]PORT; without it any free port of 127.0.0.1, which is printed. There is no login:
    whoever reaches LOCAL may use it.
    """
    from fastrelay.app import run_socks
    from fastrelay.config import check_client, is_loopback, join_host
    from fastrelay.limits import Side, parse_limits

    check_client(client)
    bind = _local(local)
    config = credentials.config(relay, "", (), parse_limits(limit, Side.CLIENT))
    if not is_loopback(bind[0]):
        say(
            f"This proxy has no login, and {bind[0]} is not this machine alone: whoever reaches it reaches what {client} dials."
        )

    def ready(host: str, port: int) -> None:
        where = join_host(host, port)
        if sys.stderr.isatty():
            say(f"\n{where} is a SOCKS5 and HTTP CONNECT proxy that comes out at {client}. Ctrl-C drains and stops.\n")
            say(f"    curl -x socks5h://{where} http://10.0.0.7/\n")
        data(f"socks5h://{where}")

    run(lambda on_stop: run_socks(config, client, bind, ready, on_stop), loop, config.limits.drain_time)


def _local(text: str) -> tuple[str, int]:
    from fastrelay.config import parse_bind

    return parse_bind(f"127.0.0.1:{text}" if text.isdecimal() else text or "127.0.0.1", 0)


@click.command("list")
@click.argument("relay", default="-")
@credential_options
@loop_option
def list_(relay: str, credentials: Credentials, loop: str) -> None:
    """Print the private services that the token reaches.

    On a terminal as a table; elsewhere a line for each, with tabs between its name, kind, client, since when it is there or was last seen
    (unix time), and yes or no for whether it can be reached now. A pool has a line for each of its clients; - is the client of one that has none.
    """
    from fastrelay.app import run_list
    from fastrelay.limits import DEFAULTS

    config = credentials.config(relay, "", (), DEFAULTS)
    found = run(lambda on_stop: run_list(config), loop, None, quiet=True)
    rows = [(one.name, one.kind, one.client or "-", one.since, "yes" if one.here else "no") for one in found]
    if not sys.stdout.isatty():
        for row in rows:
            click.echo("\t".join(map(str, row)))
        return
    shown = [(name, kind, client, _when(since), here) for name, kind, client, since, here in rows]
    table([("NAME", "KIND", "CLIENT", "SINCE", "REACHABLE"), *shown])


def _when(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
