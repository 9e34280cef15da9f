"""`tellback generations`: list, show, follow and cancel replies that are being written, for people and scripts."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Annotated, Any, Final

import msgspec
import typer
from msgspec import UNSET, Raw, UnsetType
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tellback_protocol import swipes
from tellback_protocol.catalog_frames import ChatListFrame
from tellback_protocol.frames import Ack, ListedGeneration, Opened, StateFrame
from tellback_protocol.generation_requests import GenerationCancel
from tellback_protocol.generations import NAMESPACE, Generation, entry_of, generations_of
from tellback_protocol.requests import ChatList, OwnerName, StateGet
from tellback_protocol.values import loads
from tellback_server.commands.conversation import URL, ChatName, Data, Json, Url, asked, date, lines
from tellback_server.commands.conversation import show as display
from tellback_server.commands.exits import CONFIGURATION, FOUND_WRONG, fail
from tellback_server.logging_setup import escaped, escaped_lines
from tellback_server.process import EXIT_INTERRUPTED
from tellback_server.remote import Remote, RemoteRefused, RemoteUnreachable, served
from tellback_server.tail import TailRefused, tail_chat

app = typer.Typer(no_args_is_help=True, help="Look at replies that are being written, and stop them.")

CHATS_MAX: Final = 100
ID_CHARACTERS: Final = 12
"""Of an id in a table; its beginning is enough to name it."""
STYLES: Final = {"running": "magenta", "stored": "green", "failed": "red", "orphaned": "yellow", "cancelled": "yellow"}

Id = Annotated[str | None, typer.Argument(
    metavar="[GENERATION]", help="Its id, or the beginning of it. Without it the one that runs, else the last one."
)]


class _Told(msgspec.Struct, omit_defaults=True):
    """One generation, for programs."""

    chat: str
    chat_id: str
    """Empty in lists: a chat is not opened for them."""
    generation: str
    entry: Any
    text: str | UnsetType = UNSET
    """The text so far, or what the chat holds of it."""
    reasoning: str | UnsetType = UNSET


@app.command("list")
def list_generations(
    chat: Annotated[str | None, typer.Argument(help="Only this chat's.")] = None,
    running: Annotated[bool, typer.Option("--running", help="Only those that run.")] = False,
    chats: Annotated[int, typer.Option(min=1, help="Without a chat: look at so many, those changed last.")] = CHATS_MAX,
    as_json: Json = False,
    url: Url = URL,
    data: Data = None,
) -> None:
    """Replies of a chat, or of the chats changed last, those that run first. Of those that ended a chat keeps the
    newest 32.
    """

    async def work(remote: Remote) -> list[_Told]:
        found: list[_Told] = []
        for name in [chat] if chat is not None else await _changed_last(remote, chats):
            chat_id, known = await _known(remote, name)
            found += [_Told(name, chat_id, one_id, entry_of(one)) for one_id, one in known.items()
                      if one.state == "running" or not running]
        return sorted(found, key=lambda told: (told.entry["state"] != "running", -told.entry["started_ms"]))

    found = asked(work, url, data)
    if as_json:
        lines(found)
    elif found:
        _show_table(found)


@app.command()
def show(
    chat: ChatName,
    generation: Id = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until it has ended.")] = False,
    as_json: Json = False,
    url: Url = URL,
    data: Data = None,
) -> None:
    """The text of a reply: as far as it is written, or as the chat holds it."""
    if follow and (as_json or data is not None):
        fail("--follow shows text as a server gets it: it goes with neither --json nor --data.", CONFIGURATION)
    if follow:
        _follow(chat, generation, url)
        return
    told = asked(lambda remote: _look(remote, chat, generation), url, data)
    if as_json:
        lines([told])
        return
    state = told.entry["state"]
    heading = Text(f"{escaped(told.chat)}  {told.generation}  ", style="dim")
    heading.append(f"{state}\n", style=STYLES[state])
    error = told.entry.get("error")
    if error:
        heading.append(f"{escaped(error['code'])}: {escaped(error['message'], 2000)}\n", style="red")
    for text, style in ((told.reasoning, "dim italic"), (told.text, "")):
        if isinstance(text, str) and text:
            heading.append("\n" + escaped_lines(text) + "\n", style=style)
    display(heading)


@app.command()
def cancel(chat: ChatName, generation: Id = None, as_json: Json = False, url: Url = URL, data: Data = None) -> None:
    """Stop a reply, whoever writes it; what there is of its text is stored."""

    async def work(remote: Remote) -> Ack:
        opened = await remote.open(chat, 0)
        _chat_id, known = await _known(remote, chat)
        one_id, entry = _named(known, generation)
        if entry.state != "running":
            raise RemoteRefused("generation-ended", f"This generation has ended: {entry.state}.")
        return await remote.ask(GenerationCancel(f"id:{opened.chat_id}", one_id, op=opened.next_op), Ack)

    ack = asked(work, url, data)
    stored = ack.stored is True
    if as_json:
        lines([{"generation": ack.generation, "message": ack.message if stored else None, "state": ack.state,
                "stored": stored}])
        return
    kept = f"what there was is message {escaped(str(ack.message))}" if stored else "there was no text"
    display(Text(f"{ack.state}: {escaped(str(ack.generation))}  {kept}"))


# -- following -------------------------------------------------------------------------------------------------------


def _follow(chat: str, generation: str | None, url: str) -> None:
    """Text to stdout as it comes, through lost connections; what became of it to stderr."""
    told = asked(lambda remote: _look(remote, chat, generation), url, None)
    try:
        ending = asyncio.run(_followed(told, url))
    except TailRefused as refusal:
        fail(str(refusal), FOUND_WRONG)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(f"tellback: {ending}"))


async def _followed(told: _Told, url: str) -> str:
    """Write the text of one that may run, until it has ended; how it did."""
    token = os.environ.get("TELLBACK_TOKEN") or None
    written = ""
    async for news in tail_chat(url, f"id:{told.chat_id}", token, 0):
        growth = news.growth
        if growth is not None and growth.generation == told.generation:
            written = growth.text if growth.is_first else written + growth.text
            _write(news.text)
            has_ended = growth.is_last
        else:
            # Where the chat was opened anew, its end may have been missed.
            has_ended = news.what == "opened"
        if not has_ended:
            continue
        try:
            async with served(url, token, None) as remote:
                now = await _look(remote, told.chat, told.generation)
        except RemoteUnreachable:
            continue
        if now.entry["state"] != "running":
            whole = now.text if isinstance(now.text, str) else ""
            _write(escaped_lines(whole[len(written) :] if whole.startswith(written) else f"\n{whole}") + "\n")
            error = now.entry.get("error")
            return f"{now.entry['state']}: {escaped(error['message'], 2000)}" if error else str(now.entry["state"])
    raise AssertionError("tail ends with an exception")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


# -- asking ----------------------------------------------------------------------------------------------------------


async def _look(remote: Remote, chat: str, generation: str | None) -> _Told:
    """One generation with its text."""
    opened = await remote.open(chat)
    chat_id, known = await _known(remote, chat, opened)
    one_id, entry = _named(known, generation)
    listed = next((one for one in opened.generations if one.id == one_id), None)
    text, reasoning = _texts(opened, entry, listed)
    return _Told(str(opened.chat), chat_id, one_id, entry_of(entry), text, reasoning)


async def _changed_last(remote: Remote, count: int) -> list[str]:
    page = await remote.ask(ChatList(limit=min(count, 1000)), ChatListFrame)
    return [found.chat for found in page.chats]


async def _known(remote: Remote, chat: str, opened: Opened | None = None) -> tuple[str, dict[str, Generation]]:
    """The chat's id, and what its document tells of generations, oldest first."""
    frame = await remote.ask(StateGet(OwnerName(chat=chat), [NAMESPACE]), StateFrame)
    value = frame.states[NAMESPACE]
    chat_id = opened.chat_id if opened is not None and isinstance(opened.chat_id, str) else ""
    return chat_id, generations_of(bytes(value.data)) if value is not None and isinstance(value.data, Raw) else {}


def _named(known: dict[str, Generation], wanted: str | None) -> tuple[str, Generation]:
    """The one that is meant. Raises: RemoteRefused."""
    running = [one_id for one_id, one in known.items() if one.state == "running"]
    if wanted is not None:
        found = [wanted] if wanted in known else [one_id for one_id in known if one_id.startswith(wanted)]
    else:
        found = running or list(known)[-1:]
    if len(found) == 1:
        return found[0], known[found[0]]
    if not found:
        what = "no generations" if wanted is None else f"no generation {wanted[:64]!r}"
        raise RemoteRefused("generation-unknown", f"The chat has {what}.")
    raise RemoteRefused("generation-unknown", f"Which one? {', '.join(found)}")


def _texts(
    opened: Opened, entry: Generation, listed: ListedGeneration | None
) -> tuple[str | UnsetType, str | UnsetType]:
    """Text and reasoning: as they are written, or of the message that holds them."""
    if entry.state == "running":
        return (UNSET, UNSET) if listed is None else (listed.text, listed.reasoning)
    messages = opened.messages if isinstance(opened.messages, list) and entry.is_stored else []
    for value in map(loads, map(bytes, messages)):
        if value["id"] == entry.message:
            text, reasoning = swipes.said(value, entry.swipe if isinstance(entry.swipe, int) else None)
            return UNSET if text is None else text, UNSET if reasoning is None else reasoning
    return UNSET, UNSET


# -- telling ---------------------------------------------------------------------------------------------------------


def _show_table(found: list[_Told]) -> None:
    table = Table("generation", "state", "started", "by", "target", "chat", box=None, pad_edge=False)
    for told in found:
        entry = told.entry
        state = entry["state"]
        by = escaped(entry.get("upstream") or entry["by"], ID_CHARACTERS)
        table.add_row(
            escaped(told.generation, 64), Text(state, style=STYLES[state]), date(entry["started_ms"]), by,
            entry["target"].get("kind", "message"), Text(escaped(told.chat, 2000), style="bold"),
        )
    for column in table.columns:
        column.no_wrap = True
    Console(highlight=False, soft_wrap=True, width=4000).print(table)
