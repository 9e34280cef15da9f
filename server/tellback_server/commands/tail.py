"""`tellback tail CHAT`: watch a chat live, in the terminal."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from tellback_server.commands.exits import FOUND_WRONG, UNREACHABLE, fail
from tellback_server.live_texts import Growth
from tellback_server.process import EXIT_INTERRUPTED
from tellback_server.tail import News, TailRefused, TailUnreachable, tail_chat

_STYLES = {
    "new": "green", "message": "dim", "changed": "yellow", "inserted": "cyan", "deleted": "red", "lost": "bold red",
    "reset": "bold red", "behind": "bold yellow", "writing": "magenta", "stored": "green", "failed": "bold red",
    "orphaned": "bold yellow", "cancelled": "yellow",
}


def tail(
    chat: Annotated[str, typer.Argument(help='"character:<character>/<chat>", "group:<chat>" or "id:<chat_id>"')],
    url: Annotated[str, typer.Option(envvar="TELLBACK_URL", help="The server.")] = "ws://127.0.0.1:8765/ws",
    last: Annotated[int, typer.Option(min=0, max=1000, help="Messages to show first.")] = 10,
    wait: Annotated[bool, typer.Option("--wait", help="Where no server is yet, wait for one.")] = False,
) -> None:
    """Watch a chat, and replies as they are written: on a terminal letter by letter, in a pipe by whole lines.

    A token is taken from TELLBACK_TOKEN, because what stands in a command line is public.
    """
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
    teller = Teller(console)
    try:
        async for news in tail_chat(url, chat, token, last, wait=wait):
            teller.tell(news)
    finally:
        teller.end()


class Teller:
    """Writes news to a console: a reply is one line that grows on a terminal, and whole lines in a pipe."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._growing: str | None = None
        """The generation whose text is the end of the last line, which has no end yet."""
        self._unfinished: dict[str, News] = {}
        """In a pipe: the beginning of a line, by generation."""

    def tell(self, news: News) -> None:
        """One piece of news."""
        if news.growth is None:
            self._end_line()
            if not (news.was_read and self._console.is_terminal):
                self._console.print(_line(news))
        elif self._console.is_terminal:
            self._grow(news, news.growth)
        else:
            self._grow_by_lines(news, news.growth)

    def end(self) -> None:
        """Nothing more comes."""
        self._end_line()
        for rest in self._unfinished.values():
            self._console.print(_line(rest))

    def _end_line(self) -> None:
        if self._growing is not None:
            self._console.print()
            self._growing = None

    def _grow(self, news: News, growth: Growth) -> None:
        if self._growing != growth.generation:
            self._end_line()
            if growth.is_last:
                return
            self._console.print(_line(News("writing", "" if growth.is_first else "\u2026", news.who)), end="")
            self._growing = growth.generation
        self._console.print(Text(news.text), end="")
        if growth.is_last:
            self._end_line()

    def _grow_by_lines(self, news: News, growth: Growth) -> None:
        before = self._unfinished.pop(growth.generation, None)
        *whole, rest = ((before.text if before is not None else "") + news.text).split("\n")
        if growth.is_last and rest:
            whole.append(rest)
            rest = ""
        for line in whole:
            self._console.print(_line(News("writing", line, news.who)))
        if rest:
            self._unfinished[growth.generation] = News("writing", rest, news.who)


def _line(news: News) -> Text:
    line = Text(f"{news.what:>9}  ", style=_STYLES.get(news.what, "blue"))
    if news.who:
        line.append(f"{news.who}: ", style="bold")
    line.append(news.text, style="default")
    return line
