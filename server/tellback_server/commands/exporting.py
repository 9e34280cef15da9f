"""`tellback export FORMAT DEST`: a user's chats for other programs, from a folder or a running server."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Annotated, Final, TypeVar

import msgspec
import typer
from msgspec import UnsetType
from rich.console import Console
from rich.text import Text

from tellback_protocol.catalog_frames import ChatListFrame
from tellback_protocol.files import FileFrame, FileGet, FileList, FileListFrame, ListedFile
from tellback_protocol.frames import StateFrame
from tellback_protocol.ids import CharacterOwner
from tellback_protocol.requests import ChatList, StateGet, owner_named
from tellback_protocol.values import dumps, loads
from tellback_server.checks.log_image import LogImage, log_folder
from tellback_server.checks.scope import is_served
from tellback_server.commands.conversation import Json, asked, out
from tellback_server.commands.exits import CONFIGURATION, DATA_LOCKED, FOUND_WRONG, explained, fail
from tellback_server.commands.showing import size_text
from tellback_server.commands.store_option import StoreUrl, bound_store, opened
from tellback_server.commands.transfer_report import anomaly_table, print_json, watching
from tellback_server.fs import FileMissing, Fs
from tellback_server.logging_setup import configure_logging
from tellback_server.remote import Remote, RemoteRefused, served
from tellback_server.store.files import DEFAULT_USER, FileStore
from tellback_server.transfer.active import chosen
from tellback_server.transfer.anomalies import Anomaly
from tellback_server.transfer.exporter import Exporter, Form, Given, wants
from tellback_server.transfer.folder_source import FolderSource
from tellback_server.transfer.item import GroupFile, Item, target_of_path
from tellback_server.transfer.served_chat import item_of
from tellback_server.transfer.source import Source, overlap
from tellback_server.transfer.store_source import StoreSource

__all__ = ["export_chats"]

Page = TypeVar("Page")
Row = TypeVar("Row")
_MS_NS: Final = 1_000_000


class Report(msgspec.Struct, omit_defaults=True):
    """What `--json` prints. Read by scripts: keep the fields."""

    format: str
    folder: str
    done: bool = False
    """False when it was cut off by an error; run it again."""
    dry_run: bool = False
    messages: int = 0
    size_bytes: int = 0
    actions: dict[str, int] = {}
    items: list[Given] = []

    def add(self, given: Given) -> None:
        """One more."""
        self.actions[given.action] = self.actions.get(given.action, 0) + 1
        if given.action == "written":
            self.messages += given.messages
            self.size_bytes += given.size_bytes
        self.items.append(given)

    @property
    def anomalies(self) -> list[Anomaly]:
        """All of them."""
        return [note for item in self.items for note in item.notes]


def export_chats(
    form: Annotated[Form, typer.Argument(metavar="FORMAT", help="sillytavern, luker, cardshark, openai or text.")],
    dest: Annotated[str, typer.Argument(help='The folder to write; "-" for one chat on stdout.')],
    data: Annotated[str | None, typer.Option("--data", help="A data folder that nobody serves.")] = None,
    url: Annotated[
        str | None, typer.Option(envvar="TELLBACK_URL", help="A running server instead.")
    ] = None,
    store: StoreUrl = None,
    user: Annotated[str, typer.Option(help="Whose, of a folder; a server knows by the token.")] = DEFAULT_USER,
    chat: Annotated[
        list[str] | None, typer.Option(help='Only this chat, "character:<character>/<chat>" or "group:<chat>".')
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files there that differ.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report everything, write nothing.")] = False,
    show_all: Annotated[bool, typer.Option("--all", help="Also what is only worth knowing.")] = False,
    as_json: Json = False,
) -> None:
    """Export a user's chats, or some of them. Nothing there is overwritten; doing it twice changes nothing.

    Exit code 0 when everything is there, 1 when something was damaged or in the way.
    """
    if data is None and url is None:
        fail("name a folder with --data, or a running server with --url.", CONFIGURATION)
    fs = Fs()
    configure_logging("error")
    only = frozenset(chat or ())
    folder = "" if dest == "-" else os.path.abspath(os.path.expanduser(dest))
    if not folder and len(only) != 1:
        fail("on stdout goes one chat: name it with --chat.", CONFIGURATION)
    report = Report(form, folder, dry_run=dry_run)
    exporter = Exporter(fs, folder or os.curdir, form, overwrites=overwrite, is_dry=dry_run or not folder)
    run = _Run(exporter, report, form, only, to_stdout=not folder)
    with explained():
        if data is not None:
            _of_folder(fs, os.path.abspath(os.path.expanduser(data)), folder, user, run, store)
        elif url is not None:
            _of_server(url, run)
        run.finish()
    if not folder:
        raise typer.Exit(FOUND_WRONG if any(one.severity == "damage" for one in report.anomalies) else 0)
    if as_json:
        print_json(report)
    else:
        _tell(report, show_all)
    if any(one.severity != "info" for one in report.anomalies):
        raise typer.Exit(FOUND_WRONG)


class _Run:
    """What is done with each item."""

    def __init__(
        self, exporter: Exporter, report: Report, form: Form, only: frozenset[str], *, to_stdout: bool
    ) -> None:
        self._exporter = exporter
        self._report = report
        self._form = form
        self.only = only
        self._to_stdout = to_stdout
        self._found: set[str] = set()

    def take(self, item: Item) -> None:
        """Write it, when it is asked for."""
        name = str(item.target)
        if self.only and name not in self.only:
            if isinstance(item.target, CharacterOwner):
                self._exporter.know(item)
            return
        self._found.add(name)
        if not wants(item, self._form):
            return
        if self._to_stdout:
            for data in self._exporter.bytes_of(item):
                out(data)
        self._report.add(self._exporter.take(item))

    def show(self, chats: Iterable[str]) -> None:
        """The chats that are active."""
        self._exporter.show(chats)

    def pass_over(self, anomaly: Anomaly) -> None:
        """Something of the folder that cannot be exported."""
        if anomaly.severity != "info" and not self.only:
            self._report.add(Given("left-out", anomaly.path, notes=[anomaly]))

    def finish(self) -> None:
        """What stands beside all of them. Ends the command when a chat was not there."""
        missing = sorted(self.only - self._found)
        if missing:
            fail(f"there is no such chat: {', '.join(missing)}", FOUND_WRONG)
        for given in self._exporter.finish():
            self._report.add(given)
        self._report.done = True


def _of_folder(fs: Fs, data: str, folder: str, user: str, run: _Run, url: str | None) -> None:
    if fs.stat(os.path.realpath(data)) is None:
        raise FileMissing(data, "does not exist")
    if folder and overlap(fs, data, folder):
        fail(f"{folder} and {data} lie in each other. Export to another place.", CONFIGURATION)
    if is_served(fs, os.path.realpath(data)):
        fail(f"{data} is in use by a server. Ask it with --url, or stop it first.", DATA_LOCKED)
    bound = bound_store(fs, data, url)
    files = FileStore(fs, data, (user,))
    _fold(fs, files, user, None if bound is None else bound[1])
    run.show(chosen(files, LogImage(fs, log_folder(data)), user))
    with contextlib.ExitStack() as stack:
        source: Source = FolderSource(fs, files.user_root(user))
        if bound is not None:
            source = StoreSource(fs, files.user_root(user), stack.enter_context(opened(bound[1])), user)
        progress = stack.enter_context(watching("exporting", source.plan()))
        for item in source.items():
            if isinstance(item, Anomaly):
                run.pass_over(item)
                continue
            run.take(item)
            progress.advance(progress.task_ids[0], item.size_bytes)


def _fold(fs: Fs, files: FileStore, user: str, url: str | None) -> None:
    """After a kill the log may know more than files or store: a server that runs for a moment brings it there."""
    behind = _behind(fs, files, user)
    if not behind:
        return

    async def load_all() -> None:
        async with served("", None, files.data_root, store=url) as remote:
            for name in behind:
                # Whoever is asked for a state is loaded, and folded when the server stops.
                with contextlib.suppress(RemoteRefused):
                    await remote.ask(StateGet(owner_named(name)), StateFrame)

    if user == DEFAULT_USER:
        asyncio.run(load_all())
        behind = _behind(fs, files, user)
    if behind:
        sentence = f"the log knows more than the files of {', '.join(sorted(behind))}"
        fail(f"{sentence}. Start the server once, or ask it with --url.", FOUND_WRONG)


def _behind(fs: Fs, files: FileStore, user: str) -> list[str]:
    """Owners whose files lack something. Raises LogCorrupt, FsError."""
    image = LogImage(fs, log_folder(files.data_root))
    facts = image.facts()
    if image.error is not None:
        raise image.error
    return [
        one.base.name for one in facts.values()
        if one.base is not None and one.base.user == user and not one.is_gone
        and (one.is_pending or one.has_no_file_yet)
    ]


def _of_server(url: str, run: _Run) -> None:
    async def work(remote: Remote) -> None:
        files = await _pages(remote, FileList(), FileListFrame, lambda page: page.files)
        chats = await _pages(remote, ChatList(limit=1000), ChatListFrame, lambda page: page.chats)
        with watching("exporting", len(files) + len(chats)) as progress:
            groups: list[Item] = []
            for listed in files:
                progress.advance(progress.task_ids[0])
                target = target_of_path(listed.path)
                if target is None or (run.only and not isinstance(target, CharacterOwner)):
                    continue
                item = Item(
                    source=listed.path, target=target, data=await _content(remote, listed),
                    states=await _states(remote, str(target)) if not isinstance(target, GroupFile) else {},
                    mtime_ns=listed.changed_ms * _MS_NS, size_bytes=listed.size_bytes,
                )
                if isinstance(target, GroupFile):
                    # They name chats, which come first.
                    groups.append(item)
                else:
                    run.take(item)
            for chat in sorted(chats, key=lambda one: one.chat):
                progress.advance(progress.task_ids[0])
                if not run.only or chat.chat in run.only:
                    opened = await remote.open(chat.chat, header=True)
                    run.take(item_of(opened, chat.changed_ms, await _states(remote, chat.chat)))
            for item in groups:
                run.take(item)

    asked(work, url, None)


async def _pages(
    remote: Remote, request: ChatList | FileList, answer: type[Page], rows: Callable[[Page], list[Row]]
) -> list[Row]:
    found: list[Row] = []
    while True:
        page = await remote.ask(request, answer)
        found += rows(page)
        cursor = page.cursor  # type: ignore[attr-defined]  # Both have one.
        if cursor is None:
            return found
        request = msgspec.structs.replace(request, cursor=cursor)


async def _content(remote: Remote, listed: ListedFile) -> bytes:
    """A file's bytes, all of one moment."""
    while True:
        first = piece = await remote.ask(FileGet(listed.path), FileFrame)
        data = piece.data
        while piece.file == first.file and len(data) < first.file.size_bytes and piece.data:
            piece = await remote.ask(FileGet(listed.path, len(data)), FileFrame)
            data += piece.data
        if piece.file == first.file:
            return data


async def _states(remote: Remote, owner: str) -> dict[str, bytes]:
    answer = await remote.ask(StateGet(owner_named(owner)), StateFrame)
    return {
        namespace: dumps(loads(bytes(state.data))) for namespace, state in answer.states.items()
        if state is not None and not isinstance(state.data, UnsetType)
    }


def _tell(report: Report, show_all: bool) -> None:
    console = Console(highlight=False)
    anomaly_table(console, report.anomalies, show_all=show_all)
    counts = Counter(report.actions)
    words = {"written": "written", "same": "there already", "left-out": "left out"}
    told = [f"{counts[action]:,} {word}" for action, word in words.items() if counts[action]] or ["nothing to export"]
    told.append(f"{report.messages:,} messages, {size_text(report.size_bytes)}")
    if not show_all and any(one.severity == "info" for one in report.anomalies):
        told.append("more with --all")
    is_well = all(one.severity == "info" for one in report.anomalies)
    console.print(Text("; ".join(told) + ".", style="green" if is_well else "yellow"), soft_wrap=True)
    if report.dry_run:
        console.print(Text("Nothing was written: this was a dry run."), soft_wrap=True)
