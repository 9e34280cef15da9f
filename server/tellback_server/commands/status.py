"""`tellback status`: how a running server is, and each of its stores. Exit code 1 when it takes no writes."""

from __future__ import annotations

import http.client
import sys
from typing import Annotated, Final
from urllib.parse import urlsplit

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from tellback_server.commands.conversation import URL, Url
from tellback_server.commands.exits import CONFIGURATION, FOUND_WRONG, UNREACHABLE, fail
from tellback_server.commands.showing import size_text, table
from tellback_server.status import Status

TIMEOUT_S: Final = 10.0
_STYLES: Final = {"up": "green", "resync": "yellow", "behind": "yellow", "away": "bold red"}


def status(
    url: Url = URL, as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False
) -> None:
    """How a running server is: whether it takes writes, and how far each store is behind."""
    body = _asked(url)
    try:
        found = msgspec.json.decode(body, type=Status)
    except msgspec.MsgspecError:
        fail(f"what answers at {url} is no tellback server, or of another version.", UNREACHABLE)
    if as_json:
        sys.stdout.write(body.decode() + "\n")
    else:
        _show(found)
    if not found.ready:
        raise typer.Exit(FOUND_WRONG)


def _asked(url: str) -> bytes:
    """The answer to GET /statusz of the server that has this address."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or parts.scheme not in ("ws", "wss", "http", "https"):
        fail(f"--url: {url!r} is no address; write it as ws://127.0.0.1:8765/ws.", CONFIGURATION)
    kind = http.client.HTTPSConnection if parts.scheme in ("wss", "https") else http.client.HTTPConnection
    connection = kind(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/statusz")
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        fail(f"{url} cannot be reached: {error}.", UNREACHABLE)
    finally:
        connection.close()
    if answer.status != 200:
        fail(f"{url} answers {answer.status}: it is no tellback server, or does not talk to you.", UNREACHABLE)
    return body


def _show(found: Status) -> None:
    state = Text("takes writes", style="green") if found.ready else Text("takes no writes", style="bold red")
    if found.state:
        state.append(f"; {found.state}", style="yellow")
    Console(highlight=False, soft_wrap=True).print(Text(f"{found.server}: ").append_text(state))
    rows: list[tuple[str | Text, ...]] = [
        ("connections", str(found.connections)), ("chats in memory", str(found.chats)),
        ("log segments", str(found.log_segments)), ("checkpoint lag", f"{found.checkpoint_lag_s:.1f} s"),
    ]
    table(("what", "now"), rows)
    if found.stores:
        heads = ("store", "kind", "state", "lag", "pending", "log kept", "failed calls")
        table(heads, [
            (
                one.store, one.kind, Text(one.state, style=_STYLES[one.state]), f"{one.lag_s:.1f} s",
                str(one.pending_entries), size_text(one.pending_bytes), str(one.failures),
            )
            for one in found.stores
        ])
