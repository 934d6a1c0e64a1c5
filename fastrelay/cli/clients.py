"""`fastrelay client`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fastrelay.cli.limits import Limited, limit_option
from fastrelay.cli.options import (
    Credentials,
    audit_option,
    credential_options,
    expose_option,
    loop_option,
    refuse_empty,
)
from fastrelay.cli.output import data, say
from fastrelay.cli.running import run

if TYPE_CHECKING:
    from fastrelay.config import Exposure, Public


@click.command(cls=Limited)
@click.argument("relay", envvar="FASTRELAY_RELAY")
@expose_option(required=False)
@click.option(
    "--allow-dial",
    metavar="RULE",
    multiple=True,
    show_envvar=True,
    help="What may be dialled from here for others: CIDR[:PORTS] or NAMES[:PORTS], as in 10.0.0.0/8:22,5432 or *.lab.example:443; nothing if not given. May be repeated.",
)
@click.option(
    "--deny-dial",
    metavar="RULE",
    multiple=True,
    show_envvar=True,
    help="What is not dialled from here although --allow-dial has it, in the same form. May be repeated.",
)
@click.option(
    "--visitors",
    metavar="[NAME=]CIDR[,CIDR…]",
    multiple=True,
    show_envvar=True,
    help="Networks that may visit the service NAME, or every service that has none of its own; everybody may if there are none. May be repeated.",
)
@click.option(
    "--pool",
    metavar="NAME[,NAME…]",
    multiple=True,
    show_envvar=True,
    help="Share the service NAME with other clients of the same token: a visitor goes to the least loaded of them. May be repeated.",
)
@click.option(
    "--proxy-protocol",
    metavar="[NAME=]v1|v2|off",
    multiple=True,
    show_envvar=True,
    help="Tell the target of the service NAME, or of all, who the visitor is: its connections begin with a PROXY header. May be repeated.",
)
@click.option(
    "--auth",
    metavar="[NAME=]USER:PASSWORD",
    multiple=True,
    envvar="FASTRELAY_CLIENT_AUTH",
    show_envvar=True,
    help="What visitors of the HTTP service NAME must show, or of all that have none of their own. Processes of other users can read it here: "
    "the variable is better. May be repeated.",
)
@click.option("--name", metavar="ID", show_envvar=True, help="Who this client is; the host name if not given.")
@credential_options
@audit_option
@limit_option
@loop_option
def client(
    relay: str,
    expose: tuple[str, ...],
    allow_dial: tuple[str, ...],
    deny_dial: tuple[str, ...],
    visitors: tuple[str, ...],
    pool: tuple[str, ...],
    proxy_protocol: tuple[str, ...],
    auth: tuple[str, ...],
    name: str | None,
    credentials: Credentials,
    audit: Path | None,
    limit: tuple[str, ...],
    loop: str,
) -> None:
    """Expose services of this machine through RELAY, or dial from it: HOST[:PORT], [IPv6]:PORT, tls://…, wss://HOST[:PORT][/PATH] where only HTTP passes,
    or, on this machine, tcp://… and ws://… HTTPS_PROXY and NO_PROXY are honoured.
    """
    import socket
    from dataclasses import replace

    from fastrelay.app import run_client
    from fastrelay.config import assign_logins, assign_pools, assign_proxy, host_name, parse_expose
    from fastrelay.dialling import Rules
    from fastrelay.errors import UsageError
    from fastrelay.limits import Side, parse_limits
    from fastrelay.networks import assign

    if not visitors:
        refuse_empty("FASTRELAY_CLIENT_VISITORS")
    if not deny_dial:
        refuse_empty("FASTRELAY_CLIENT_DENY_DIAL")
    if not auth:
        refuse_empty("FASTRELAY_CLIENT_AUTH")
    if not expose and not allow_dial:
        raise UsageError(
            "This client would do nothing: name a service with --expose, or what may be dialled with --allow-dial."
        )
    exposures = [parse_expose(spec) for spec in expose]
    services = [exposure.name for exposure in exposures]
    listed = assign(visitors, services)
    shared = assign_pools(pool, services)
    versions = assign_proxy(proxy_protocol, services)
    logins = assign_logins(auth, services)
    config = credentials.config(
        relay,
        host_name(socket.gethostname()) if name is None else name,
        tuple(
            replace(
                exposure,
                visitors=listed.get(exposure.name),
                pool=exposure.name in shared,
                proxy=versions[exposure.name],
                login=logins.get(exposure.name, b""),
            )
            for exposure in exposures
        ),
        parse_limits(limit, Side.CLIENT),
        Rules.parse(allow_dial, deny_dial),
    )
    run(lambda on_stop: run_client(config, _reachable, on_stop), loop, config.limits.drain_time, audit)


def _reachable(exposure: Exposure, public: Public) -> None:
    if sys.stderr.isatty() and exposure.target.port == 22:
        if public.port:
            say(f"            Try it: ssh -p {public.port} you@{public.host}")
        else:
            say(f"            Try it elsewhere: ssh -o ProxyCommand='fastrelay dial RELAY %h' you@{exposure.name}")
    data(public.url)
