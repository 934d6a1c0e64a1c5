"""Options of `fastrelay server` for its HTTP front."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

_OPTIONS = (
    click.option(
        "--http",
        metavar="HOST:PORT",
        show_envvar=True,
        help="Serve HTTP there, as in :80: services that clients expose as http://, under --domain, and this relay's /healthz. "
        "With --behind-proxy it may be the address of --bind.",
    ),
    click.option(
        "--https",
        metavar="HOST:PORT",
        show_envvar=True,
        help="The same under TLS, as in :443; with --http-cert. It may be the address of --bind.",
    ),
    click.option(
        "--http-cert",
        type=click.Path(path_type=Path),
        show_envvar=True,
        help="TLS certificate chain (PEM) of --https, for *.DOMAIN; renewed files are taken in.",
    ),
    click.option("--http-key", type=click.Path(path_type=Path), show_envvar=True, help="The key of --http-cert (PEM)."),
    click.option(
        "--domain",
        default="",
        metavar="DOMAIN",
        show_envvar=True,
        help="An HTTP service NAME answers at NAME.DOMAIN. Point *.DOMAIN to this machine in DNS.",
    ),
)


def web_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def web_config(
    http: str | None, https: str | None, http_cert: Path | None, http_key: Path | None, domain: str
) -> dict[str, Any]:
    """What they say, as members of ServerConfig. Raises UsageError."""
    from fastrelay.config import parse_bind, parse_host

    return {
        "http": parse_bind(http, 80) if http else None,
        "https": parse_bind(https, 443) if https else None,
        "http_cert": http_cert,
        "http_key": http_key,
        "domain": parse_host(domain.removesuffix(".")) if domain else "",
    }
