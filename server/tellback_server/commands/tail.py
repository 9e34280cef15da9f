"""`tellback tail CHAT`: watch a chat live, in the terminal."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from tellback_server.commands.exits import FOUND_WRONG, UNREACHABLE, fail
from tellback_server.process import EXIT_INTERRUPTED
from tellback_server.tail import News, TailRefused, TailUnreachable, tail_chat

_STYLES = {
    "new": "green", "message": "dim", "changed": "yellow", "inserted": "cyan", "deleted": "red", "lost": "bold red",
    "reset": "bold red", "behind": "bold yellow",
}


def tail(
    chat: Annotated[str, typer.Argument(help='"character:<character>/<chat>", "group:<chat>" or "id:<chat_id>"')],
    url: Annotated[str, typer.Option(envvar="TELLBACK_URL", help="The server.")] = "ws://127.0.0.1:8765/ws",
    last: Annotated[int, typer.Option(min=0, max=1000, help="Messages to show first.")] = 10,
    wait: Annotated[bool, typer.Option("--wait", help="Where no server is yet, wait for one.")] = False,
) -> None:
    """Watch a chat. A token is taken from TELLBACK_TOKEN, because what stands in a command line is public."""
    console = Console(highlight=False, soft_wrap=True)
    try:
        asyncio.run(_show(console, url, chat, os.environ.get("TELLBACK_TOKEN") or None, last, wait))
    except TailUnreachable as refusal:
        advice = "Start one (`tellback serve --data DIR`, or `tellback demo`), name it with --url, or --wait for it."
        fail(f"{refusal}. {advice}", UNREACHABLE)
    except TailRefused as refusal:
        fail(str(refusal), FOUND_WRONG)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


async def _show(console: Console, url: str, chat: str, token: str | None, last: int, wait: bool) -> None:
    async for news in tail_chat(url, chat, token, last, wait=wait):
        console.print(_line(news))


def _line(news: News) -> Text:
    line = Text(f"{news.what:>9}  ", style=_STYLES.get(news.what, "blue"))
    if news.who:
        line.append(f"{news.who}: ", style="bold")
    line.append(news.text, style="default")
    return line
