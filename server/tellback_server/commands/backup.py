"""`tellback backup`: take, list, show, compare and restore backups, on a running server or in a folder."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
import typer
from msgspec import UNSET, UnsetType
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from tellback_protocol.backups import (
    BackedUpChat,
    BackupCreate,
    BackupCreated,
    BackupFrame,
    BackupGet,
    BackupList,
    BackupListFrame,
    BackupRestore,
    ListedBackup,
)
from tellback_protocol.catalog_frames import ChatListFrame
from tellback_protocol.effects import RenamedEffect
from tellback_protocol.frames import Ack, StateFrame
from tellback_protocol.requests import ChatList, OwnerName, StateGet
from tellback_protocol.values import dumps, loads
from tellback_server.backup_diff import Change, ChatContent, ChatDiff, diff_chats
from tellback_server.commands import server_backup
from tellback_server.commands.conversation import URL, ChatName, Data, Json, Url, asked, date, lines, out, show
from tellback_server.commands.exits import FOUND_WRONG, fail
from tellback_server.commands.showing import said, size_text, speaker, table
from tellback_server.logging_setup import escaped
from tellback_server.remote import Remote, RemoteRefused

app = typer.Typer(no_args_is_help=True, help="Take, list, compare and restore backups of chats.")

app.command("server")(server_backup.server)
app.command("server-restore")(server_backup.server_restore)
TEXT_CHARACTERS_MAX: Final = 2000
VALUE_CHARACTERS: Final = 200
BackupName = Annotated[str, typer.Argument(help='As `list` tells it; "last" is the one taken last.')]


@app.command()
def create(
    chats: Annotated[list[str] | None, typer.Argument(help="Addresses of chats.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every chat of the user.")] = False,
    as_json: Json = False,
    url: Url = URL,
    data: Data = None,
) -> None:
    """Back chats up as they are now. One that did not change since its last backup needs none."""
    if bool(chats) == every:
        raise typer.BadParameter("Name chats, or give --all.")

    async def work(remote: Remote) -> tuple[list[BackupCreated], list[tuple[str, RemoteRefused]]]:
        names = list(chats or []) if not every else await _all_chats(remote)
        taken: list[BackupCreated] = []
        refused: list[tuple[str, RemoteRefused]] = []
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        with Progress(*columns, console=Console(stderr=True), transient=True, disable=len(names) < 2) as progress:
            task = progress.add_task("Backing up", total=len(names))
            for name in names:
                try:
                    taken.append(await remote.ask(BackupCreate(name), BackupCreated))
                except RemoteRefused as error:
                    if not every and len(names) == 1:
                        raise
                    refused.append((name, error))
                progress.advance(task)
        return taken, refused

    taken, refused = asked(work, url, data)
    if as_json:
        lines(taken)
    else:
        for one in taken:
            what = "backed up" if one.is_new else "unchanged since"
            show(Text(f"{what}: {escaped(str(one.backup.chat))}  {one.backup.backup}  id:{one.chat_id}"))
    if refused:
        fail("\n".join(f"{escaped(name)}: {error}" for name, error in refused), FOUND_WRONG)


@app.command("list")
def list_backups(
    chat: Annotated[str | None, typer.Argument(help="A chat, also one in the trash; without it, all that have some.")]
    = None,
    as_json: Json = False,
    url: Url = URL,
    data: Data = None,
) -> None:
    """Backups of a chat, the one taken last first; or the chats that have backups."""
    request = BackupList(UNSET if chat is None else chat)
    found = asked(lambda remote: remote.ask(request, BackupListFrame), url, data)
    backups = found.backups if isinstance(found.backups, list) else []
    chats = found.chats if isinstance(found.chats, list) else []
    if as_json:
        lines([*backups, *chats])
    elif chat is None:
        _show_chats(chats)
    else:
        show(Text(f"id:{found.chat_id}", style="dim"))
        _show_backups(backups)


@app.command("show")
def show_backup(
    chat: ChatName,
    backup: BackupName = "last",
    as_json: Json = False,
    url: Url = URL,
    data: Data = None,
) -> None:
    """What a backup holds."""
    listed, content, damaged = asked(lambda remote: _content(remote, chat, backup), url, data)
    if as_json:
        for message in content.messages.values():
            out(dumps(message) + b"\n")
        return
    body = _title(listed)
    for index, message in enumerate(content.messages.values()):
        body.append(f"\n#{index} ", style="dim")
        body.append(f"{escaped(speaker(message), 64)}\n", style="bold")
        body.append("\n".join(escaped(line, TEXT_CHARACTERS_MAX) for line in said(message).split("\n")) + "\n")
    for namespace, state in content.states.items():
        body.append(f"\n{escaped(namespace)} ", style="cyan")
        body.append(_value(state) + "\n", style="dim")
    if damaged:
        body.append(f"\n{damaged} lines of its file are no messages; they are restored with it.\n", style="bold red")
    show(body)


@app.command()
def diff(
    chat: ChatName,
    backup: BackupName = "last",
    other: Annotated[str | None, typer.Argument(help="Another backup; without it, the chat as it is now.")] = None,
    as_json: Json = False,
    url: Url = URL,
    data: Data = None,
) -> None:
    """What came, went and changed since a backup. Exit code 1 when something did."""

    async def work(remote: Remote) -> tuple[ListedBackup, ChatDiff]:
        listed, before, _damaged = await _content(remote, chat, backup)
        after = await _now(remote, chat) if other is None else (await _content(remote, chat, other))[1]
        return listed, diff_chats(before, after)

    listed, found = asked(work, url, data)
    if as_json:
        lines([found])
    else:
        _show_diff(listed, found, "now" if other is None else other)
    if not found.is_empty:
        raise typer.Exit(FOUND_WRONG)


@app.command()
def restore(
    chat: ChatName,
    backup: BackupName,
    to: Annotated[str | None, typer.Option(help="Beside the chat, as a new one of this name; or its name from the "
                                                "trash.")] = None,
    as_json: Json = False,
    url: Url = URL,
    data: Data = None,
) -> None:
    """Put a chat back as a backup holds it, byte for byte. What is there now is backed up first."""

    async def work(remote: Remote) -> _Restored:
        # The session is new: its first op on the chat, whether that is there or in the trash.
        ack = await remote.ask(BackupRestore(chat, backup, UNSET if to is None else to, op=1, base="*"), Ack)
        if not isinstance(ack.branch, UnsetType):
            return _Restored(ack.branch.chat, backup, ack.branch.chat_id)
        assert not isinstance(ack.restored, UnsetType), "a restore is told"
        effects = ack.ops if isinstance(ack.ops, list) else []
        name = next((effect.to for effect in effects if isinstance(effect, RenamedEffect)), chat)
        return _Restored(name, ack.restored.backup)

    told = asked(work, url, data)
    if as_json:
        lines([told])
    else:
        show(Text(f"restored: {escaped(told.chat)}  from {escaped(told.backup)}"))


class _Restored(msgspec.Struct, omit_defaults=True):
    """What came of a restore."""

    chat: str
    backup: str
    chat_id: str | UnsetType = UNSET
    """Of a new chat."""


# -- asking ----------------------------------------------------------------------------------------------------------


async def _all_chats(remote: Remote) -> list[str]:
    names: dict[str, None] = {}
    cursor: str | None = None
    while True:
        page = await remote.ask(ChatList(limit=1000, cursor=cursor), ChatListFrame)
        names.update(dict.fromkeys(chat.chat for chat in page.chats))
        cursor = page.cursor
        if cursor is None:
            return list(names)


async def _content(remote: Remote, chat: str, backup: str) -> tuple[ListedBackup, ChatContent, int]:
    content = ChatContent({}, {}, {})
    damaged = 0
    cursor: str | None = None
    while True:
        page = await remote.ask(BackupGet(chat, backup, cursor), BackupFrame)
        # The one taken last may be another one by the next page.
        backup = page.backup.backup
        if not isinstance(page.metadata, UnsetType):
            content.metadata, damaged = loads(bytes(page.metadata)), page.damaged
        content.states.update((namespace, loads(bytes(raw))) for namespace, raw in page.states.items())
        for raw in page.messages:
            message = loads(bytes(raw))
            content.messages[message["id"]] = message
        cursor = page.cursor
        if cursor is None:
            return page.backup, content, damaged


async def _now(remote: Remote, chat: str) -> ChatContent:
    opened = await remote.open(chat)
    messages = [loads(bytes(raw)) for raw in opened.messages] if isinstance(opened.messages, list) else []
    metadata = {} if isinstance(opened.metadata, UnsetType) else loads(bytes(opened.metadata))
    found = await remote.ask(StateGet(OwnerName(chat=chat)), StateFrame)
    states = {
        name: loads(bytes(state.data)) for name, state in found.states.items()
        if state is not None and not isinstance(state.data, UnsetType)
    }
    return ChatContent({message["id"]: message for message in messages}, metadata, states)


# -- telling ---------------------------------------------------------------------------------------------------------


def _show_chats(chats: list[BackedUpChat]) -> None:
    table(("chat", "backups", "last", "size"), [
        (
            Text(f"{escaped(str(one.last.chat or ''), TEXT_CHARACTERS_MAX)}\n", style="bold").append(
                f"id:{one.chat_id}", style="dim"
            ),
            str(one.backups), date(one.last.taken_ms), size_text(one.size_bytes),
        ) for one in chats
    ])


def _show_backups(backups: list[ListedBackup]) -> None:
    table(("backup", "taken", "why", "messages", "size", "states"), [
        (
            Text(one.backup, style="bold"), date(one.taken_ms), one.reason,
            str(one.count) if isinstance(one.count, int) else "?", size_text(one.size_bytes),
            ", ".join(map(escaped, one.namespaces)),
        ) for one in backups
    ])


def _title(listed: ListedBackup) -> Text:
    name = f"{escaped(str(listed.chat))}  " if isinstance(listed.chat, str) else ""
    return Text(f"{name}{listed.backup}  {date(listed.taken_ms)}  {listed.reason}\n", style="dim")


def _show_diff(listed: ListedBackup, found: ChatDiff, other: str) -> None:
    body = _title(listed)
    if found.is_empty:
        body.append(f"nothing is different {'now' if other == 'now' else f'in {escaped(other)}'}\n")
    marks = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow"), "moved": (">", "blue")}
    for one in found.messages:
        mark, style = marks[one.what]
        body.append(f"{mark} #{one.index} {escaped(speaker(one.message), 64)}: ", style=f"bold {style}")
        body.append(f"{escaped(' '.join(said(one.message).split()), VALUE_CHARACTERS)}\n", style=style)
        _append_changes(body, one.changes)
    if found.metadata:
        body.append("~ metadata\n", style="bold yellow")
        _append_changes(body, found.metadata)
    for namespace, changes in found.states.items():
        came, went = changes[0].path == "" and changes[0].before is UNSET, changes[0].after is UNSET
        mark, style = ("+", "green") if came else ("-", "red") if went and not changes[0].path else ("~", "yellow")
        body.append(f"{mark} state {escaped(namespace)}\n", style=f"bold {style}")
        _append_changes(body, changes)
    show(body)


def _append_changes(body: Text, changes: list[Change]) -> None:
    for change in changes:
        path = escaped(change.path, VALUE_CHARACTERS)
        if change.before is not UNSET:
            body.append(f"    - {path} {_value(change.before)}\n", style="red")
        if change.after is not UNSET:
            body.append(f"    + {path} {_value(change.after)}\n", style="green")


def _value(value: Any) -> str:
    return escaped(dumps(value).decode("utf-8", "replace"), VALUE_CHARACTERS)

