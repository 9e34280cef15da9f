"""What the commands share that talk to a server: their options, the conversation, and what goes to stdout.

Rules this module keeps:

- A conversation that cannot be had ends the command with one sentence and its exit code (`exits`).
- What is meant for programs goes to stdout as JSON, an object a line, in UTF-8 whatever the locale.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tellback_server.commands.exits import CONFIGURATION, DATA_LOCKED, FOUND_WRONG, UNREACHABLE, explained, fail
from tellback_server.fs import DirectoryLocked
from tellback_server.process import EXIT_INTERRUPTED
from tellback_server.remote import NoDataFolder, Remote, RemoteRefused, RemoteUnreachable, served

__all__ = ["URL", "ChatName", "Data", "Json", "Url", "asked", "date", "lines", "out", "show"]

Result = TypeVar("Result")

ChatName = Annotated[str, typer.Argument(help='"character:<character>/<chat>", "group:<chat>" or "id:<chat_id>"')]
Url = Annotated[str, typer.Option(envvar="TELLBACK_URL", help="The server. A token is taken from TELLBACK_TOKEN.")]
Data = Annotated[str | None, typer.Option("--data", help="Work on this folder, which nobody serves, instead.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, an object a line.")]
URL: Final = "ws://127.0.0.1:8765/ws"


def asked(work: Callable[[Remote], Awaitable[Result]], url: str, data: str | None) -> Result:
    """Run one conversation; ends the command with a sentence when it cannot be had."""

    folder = None if data is None else os.path.abspath(os.path.expanduser(data))

    async def conversation() -> Result:
        async with served(url, os.environ.get("TELLBACK_TOKEN") or None, folder) as remote:
            return await work(remote)

    with explained():
        try:
            return asyncio.run(conversation())
        except RemoteRefused as refusal:
            fail(str(refusal), FOUND_WRONG)
        except RemoteUnreachable as error:
            advice = "" if data is not None else " Is it running? With --data DIR no server is needed."
            fail(f"{error}{advice}", UNREACHABLE)
        except NoDataFolder as error:
            fail(f"--data: {error}. Name the folder that a server would serve.", CONFIGURATION)
        except DirectoryLocked as error:
            fail(f"{error}: a server has this folder. Ask it, with --url instead of --data.", DATA_LOCKED)
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None


def lines(values: list[Any]) -> None:
    """Each value as JSON, on a line."""
    out(b"".join(msgspec.json.encode(value) + b"\n" for value in values))


def out(data: bytes) -> None:
    """Bytes to stdout."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def show(what: Table | Text) -> None:
    """Something for people."""
    Console(highlight=False, soft_wrap=True).print(what)


def date(when_ms: int) -> str:
    """A moment as people here read it."""
    return datetime.fromtimestamp(when_ms / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M")
