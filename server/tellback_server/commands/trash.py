"""`tellback trash`: list, show, restore and empty the trash, on a running server or in a folder."""

from __future__ import annotations

from typing import Annotated, Final

import typer
from msgspec import UNSET
from rich.text import Text

from tellback_protocol.frames import Ack
from tellback_protocol.requests import ChatRestore, OwnerRestore, owner_named
from tellback_protocol.trash import TrashEmptied, TrashEmpty, TrashEntry, TrashList, TrashListFrame
from tellback_server.clock import Clock
from tellback_server.commands.conversation import URL, Data, Json, Url, asked, date, lines, show
from tellback_server.commands.exits import FOUND_WRONG
from tellback_server.commands.showing import size_text, table
from tellback_server.logging_setup import escaped
from tellback_server.remote import Remote, RemoteRefused

app = typer.Typer(no_args_is_help=True, help="What was deleted: look at it, bring it back, or remove it for good.")

DAY_MS: Final = 86_400_000
NAME_CHARACTERS_MAX: Final = 2000
EntryName = Annotated[str, typer.Argument(help='An entry as `list` tells it, or "id:<chat_id>".')]


@app.command("list")
def list_trash(as_json: Json = False, url: Url = URL, data: Data = None) -> None:
    """Everything in the trash, what was deleted last first."""
    entries = asked(_entries, url, data)
    if as_json:
        lines(entries)
        return
    table(("deleted", "what", "entry", "files", "size"), [
        (
            date(one.deleted_ms), Text(escaped(one.name, NAME_CHARACTERS_MAX), style="bold"), one.entry,
            str(len(one.files)), size_text(one.size_bytes),
        ) for one in entries
    ])


@app.command("show")
def show_entry(entry: EntryName, as_json: Json = False, url: Url = URL, data: Data = None) -> None:
    """What an entry holds."""

    async def work(remote: Remote) -> TrashEntry:
        return await _find(remote, entry)

    found = asked(work, url, data)
    if as_json:
        lines([found])
        return
    body = Text(f"{escaped(found.name, NAME_CHARACTERS_MAX)}\n", style="bold")
    size = size_text(found.size_bytes)
    body.append(f"{found.entry}  {date(found.deleted_ms)}  {found.reason}  {size}\n", style="dim")
    for path in found.files:
        body.append(f"  {escaped(path, NAME_CHARACTERS_MAX)}\n")
    show(body)


@app.command()
def restore(
    entry: EntryName,
    to: Annotated[str | None, typer.Option(help="Another name for a chat, when the old one is taken.")] = None,
    as_json: Json = False,
    url: Url = URL,
    data: Data = None,
) -> None:
    """Bring back a chat, or a character or preset with its state."""

    async def work(remote: Remote) -> TrashEntry:
        found = await _find(remote, entry)
        if found.reason == "orphaned":
            raise RemoteRefused("orphaned", "These state files have no owner; move them back by hand.")
        kind, _colon, rest = found.name.partition(":")
        if kind == "group" or (kind == "character" and "/" in rest):
            chat = f"id:{found.entry.partition('-')[2]}"
            await remote.ask(ChatRestore(chat, UNSET if to is None else to, op=1), Ack)
        elif to is not None:
            raise RemoteRefused("unsupported", "Only a chat takes another name when it comes back.")
        else:
            await remote.ask(OwnerRestore(owner_named(found.name), op=1), Ack)
        return found

    found = asked(work, url, data)
    if as_json:
        lines([found])
    else:
        show(Text(f"restored: {escaped(found.name, NAME_CHARACTERS_MAX)}{'' if to is None else f' as {escaped(to)}'}"))


@app.command()
def empty(
    entries: Annotated[list[str] | None, typer.Argument(help="Entries, as `list` tells them.")] = None,
    older_than: Annotated[int | None, typer.Option(min=0, help="Everything deleted before so many days.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Everything.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
    url: Url = URL,
    data: Data = None,
) -> None:
    """Remove entries for good. Backups of the chats stay."""
    if sum((bool(entries), older_than is not None, every)) != 1:
        raise typer.BadParameter("Name entries, or give --older-than DAYS or --all.")
    before_ms = Clock().now_ms() + (1 if every else -DAY_MS * (older_than or 0))

    async def chosen(remote: Remote) -> list[TrashEntry]:
        found = await _entries(remote)
        if entries:
            return [await _find(remote, name) for name in dict.fromkeys(entries)]
        return [one for one in found if one.deleted_ms < before_ms]

    going = asked(chosen, url, data)
    if going and not yes:
        size = size_text(sum(one.size_bytes for one in going))
        typer.confirm(f"Remove {len(going)} entries ({size}) for good?", abort=True, err=True)
    names = [one.entry for one in going]
    done = TrashEmptied([], 0) if not names else asked(
        lambda remote: remote.ask(TrashEmpty(names), TrashEmptied), url, data
    )
    if as_json:
        lines([done])
    else:
        show(Text(f"removed {len(done.entries)} entries, {size_text(done.size_bytes)}"))
    if len(done.entries) != len(names):
        raise typer.Exit(FOUND_WRONG)


async def _entries(remote: Remote) -> list[TrashEntry]:
    return (await remote.ask(TrashList(), TrashListFrame)).entries


async def _find(remote: Remote, name: str) -> TrashEntry:
    """The entry of this name, or the newest of an id."""
    found = await _entries(remote)
    wanted = name.removeprefix("id:")
    for one in found:
        if one.entry == name or one.entry.partition("-")[2] == wanted:
            return one
    raise RemoteRefused("not-found", f"The trash holds nothing called {name}.")
