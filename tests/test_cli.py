"""The command line without a relay: help, mistakes, exit codes and sentences. What runs is in tests/e2e."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from fastrelay import __version__, app
from fastrelay.cli import cli, main
from fastrelay.config import ClientConfig
from fastrelay.errors import StartError, UsageError

SECRET = "fr1.k3yID_-0.AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `fastrelay client` and `fastrelay server` would run with; they end at once instead."""
    configs: list[Any] = []

    async def run(config: object, *_: object) -> None:
        configs.append(config)

    monkeypatch.setattr(app, "run_client", run)
    monkeypatch.setattr(app, "run_server", run)
    monkeypatch.setattr("fastrelay.console.set_up_logging", lambda: None)
    monkeypatch.setattr("gc.freeze", lambda: None)
    monkeypatch.setattr("gc.set_threshold", lambda *_: None)
    return configs


def fastrelay(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command that ends by itself."""
    for name in [name for name in os.environ if name.startswith("FASTRELAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "argv", ["fastrelay", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return int(ended.value.code or 0), out, err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((), ("server", "client", "forward", "dial", "list", "demo", "token", "key")),
        (
            ("forward",),
            ("RELAY", "NAME", "LOCAL", "--token-file", "--client-cert", "--pin", "--state", "--limit", "--loop"),
        ),
        (("dial",), ("RELAY", "NAME", "--token-file", "--state", "--loop", "ProxyCommand")),
        (("list",), ("RELAY", "--token-file", "--state", "--loop")),
        (("token", "new"), ("--reach",)),
        (
            ("server",),
            ("--bind", "--ports", "--advertise", "--state", "--cert", "--key", "--plaintext", "--audit", "--loop"),
        ),
        (("server",), ("--client-ca", "--require-client-cert")),
        (("server",), ("--proxy-protocol",)),
        (("client",), ("--pool", "--proxy-protocol")),
        (("client",), ("--client-cert", "--client-key", "--pin")),
        (("token", "new"), ("--client-cert", "--no-token")),
        (("key",), ("prepare", "show", "switch")),
        (
            ("key", "prepare"),
            ("--state",),
        ),
        (
            ("client",),
            ("RELAY", "--expose", "--visitors", "--name", "--token", "--token-file", "--state", "--audit", "--loop"),
        ),
        (("demo",), ("--expose", "--loop")),
        (("token",), ("new", "list", "show", "revoke", "rotate")),
        (
            ("token", "new"),
            ("LABEL", "--ports", "--services", "--names", "--expires", "--max-streams", "--state", "--cert", "--key"),
        ),
        (("client",), ("--allow-dial",)),
        (("token", "new"), ("--dial", "--through")),
        (("socks",), ("RELAY", "CLIENT", "LOCAL", "--token", "--limit")),
        (("token", "rotate"), ("LABEL", "--keep", "--state")),
        (("token", "show"), ("--state", "--cert", "--key")),
    ],
)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(command: tuple[str, ...], words: tuple[str, ...], flag: str) -> None:
    result = CliRunner().invoke(cli, [*command, flag])
    assert result.exit_code == 0
    for word in words:
        assert word in result.output
    assert max(map(len, result.output.splitlines())) <= 80


def test_version(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert fastrelay(capsys, monkeypatch, "--version") == (0, f"fastrelay, version {__version__}\n", "")


# --- options and their variables ----------------------------------------------------------------------------------------

WITHOUT_VARIABLE: dict[str, str] = {
    "fastrelay --version": "images set FASTRELAY_VERSION, and mean something else",
}
"""Options without an environment variable, and why."""

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def options() -> Iterator[tuple[str, click.Option, click.Context]]:
    """Every option of every command, as in `fastrelay token show --state`."""

    def walk(command: click.Command, parent: click.Context | None, name: str) -> Iterator[Any]:
        context = click.Context(command, parent, name, **command.context_settings)
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                yield f"{context.command_path} {parameter.opts[0]}", parameter, context
        if isinstance(command, click.Group):
            for inner in command.commands.values():
                yield from walk(inner, context, str(inner.name))

    return walk(cli, None, "fastrelay")


OPTIONS = {name: (option, context) for name, option, context in options()}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_has_a_variable_or_a_reason(name: str) -> None:
    option, context = OPTIONS[name]
    shown = (option.get_help_record(context) or ("", ""))[1]
    assert option.help, "help says what it is for"
    if name in WITHOUT_VARIABLE:
        assert option.envvar is None and not option.allow_from_autoenv
        return
    variable = option.envvar or f"{context.auto_envvar_prefix}_{option.opts[0].strip('-').replace('-', '_').upper()}"
    assert f"env var: {variable}" in shown, "show_envvar=True, or a reason in WITHOUT_VARIABLE"
    value = "anything" if not option.is_flag else "1"
    assert option.resolve_envvar_value(context) is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(str(variable), value)
        assert option.resolve_envvar_value(context) == value


def test_reasons_are_for_options_that_exist() -> None:
    assert WITHOUT_VARIABLE.keys() <= OPTIONS.keys()


def test_a_variable_that_images_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTRELAY_VERSION", "0.1.0")
    result = CliRunner().invoke(cli, ["server", "--help"])
    assert result.exit_code == 0 and "Run the relay" in result.output


def test_readme_names_what_there_is() -> None:
    said = re.findall(r"`fastrelay ([a-z][^`]*)`", README)
    assert said
    for words in said:
        context = "fastrelay"
        command: click.Command = cli
        for word in words.split():
            if isinstance(command, click.Group):
                context, command = f"{context} {word}", command.commands[word]
            elif word.startswith("--"):
                assert f"{context} {word}" in OPTIONS, words
    variables = {option.envvar for option, _ in OPTIONS.values()} | {"FASTRELAY_RELAY"}
    for variable in re.findall(r"FASTRELAY_[A-Z_]+", README):
        assert variable in variables, variable


README_LINES = [
    line.strip().removeprefix("$ ") for line in re.findall(r"^ {4,}(?:\$ )?fastrelay .*$", README, re.MULTILINE)
]


@pytest.mark.parametrize("line", [line for line in README_LINES if re.match(r"fastrelay [a-z]+( |$)", line)])
def test_readme_shows_what_can_be_typed(
    ran: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str
) -> None:
    for _, context in OPTIONS.values():
        if context.command_path not in ("fastrelay", "fastrelay server", "fastrelay client"):
            monkeypatch.setattr(context.command, "callback", lambda **_: ran.append(None))
    words = shlex.split(re.sub(r"fr1\.\S+", SECRET, line), comments=True)[1:]
    environment = {"FASTRELAY_RELAY": "relay.example", "FASTRELAY_TOKEN": SECRET, "XDG_STATE_HOME": str(tmp_path)}
    result = CliRunner().invoke(cli, words, env=environment)
    assert result.exit_code == 0, result.output
    assert len(ran) == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("frobnicate",), "No such command"),
        (("server", "--frobnicate"), "No such option"),
        (("server", "--ports", "x"), "x"),
        (("server", "--bind", "nonsense:99999"), "99999"),
        (("server", "--plaintext"), "this machine only"),
        (("server", "--cert", "/nowhere.pem"), "--key"),
        (("client",), "RELAY"),
        (("client", "relay.example"), "--expose"),
        (("client", "relay.example"), "--allow-dial"),
        (("client", "relay.example", "--allow-dial", "10.0.0.1/8", "--token", SECRET), "10.0.0.0/8"),
        (("client", "relay.example", "--allow-dial", "", "--token", SECRET), "not the name of a host"),
        (("client", "relay.example", "--allow-dial", "10.0.0.0/8:0", "--token", SECRET), "not a port"),
        (("forward", "relay.example", "home/127.1:22", "--token", SECRET), "home/10.0.0.5:22"),
        (("forward", "relay.example", "home/10.0.0.5", "--token", SECRET), "port"),
        (("dial", "relay.example", "Home/10.0.0.5:22", "--token", SECRET), "name of a client"),
        (("socks", "relay.example", "Not A Name", "--token", SECRET), "Not A Name"),
        (("socks", "relay.example", "home", "nonsense:99999", "--token", SECRET), "99999"),
        (("socks", "relay.example", "home"), "There is no token"),
        (("client", "relay.example", "--expose", "22"), "There is no token"),
        (("client", "relay.example", "--expose", "22", "--token", "nonsense"), "token"),
        (("client", "relay.example", "--expose", "22", "--token-file", "/nowhere"), "/nowhere"),
        (("client", "relay.example", "--expose", "nonsense:", "--token", SECRET), "nonsense"),
        (("client", "tcp://relay.example", "--expose", "22", "--token", SECRET), "tcp://"),
        (("client", "relay.example", "--expose", "22", "--name", "Not A Name", "--token", SECRET), "Not A Name"),
        (("client", "relay.example", "--expose", "22", "--expose", "22", "--token", SECRET), "tcp-22"),
        (
            ("client", "relay.example", "--expose", "22", "--visitors", "ssh=::1", "--token", SECRET),
            "use one of tcp-22",
        ),
        (("client", "relay.example", "--expose", "22", "--visitors", "10.0.0.1/8", "--token", SECRET), "10.0.0.0/8"),
        (("client", "relay.example", "--expose", "22", "--visitors", "", "--token", SECRET), "a network is missing"),
        (("server", "--require-client-cert"), "--client-ca"),
        (("server", "--bind", "127.0.0.1", "--plaintext", "--client-ca", "/nowhere"), "--plaintext or --client-ca"),
        (("client", "relay.example", "--expose", "22", "--client-cert", "/nowhere"), "--client-key"),
        (("client", "relay.example", "--expose", "22", "--client-key", "/nowhere"), "--client-cert"),
        (("client", "relay.example", "--expose", "22", "--pin", "nonsense", "--token", SECRET), "fastrelay key show"),
        (("client", "relay.example", "--expose", "22", "--token", SECRET, *("--pin", "A" * 43) * 3), "two pins"),
        (("client", "tcp://127.0.0.1", "--expose", "22", "--token", SECRET, "--pin", "A" * 43), "plaintext"),
        (
            ("client", "tcp://127.0.0.1", "--expose", "22", "--client-cert", "/c", "--client-key", "/k"),
            "leave out --client-cert",
        ),
        (
            ("client", "relay", "--expose", "22", "--token", "", "--client-cert", "/c", "--client-key", "/k"),
            "The token is empty",
        ),
        (("forward", "relay.example", "no db", "--token", SECRET), "'no db' is not a name"),
        (("forward", "relay.example", "db", "70000", "--token", SECRET), "'70000' is not a port"),
        (("forward", "relay.example", "db", "here:there", "--token", SECRET), "'there' is not a port"),
        (("forward", "-", "db", "--token", SECRET), "set FASTRELAY_RELAY"),
        (("forward", "relay.example", "db"), "There is no token"),
        (("dial", "relay.example", "", "--token", SECRET), "'' is not a name"),
        (("dial", "relay.example"), "NAME"),
        (("list",), "set FASTRELAY_RELAY"),
        (("client", "relay.example", "--expose", "db=private://20022:5432", "--token", SECRET), "no public port"),
        (("demo", "--expose", "-1"), "-1"),
        (("server", "--audit", "-"), "stderr"),
        (("server", "--proxy-protocol", "10.0.0.1/8"), "10.0.0.0/8"),
        (("server", "--proxy-protocol", "v2"), "'v2' is not a network"),
        (("client", "relay.example", "--expose", "web=80", "--pool", "ssh", "--token", SECRET), "use one of web"),
        (("client", "relay.example", "--expose", "22", "--proxy-protocol", "v3", "--token", SECRET), "write v1 or v2"),
        (
            ("client", "relay.example", "--expose", "22", "--proxy-protocol", "web=v2", "--token", SECRET),
            "use one of tcp-22",
        ),
    ],
)
def test_mistakes_are_sentences(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], told: str
) -> None:
    code, out, err = fastrelay(capsys, monkeypatch, *words)
    assert (code, out) == (2, "")
    assert told in err and SECRET.rsplit(".", 1)[1] not in err


def test_what_cannot_start_is_a_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, out, err = fastrelay(capsys, monkeypatch, "token", "show", "--state", str(tmp_path / "none"))
    assert (code, out) == (3, "") and "fastrelay server" in err and err.startswith("Error: ")


def test_an_audit_log_that_cannot_be_is_a_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "audit").touch()
    (tmp_path / "audit").chmod(0o644)
    monkeypatch.setattr("fastrelay.console.set_up_logging", lambda: None)
    for name, told in (("audit", "chmod 600"), ("none/audit", "No such file")):
        code, out, err = fastrelay(capsys, monkeypatch, "server", "--audit", str(tmp_path / name))
        assert (code, out) == (3, "") and told in err and err.startswith("Error: ")


def test_without_uvloop(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from fastrelay.cli.running import loop_factory

    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert loop_factory("auto") is None
    assert loop_factory("asyncio") is None
    with pytest.raises(StartError, match="pip install uvloop"):
        loop_factory("uvloop")


def test_the_token_comes_from_where_it_is_told(ran: list[ClientConfig], tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(SECRET + "\n")
    words = ["client", "relay.example", "--expose", "22", "--loop", "asyncio"]
    for arguments, environment in (
        (["--token", SECRET], {}),
        (["--token-file", str(file)], {}),
        ([], {"FASTRELAY_TOKEN": SECRET}),
        ([], {"FASTRELAY_TOKEN_FILE": str(file)}),
    ):
        result = CliRunner().invoke(cli, [*words, *arguments], env=environment)
        assert result.exit_code == 0, result.output
    assert [config.token.strip() for config in ran] == [SECRET] * 4


@pytest.mark.parametrize(
    ("arguments", "environment", "ssh", "web"),
    [
        ([], {}, None, None),
        (["--visitors", "192.0.2.7"], {}, "192.0.2.7/32", "192.0.2.7/32"),
        (["--visitors", "::1", "--visitors", "ssh=10.0.0.0/8,192.0.2.7"], {}, "10.0.0.0/8, 192.0.2.7/32", "::1/128"),
        ([], {"FASTRELAY_CLIENT_VISITORS": "ssh=10.0.0.0/8 ssh=::1"}, "10.0.0.0/8, ::1/128", None),
        (["--visitors", "::1"], {"FASTRELAY_CLIENT_VISITORS": "10.0.0.0/8"}, "::1/128", "::1/128"),
    ],
)
def test_who_may_visit(
    ran: list[ClientConfig], arguments: list[str], environment: dict[str, str], ssh: str | None, web: str | None
) -> None:
    words = ["client", "relay.example", "--expose", "ssh=22", "--expose", "web=80", "--token", SECRET]
    result = CliRunner().invoke(cli, [*words, "--loop", "asyncio", *arguments], env=environment)
    assert result.exit_code == 0, result.output
    found = {exposure.name: exposure.visitors for exposure in ran[0].exposures}
    assert {name: None if visitors is None else str(visitors) for name, visitors in found.items()} == {
        "ssh": ssh,
        "web": web,
    }


@pytest.mark.parametrize(
    ("arguments", "environment", "pools", "versions"),
    [
        ([], {}, [], [0, 0]),
        (["--pool", "web", "--proxy-protocol", "v2"], {}, ["web"], [2, 2]),
        (["--pool", "web,ssh", "--proxy-protocol", "v2", "--proxy-protocol", "ssh=off"], {}, ["ssh", "web"], [0, 2]),
        (["--pool", "web", "--pool", "ssh", "--proxy-protocol", "web=v1"], {}, ["ssh", "web"], [0, 1]),
        ([], {"FASTRELAY_CLIENT_POOL": "ssh", "FASTRELAY_CLIENT_PROXY_PROTOCOL": "v1 web=v2"}, ["ssh"], [1, 2]),
    ],
)
def test_what_is_shared_and_told(
    ran: list[ClientConfig], arguments: list[str], environment: dict[str, str], pools: list[str], versions: list[int]
) -> None:
    words = ["client", "relay.example", "--expose", "ssh=22", "--expose", "web=80", "--token", SECRET]
    result = CliRunner().invoke(cli, [*words, "--loop", "asyncio", *arguments], env=environment)
    assert result.exit_code == 0, result.output
    assert [exposure.name for exposure in ran[0].exposures if exposure.pool] == pools
    assert [exposure.proxy for exposure in ran[0].exposures] == versions


def test_load_balancers(ran: list[Any]) -> None:
    for arguments, environment, balancers in (
        ([], {}, None),
        (
            ["--proxy-protocol", "10.0.0.0/8,192.0.2.7", "--proxy-protocol", "::1"],
            {},
            "10.0.0.0/8, 192.0.2.7/32, ::1/128",
        ),
        ([], {"FASTRELAY_SERVER_PROXY_PROTOCOL": "10.0.0.0/8 ::1"}, "10.0.0.0/8, ::1/128"),
    ):
        result = CliRunner().invoke(cli, ["server", "--loop", "asyncio", *arguments], env=environment)
        assert result.exit_code == 0, result.output
        found = ran.pop().balancers
        assert (None if found is None else str(found)) == balancers


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FASTRELAY_CLIENT_VISITORS", ""),
        ("FASTRELAY_CLIENT_VISITORS", " "),
        ("FASTRELAY_SERVER_CLIENT_CA", ""),
        ("FASTRELAY_SERVER_REQUIRE_CLIENT_CERT", ""),
        ("FASTRELAY_SERVER_REQUIRE_CLIENT_CERT", " "),
        ("FASTRELAY_SERVER_PROXY_PROTOCOL", ""),
    ],
)
def test_an_empty_variable_lets_nobody_in(ran: list[Any], name: str, value: str) -> None:
    words = ["server"] if "SERVER" in name else ["client", "relay.example", "--expose", "22", "--token", SECRET]
    result = CliRunner().invoke(cli, words, env={name: value})
    assert isinstance(result.exception, UsageError) and not ran
    assert str(result.exception).startswith(f"{name} is set but empty")


@pytest.mark.parametrize(
    ("arguments", "environment", "streams", "drain"),
    [
        ([], {}, 65_535, 30.0),
        (["--limit", "streams=7", "--limit", "drain-time=2m"], {}, 7, 120.0),
        ([], {"FASTRELAY_SERVER_LIMIT": "streams=7 drain-time=2m"}, 7, 120.0),
        (["--limit", "streams=8"], {"FASTRELAY_SERVER_LIMIT": "streams=7"}, 8, 30.0),
    ],
)
def test_limits_are_options_and_variables(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], environment: dict[str, str], streams: int, drain: float
) -> None:
    from fastrelay import app
    from fastrelay.config import ServerConfig

    seen: list[ServerConfig] = []

    async def run_server(config: ServerConfig, *_: object) -> None:
        seen.append(config)

    monkeypatch.setattr(app, "run_server", run_server)
    monkeypatch.setattr("fastrelay.console.set_up_logging", lambda: None)
    monkeypatch.setattr("gc.freeze", lambda: None)
    monkeypatch.setattr("gc.set_threshold", lambda *_: None)
    result = CliRunner().invoke(cli, ["server", "--loop", "asyncio", *arguments], env=environment)
    assert result.exit_code == 0, result.output
    assert [(one.limits.streams, one.limits.drain_time) for one in seen] == [(streams, drain)]


@pytest.mark.parametrize("command", ["server", "client"])
def test_help_lists_the_limits(command: str) -> None:
    from fastrelay.limits import SETTINGS, Side

    shown = CliRunner().invoke(cli, [command, "--help"]).output
    side = Side.RELAY if command == "server" else Side.CLIENT
    for name, one in SETTINGS.items():
        assert (f"\n  {name}=" in shown) is one.of(side), name


def test_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "fastrelay", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"fastrelay, version {__version__}\n"
