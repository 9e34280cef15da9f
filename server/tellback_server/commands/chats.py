"""`tellback chats`: list, show, search, export, rename, delete, restore and branch chats, for people and scripts."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
import typer
from msgspec import UNSET, UnsetType
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tellback_protocol.catalog_frames import ChatListFrame, ChatSearchFrame, FoundMessage, ListedChat
from tellback_protocol.effects import RenamedEffect
from tellback_protocol.frames import Ack
from tellback_protocol.requests import ChatBranch, ChatDelete, ChatList, ChatRename, ChatRestore, ChatSearch
from tellback_protocol.values import dumps, loads
from tellback_server.commands.conversation import URL, ChatName, Data, Json, Url, asked, date, lines, out
from tellback_server.commands.conversation import show as display
from tellback_server.commands.exits import FOUND_WRONG
from tellback_server.commands.showing import said, speaker
from tellback_server.logging_setup import escaped
from tellback_server.remote import Remote, RemoteRefused

app = typer.Typer(no_args_is_help=True, help="Look at chats and manage them, on a running server or in a folder.")

TEXT_CHARACTERS_MAX: Final = 2000
PREVIEW_CHARACTERS: Final = 60
PREVIEW_CELLS_MIN: Final = 12
"""With less room a table does without the last message."""
ADDRESS_CHARACTERS_MAX: Final = 2000
COLUMN_GAP: Final = 2

Character = Annotated[str | None, typer.Option(help="Only this character's chats.")]
Group = Annotated[str | None, typer.Option(help='Only chats of the group with this id; "*" for all group chats.')]


@app.command("list")
def list_chats(
    character: Character = None,
    group: Group = None,
    deleted: Annotated[bool, typer.Option(help="What is in the trash instead.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many; all without it.")] = None,
    as_json: Json = False,
    url: Url = URL,
    data: Data = None,
) -> None:
    """Chats, the one changed last first."""

    async def work(remote: Remote) -> list[ListedChat]:
        found: dict[tuple[str, object], ListedChat] = {}
        cursor: str | None = None
        while True:
            size = 1000 if limit is None else min(1000, limit - len(found))
            request = ChatList(_given(character), _given(group), deleted, size, cursor)
            page = await remote.ask(request, ChatListFrame)
            for chat in page.chats:
                found.setdefault((chat.chat, chat.deleted_ms), chat)
            cursor = page.cursor
            if cursor is None or (limit is not None and len(found) >= limit):
                return list(found.values())

    chats = asked(work, url, data)
    if as_json:
        lines(chats)
        return
    _show_table(chats, deleted)


@app.command()
def show(
    chat: ChatName,
    last: Annotated[int | None, typer.Option(min=1, help="Only the last so many messages.")] = None,
    as_json: Json = False,
    url: Url = URL,
    data: Data = None,
) -> None:
    """A chat's messages."""
    opened = asked(lambda remote: remote.open(chat, last), url, data)
    messages = opened.messages if isinstance(opened.messages, list) else []
    if as_json:
        for raw in messages:
            out(bytes(raw) + b"\n")
        return
    first = opened.first if isinstance(opened.first, int) else 0
    count = opened.count if isinstance(opened.count, int) else len(messages)
    body = Text(f"{escaped(str(opened.chat))}  id:{opened.chat_id}  {count} messages\n", style="dim")
    for index, raw in enumerate(messages, first):
        message = loads(bytes(raw))
        body.append(f"\n#{index} ", style="dim")
        body.append(f"{escaped(speaker(message), 64)}\n", style="bold")
        body.append("\n".join(escaped(line, TEXT_CHARACTERS_MAX) for line in _said(message).split("\n")) + "\n")
    if opened.read_only is True:
        body.append("\nThis chat is damaged and served read-only.\n", style="bold red")
    display(body)


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="Words; a message is found when it holds all of them.")],
    character: Character = None,
    group: Group = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: Json = False,
    url: Url = URL,
    data: Data = None,
) -> None:
    """Find messages in all chats, whatever the case. Exit code 1 when there is none."""

    async def work(remote: Remote) -> list[FoundMessage]:
        found: list[FoundMessage] = []
        cursor: str | None = None
        while True:
            request = ChatSearch(query, _given(character), _given(group), min(200, limit - len(found)), cursor)
            page = await remote.ask(request, ChatSearchFrame)
            found += page.found
            cursor = page.cursor
            if cursor is None or len(found) >= limit:
                return found

    found = asked(work, url, data)
    if as_json:
        lines(found)
    else:
        for hit in found:
            line = Text(escaped(hit.chat), style="bold")
            line.append(f" #{hit.index}\n  " if isinstance(hit.index, int) else " (name)\n  ", style="dim")
            line.append_text(_marked(hit))
            display(line)
    if not found:
        raise typer.Exit(FOUND_WRONG)


@app.command()
def export(
    chat: ChatName,
    form: Annotated[Literal["jsonl", "text"], typer.Option("--format", help="SillyTavern's lines, or text.")] = "jsonl",
    url: Url = URL,
    data: Data = None,
) -> None:
    """Write a whole chat to stdout, as SillyTavern reads it or as text. Hidden messages are left out of the text.

    The first line is the file's header with the metadata of now; a file without one gets one here.
    """
    opened = asked(lambda remote: remote.open(chat, header=form == "jsonl"), url, data)
    messages = opened.messages if isinstance(opened.messages, list) else []
    if form == "text":
        shown = [message for message in map(loads, map(bytes, messages)) if message.get("is_system") is not True]
        blocks = [f"{speaker(message)}: {_said(message, as_shown=True)}\n" for message in shown]
        out("\n".join(blocks).encode("utf-8", "replace"))
        return
    metadata = loads(bytes(opened.metadata)) if not isinstance(opened.metadata, UnsetType) else {}
    header = bytes(opened.header) if not isinstance(opened.header, UnsetType) else dumps({
        "user_name": "unused", "character_name": "unused", "version": "1.0", "chat_id": opened.chat_id,
        "chat_metadata": metadata,
    })
    out(b"\n".join([header, *map(bytes, messages)]) + b"\n")


@app.command()
def rename(
    chat: ChatName,
    to: Annotated[str, typer.Argument(help="The new name alone.")],
    as_json: Json = False,
    url: Url = URL,
    data: Data = None,
) -> None:
    """Give a chat another name; its state and open tabs follow."""

    async def work(remote: Remote) -> _Told:
        opened = await remote.open(chat, 0)
        request = ChatRename(f"id:{opened.chat_id}", to, op=opened.next_op, base="*")
        return _Told.of(await remote.ask(request, Ack), chat, opened.chat_id)

    _tell("renamed", asked(work, url, data), as_json)


@app.command()
def delete(chat: ChatName, as_json: Json = False, url: Url = URL, data: Data = None) -> None:
    """Put a chat into the trash, with everything it owns. `restore` brings it back."""

    async def work(remote: Remote) -> _Told:
        opened = await remote.open(chat, 0)
        assert not isinstance(opened.version, UnsetType), "a chat has a version"
        request = ChatDelete(f"id:{opened.chat_id}", op=opened.next_op, base=opened.version.integrity)
        return _Told.of(await remote.ask(request, Ack), chat, opened.chat_id)

    _tell("deleted", asked(work, url, data), as_json)


@app.command()
def restore(
    chat: Annotated[str, typer.Argument(help='"id:<chat_id>", as `list --deleted` tells it.')],
    to: Annotated[str | None, typer.Option(help="Another name, when the old one is taken.")] = None,
    as_json: Json = False,
    url: Url = URL,
    data: Data = None,
) -> None:
    """Bring a chat back from the trash."""

    async def work(remote: Remote) -> _Told:
        ack = await remote.ask(ChatRestore(chat, _given(to), op=1), Ack)
        return _Told.of(ack, chat, chat.removeprefix("id:"))

    _tell("restored", asked(work, url, data), as_json)


@app.command()
def branch(
    chat: ChatName,
    at: Annotated[int | None, typer.Option(min=0, help="Index of the last message in it; all without it.")] = None,
    to: Annotated[str | None, typer.Option(help="Its name; else the first free one.")] = None,
    checkpoint: Annotated[bool, typer.Option(help="A checkpoint instead of a branch.")] = False,
    as_json: Json = False,
    url: Url = URL,
    data: Data = None,
) -> None:
    """Make a new chat of everything up to and with a message."""

    async def work(remote: Remote) -> _Told:
        opened = await remote.open(chat)
        messages = opened.messages if isinstance(opened.messages, list) else []
        if not messages or (at is not None and at >= len(messages)):
            raise RemoteRefused("message-unknown", f"The chat has {len(messages)} messages.")
        message = loads(bytes(messages[-1 if at is None else at]))["id"]
        kind: Literal["branch", "checkpoint"] = "checkpoint" if checkpoint else "branch"
        request = ChatBranch(f"id:{opened.chat_id}", message, _given(to), kind, op=opened.next_op, base="*")
        ack = await remote.ask(request, Ack)
        assert not isinstance(ack.branch, UnsetType), "a branch is told"
        return _Told(ack.branch.chat, ack.branch.chat_id)

    _tell("made", asked(work, url, data), as_json)


def _given(value: str | None) -> str | UnsetType:
    return UNSET if value is None else value


# -- telling ---------------------------------------------------------------------------------------------------------


class _Told(msgspec.Struct, omit_defaults=True):
    """What came of a life write."""

    chat: str
    chat_id: str | UnsetType
    linked_from: list[str] = []
    """Chats whose links lead nowhere now."""

    @classmethod
    def of(cls, ack: Ack, chat: str, chat_id: str | UnsetType) -> _Told:
        """With the name that the chat has now."""
        effects = ack.ops if isinstance(ack.ops, list) else []
        name = next((effect.to for effect in effects if isinstance(effect, RenamedEffect)), chat)
        return cls(name, chat_id, ack.linked_from if isinstance(ack.linked_from, list) else [])


def _tell(what: str, told: _Told, as_json: bool) -> None:
    if as_json:
        lines([told])
        return
    display(Text(f"{what}: {escaped(told.chat)}  id:{told.chat_id}"))
    for chat in told.linked_from:
        display(Text(f"  its link in {escaped(chat)} leads nowhere now", style="yellow"))


def _show_table(chats: list[ListedChat], deleted: bool) -> None:
    """A line a chat. Where there is no room the last message gives way, and never the address."""
    rows: list[tuple[Text, str, str, Text]] = []
    for chat in chats:
        name = Text(escaped(chat.chat, ADDRESS_CHARACTERS_MAX), style="bold red" if chat.damaged else "bold")
        if deleted and isinstance(chat.chat_id, str):
            name.append(f"\nid:{chat.chat_id}", style="dim")
        when = chat.deleted_ms if isinstance(chat.deleted_ms, int) else chat.changed_ms
        preview = escaped(" ".join(chat.preview.split()), PREVIEW_CHARACTERS)
        rows.append((name, str(chat.count), date(when), Text(preview, style="dim")))
    console = Console(highlight=False, soft_wrap=True)
    heads = ("chat", "messages", "changed", "last message")
    widths = [max(map(cell_len, (head, *(line for row in rows for line in str(row[column]).split("\n")))))
              for column, head in enumerate(heads)]
    needed = sum(widths[:3]) + 2 * COLUMN_GAP
    room = max(0, console.width - needed - COLUMN_GAP) if console.is_terminal else widths[3]
    columns = 4 if room >= min(widths[3], PREVIEW_CELLS_MIN) else 3
    table = Table(*heads[:columns], box=None, pad_edge=False)
    for column, width in zip(table.columns, [*widths[:3], min(room, widths[3])], strict=False):
        column.width, column.no_wrap = width, True
    for row in rows:
        table.add_row(*row[:columns])
    # Wider than the terminal when an address is: the terminal breaks such a line, and nothing of it is lost.
    wide = needed if columns == 3 else needed + COLUMN_GAP + min(room, widths[3])
    Console(highlight=False, soft_wrap=True, width=wide, height=console.height).print(table)


def _said(message: dict[str, Any], *, as_shown: bool = False) -> str:
    """What a message says; `as_shown`: what an extension showed instead of it, as SillyTavern exports it."""
    extra = message.get("extra")
    if as_shown and isinstance(extra, dict) and isinstance(extra.get("display_text"), str):
        return str(extra["display_text"])
    return said(message)


def _marked(hit: FoundMessage) -> Text:
    """The snippet with its words in bold. Ranges count UTF-16 units."""
    units = hit.snippet.encode("utf-16-le", "surrogatepass")
    line = Text()
    at = 0
    for start, end in hit.ranges:
        for piece, style in ((units[2 * at : 2 * start], ""), (units[2 * start : 2 * end], "bold yellow")):
            line.append(escaped(" ".join(piece.decode("utf-16-le", "replace").splitlines())), style=style)
        at = end
    line.append(escaped(" ".join(units[2 * at :].decode("utf-16-le", "replace").splitlines())))
    return line
