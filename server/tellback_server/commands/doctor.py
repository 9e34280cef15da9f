"""`tellback doctor DIR`: is this folder, disk and machine fit for the server?"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tellback_server.clock import Clock
from tellback_server.commands.exits import FOUND_WRONG, explained
from tellback_server.doctor import Check, check_all
from tellback_server.fs import Fs
from tellback_server.logging_setup import escaped

_STYLES = {"good": "green", "warning": "yellow", "wrong": "bold red"}


def doctor(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="The data folder.")],
    host: Annotated[str, typer.Option(envvar="TELLBACK_HOST", help="The address you mean to bind.")] = "127.0.0.1",
    auth_file: Annotated[str | None, typer.Option(envvar="TELLBACK_AUTH_FILE", help="The token file you use.")] = None,
    jwt_key_file: Annotated[str | None, typer.Option(envvar="TELLBACK_JWT_KEY_FILE", help="The key you use.")] = None,
    store: Annotated[str, typer.Option(envvar="TELLBACK_STORE", help="The store you use.")] = "files",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Check a folder, its disk and this machine. Exit code 1 when something is wrong."""
    path = os.path.abspath(os.path.expanduser(directory))
    has_users = auth_file is not None or jwt_key_file is not None
    with explained():
        checks = list(check_all(Fs(), Clock(), path, host=host, has_users=has_users, store=store))
    is_fit = all(check.state != "wrong" for check in checks)
    if as_json:
        sys.stdout.write(msgspec.json.encode({"directory": path, "fit": is_fit, "checks": checks}).decode() + "\n")
    else:
        _show(path, checks)
    if not is_fit:
        raise typer.Exit(FOUND_WRONG)


def _show(path: str, checks: list[Check]) -> None:
    table = Table("check", "state", "found", "advice", title=f"tellback doctor {escaped(path)}", title_justify="left")
    for check in checks:
        state = Text(check.state, style=_STYLES[check.state])
        table.add_row(Text(check.name), state, Text(escaped(check.found)), Text(escaped(check.advice)))
    Console(highlight=False).print(table)
