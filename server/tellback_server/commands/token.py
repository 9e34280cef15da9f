"""`tellback token new USER`: make a token for a user and write its hash into the token file."""

from __future__ import annotations

import datetime
import json
import os
import re
from typing import Annotated

import typer

from tellback_protocol.ids import new_name_problem
from tellback_server.auth import new_token, parse_token_file, token_digest
from tellback_server.clock import Clock
from tellback_server.commands.exits import CONFIGURATION, explained, fail
from tellback_server.fs import Fs

app = typer.Typer(no_args_is_help=True, help="Tokens of users.")

_UNITS_S = {"h": 3600, "d": 86_400, "w": 604_800}


@app.callback()
def tokens() -> None:
    """Tokens of users."""


@app.command("new")
def new(
    user: Annotated[str, typer.Argument(help="Whose token it is; also the name of the user's folder.")],
    auth_file: Annotated[str, typer.Option(envvar="TELLBACK_AUTH_FILE", help="TOML or JSON; made when missing.")],
    expires: Annotated[str | None, typer.Option(help="12h, 30d or 8w from now; without it, never.")] = None,
    label: Annotated[str, typer.Option(help="For people: which device it is for.")] = "",
) -> None:
    """Make a token. It is shown once, on stdout; the file only gets its hash."""
    problem = new_name_problem(user)
    if problem:
        fail(f"{user!r} cannot be a user: {problem}.", CONFIGURATION)
    clock, fs, path = Clock(), Fs(), os.path.abspath(os.path.expanduser(auth_file))
    now = datetime.datetime.fromtimestamp(clock.now_ms() // 1000, datetime.UTC)
    token = new_token()
    entry = {"user": user, "sha256": token_digest(token), "created": _zulu(now)}
    if label:
        entry["label"] = label
    if expires is not None:
        entry["expires"] = _zulu(now + _span(expires))
    with explained():
        os.umask(0o077)
        standing = fs.stat(path)
        old = fs.read(path) if standing is not None else b""
        data = _with_entry(path, old, entry)
        parse_token_file(path, data)
        fs.make_directories(os.path.dirname(path))
        fs.write_atomically(path, data, keep_mode_of=standing)
    typer.echo(token)
    typer.echo(f"Written to {path}. Give the token to {user}; nobody can read it from the file.", err=True)


def _with_entry(path: str, old: bytes, entry: dict[str, str]) -> bytes:
    """The file with one more token; what stands in it, comments too, stays."""
    entries = parse_token_file(path, old) if old.strip() else []
    if path.endswith(".json"):
        value = json.loads(old) if entries else {}
        value["tokens"] = [*value.get("tokens", []), entry]
        return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"
    # A JSON string without surrogates and DEL is a TOML basic string, and names and times hold neither.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in entry.items()]
    separator = b"" if not old else b"\n" if old.endswith(b"\n") else b"\n\n"
    return old + separator + "\n".join(["[[tokens]]", *lines, ""]).encode()


def _span(text: str) -> datetime.timedelta:
    match = re.fullmatch(r"([1-9][0-9]{0,4})([hdw])", text)
    if match is None:
        fail(f"--expires: {text!r} is no span of time; write 12h, 30d or 8w.", CONFIGURATION)
    return datetime.timedelta(seconds=int(match[1]) * _UNITS_S[match[2]])


def _zulu(moment: datetime.datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
