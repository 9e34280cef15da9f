"""`tellback import FORMAT SOURCE`: chats of other programs into a data folder; the source is only read."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Final, Literal

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from tellback_server.checks.log_image import LogImage, log_folder
from tellback_server.checks.scope import is_served
from tellback_server.clock import Clock
from tellback_server.commands.exits import CONFIGURATION, DATA_LOCKED, FOUND_WRONG, explained, fail
from tellback_server.commands.showing import size_text
from tellback_server.commands.store_option import StoreUrl, Taken, taken
from tellback_server.commands.transfer_report import anomaly_table, print_json, watching
from tellback_server.fs import DirectoryLocked, Fs
from tellback_server.lock import DataLock
from tellback_server.logging_setup import configure_logging, escaped
from tellback_server.store.files import DEFAULT_USER, SERVER_FOLDER, FileStore
from tellback_server.transfer.active import take_over
from tellback_server.transfer.anomalies import Anomaly
from tellback_server.transfer.cardshark_source import CardSharkSource
from tellback_server.transfer.destination import Destination, FileDestination
from tellback_server.transfer.file_source import Choices, FileSource
from tellback_server.transfer.folder_source import FolderSource, LooseChat, user_roots
from tellback_server.transfer.importer import Conflict, Importer
from tellback_server.transfer.importer import Taken as Imported
from tellback_server.transfer.item import Item
from tellback_server.transfer.journal import Journal
from tellback_server.transfer.source import Source, SourceUnusable, existing, overlap
from tellback_server.transfer.store_destination import StoreDestination

__all__ = ["import_chats"]

Form = Literal["sillytavern", "luker", "cardshark", "openai", "text"]
_PATH_CHARACTERS_MAX: Final = 2000
_CHAT: Final = re.compile(r"character:.+/|group:")


class Report(msgspec.Struct, omit_defaults=True):
    """What `--json` prints. Read by scripts: keep the fields."""

    format: str
    source: str
    data: str = ""
    store: str = ""
    """Where the chats are, without its password; empty for users' folders."""
    user: str = ""
    dry_run: bool = False
    done: bool = False
    """False when it was cut off by an error; run it again."""
    messages: int = 0
    size_bytes: int = 0
    actions: dict[str, int] = {}
    active: list[str] = []
    """Characters whose active chat is the one that the source shows, from now on."""
    items: list[Imported] = []
    """Everything but what was known already."""
    serve: str = ""
    """The folder that a server would be given, for an import in place."""

    def add(self, taken: Imported) -> None:
        """One more."""
        if taken.target or taken.action != "left-out":
            self.actions[taken.action] = self.actions.get(taken.action, 0) + 1
        if taken.action in ("imported", "beside", "updated"):
            self.messages += taken.messages
            self.size_bytes += taken.size_bytes
        if taken.action != "known" or taken.notes:
            self.items.append(taken)

    @property
    def anomalies(self) -> list[Anomaly]:
        """All of them."""
        return [note for item in self.items for note in item.notes]


def import_chats(
    form: Annotated[Form, typer.Argument(metavar="FORMAT", help="sillytavern, luker, cardshark, openai or text.")],
    source: Annotated[str, typer.Argument(help="The folder or file to import. It is only read.")],
    data: Annotated[
        str | None,
        typer.Option("--data", help="The data folder to import into; it may be new. Without it the source is checked."),
    ] = None,
    store: StoreUrl = None,
    user: Annotated[str, typer.Option(help="Whose chats they will be.")] = DEFAULT_USER,
    from_user: Annotated[str | None, typer.Option(help="Which user of the source, when it has several.")] = None,
    character: Annotated[
        str | None, typer.Option(help="Whose chats these are, for single files; else the folder they are in.")
    ] = None,
    me: Annotated[list[str] | None, typer.Option(help="A name that is the user's, in text; repeatable.")] = None,
    speaker: Annotated[
        list[str] | None, typer.Option(help="A name that speaks, in text; then no other one does; repeatable.")
    ] = None,
    on_conflict: Annotated[
        Conflict, typer.Option(help="What becomes of a thing whose name is taken by another one.")
    ] = "beside",
    again: Annotated[bool, typer.Option("--again", help="Import also what was deleted here since.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report everything, write nothing.")] = False,
    show_all: Annotated[bool, typer.Option("--all", help="Also what is only worth knowing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Import chats of other programs. Nothing here is overwritten; doing it twice changes nothing.

    Exit code 0 when all was taken as it is, 1 when something was damaged or left out and a person should look.
    """
    fs = Fs()
    configure_logging("error")
    choices = Choices(character, tuple(me or ()), tuple(speaker or ()))
    report = Report(form, os.path.abspath(os.path.expanduser(source)), user=user, dry_run=dry_run)
    with explained(), _said(report, as_json):
        found = _source(fs, form, report.source, from_user, choices)
        if data is None:
            if not isinstance(found, FolderSource):
                fail("--data is needed: this cannot be served in place.", CONFIGURATION)
            _look(found, report)
        else:
            report.data = os.path.abspath(os.path.expanduser(data))
            _check_apart(fs, report.source, report.data)
            size_bytes = found.plan()
            with _files(fs, report, store) as (files, there):
                _run(found, size_bytes, files, there, report, on_conflict, again)
        report.done = True
    if as_json:
        print_json(report)
    else:
        _tell(report, show_all)
    if any(one.severity == "damage" for one in report.anomalies) or _is_open(report):
        raise typer.Exit(FOUND_WRONG)


def _is_open(report: Report) -> bool:
    """Whether something of the source is not here that could be."""
    codes = {one.code for item in report.items if item.action == "left-out" for one in item.notes}
    return bool(codes - {"source-other", "source-server-file", "source-active-chats"})


def _source(fs: Fs, form: Form, path: str, from_user: str | None, choices: Choices) -> Source:
    existing(fs, path)
    path = os.path.realpath(path)
    if form in ("openai", "text"):
        return FileSource(fs, path, form, choices)
    if not os.path.isdir(path) and form != "cardshark":
        return LooseChat(fs, path, choices.character)
    if not os.path.isdir(path):
        fail(f"{path} is no folder.", CONFIGURATION)
    if form == "cardshark":
        return CardSharkSource(fs, path)
    users = user_roots(fs, path)
    if from_user is not None:
        if from_user not in users:
            fail(f"--from-user: {path} holds {', '.join(sorted(users)) or 'nobody'}.", CONFIGURATION)
        return FolderSource(fs, users[from_user])
    if len(users) > 1:
        fail(f"{path} holds several users: name one with --from-user ({', '.join(sorted(users))}).", CONFIGURATION)
    if not users:
        fail(f"{path} holds neither chats/ nor group chats/, nor does a folder in it.", CONFIGURATION)
    return FolderSource(fs, next(iter(users.values())))


def _check_apart(fs: Fs, source: str, data: str) -> None:
    if overlap(fs, source, data):
        fail(f"{source} and {data} lie in each other. Serve it in place, or copy to another one.", CONFIGURATION)


@contextlib.contextmanager
def _said(report: Report, as_json: bool) -> Iterator[None]:
    """An import that the disk cut off tells what it did."""
    try:
        yield
    except SourceUnusable as error:
        fail(f"{error}.", CONFIGURATION)
    except DirectoryLocked as error:
        fail(f"{error}: a server has this folder. Stop it first; it takes the chats up when it starts.", DATA_LOCKED)
    except (OSError, KeyboardInterrupt):
        if report.items and as_json:
            print_json(report)
        elif report.items:
            done = sum(report.actions.values())
            typer.echo(f"tellback: cut off after {done:,} items. Run the same command again; it goes on.", err=True)
        raise


@contextlib.contextmanager
def _files(fs: Fs, report: Report, url: str | None) -> Iterator[tuple[FileStore, Taken | None]]:
    """The data folder and its store, for this run alone; for a dry one as they are."""
    above = os.path.dirname(report.data)
    stat = fs.stat(os.path.realpath(report.data))
    if stat is None and fs.stat(os.path.realpath(above)) is None:
        fail(f"--data: {above} does not exist. Only the last folder of the path is made.", CONFIGURATION)
    if stat is not None and not stat.is_directory:
        fail(f"--data: {report.data} is no folder.", CONFIGURATION)

    def has_chats() -> bool:
        files, image = FileStore(fs, report.data, (report.user,)), LogImage(fs, log_folder(report.data))
        return stat is not None and (bool(files.known_users()) or bool(image.facts()))

    if report.dry_run:
        if stat is not None and is_served(fs, report.data):
            typer.echo("tellback: a server has this folder; what it does meanwhile is not seen.", err=True)
        with taken(fs, report.data, url, has_chats=has_chats, is_dry=True) as there:
            yield FileStore(fs, report.data, (report.user,)), there
        return
    if stat is None:
        fs.make_directories(report.data)
    # Before the lock, so that a folder that is not understood gets no file.
    FileStore(fs, report.data, (report.user,))
    lock = DataLock.take(fs, report.data)
    try:
        with taken(fs, report.data, url, has_chats=has_chats, is_dry=False) as there:
            files = FileStore(fs, report.data, (report.user,))
            files.clean_temporaries(report.user)
            yield files, there
    finally:
        lock.release()


def _run(
    source: Source, size_bytes: int, files: FileStore, there: Taken | None, report: Report, conflict: Conflict,
    again: bool,
) -> None:
    own = os.path.join(files.data_root, SERVER_FOLDER)
    image, clock, is_dry = LogImage(files.fs, log_folder(files.data_root)), Clock(), report.dry_run
    journal = Journal(files.fs, own, report.user, writes=not is_dry)
    folder = FileDestination(files, report.user, clock, is_dry=is_dry)
    destination: Destination = folder
    if there is not None:
        report.store = there.address
        destination = StoreDestination(folder, there.store, clock, keeps_log=there.keeps_log, is_dry=is_dry)
    importer = Importer(
        files, report.user, image, journal, clock, source, conflict=conflict, again=again, there=destination
    )
    try:
        with watching("importing", size_bytes) as progress:
            for found in source.items():
                report.add(importer.take(found))
                if isinstance(found, Item):
                    progress.advance(progress.task_ids[0], found.size_bytes)
    finally:
        journal.close()
    if not is_dry and (there is not None or report.format == "cardshark"):
        # A card of SillyTavern says itself which chat is shown, as long as it stands here as a file.
        report.active = take_over(files, image, report.user, importer.shown, clock.now_ms())


def _look(source: Source, report: Report) -> None:
    """An import in place: the server reads the folder as it is."""
    with watching("looking", source.plan()) as progress:
        for found in source.items():
            if isinstance(found, Anomaly):
                report.add(Imported("left-out", found.path, notes=[found]))
                continue
            progress.advance(progress.task_ids[0], found.size_bytes)
            report.messages += found.messages
            report.size_bytes += found.size_bytes
            known = Imported("known", found.source, str(found.target), found.messages, notes=found.notes)
            report.add(known)
    above = os.path.dirname(source.root)
    is_data = os.path.basename(source.root) == DEFAULT_USER and not _has_chats(above)
    report.serve = above if is_data else source.root


def _has_chats(folder: str) -> bool:
    return any(os.path.isdir(os.path.join(folder, name)) for name in ("chats", "group chats"))


def _tell(report: Report, show_all: bool) -> None:
    console = Console(highlight=False)
    anomaly_table(console, report.anomalies, show_all=show_all)
    for one in report.items:
        if one.action == "beside":
            text = f"{one.source} -> {one.target}"
            console.print(Text(escaped(text, _PATH_CHARACTERS_MAX), style="yellow"), soft_wrap=True)
    counts = Counter(report.actions)
    words = {
        "imported": "imported", "beside": "imported under another name", "updated": "brought up to date",
        "known": "here already" if report.data else "found", "left-out": "left out",
    }
    told = [f"{counts[action]:,} {word}" for action, word in words.items() if counts[action]]
    gone = sum(one.code == "gone-here" for one in report.anomalies)
    if gone:
        told.append(f"{gone:,} of these deleted or renamed here since (--again imports them anew)")
    told.append(f"{report.messages:,} messages, {size_text(report.size_bytes)}")
    damage = sum(one.count for one in report.anomalies if one.severity == "damage")
    warnings = sum(one.count for one in report.anomalies if one.severity == "warning")
    told.append(f"damaged: {damage:,}" if damage else "nothing damaged")
    if warnings:
        told.append(f"warnings: {warnings:,}")
    if not show_all and any(one.severity == "info" for one in report.anomalies):
        told.append("more with --all")
    style = "bold red" if damage else "yellow" if warnings else "green"
    console.print(Text("; ".join(told) + ".", style=style), soft_wrap=True)
    if report.serve:
        console.print(Text(f"Nothing has to be copied: tellback serve --data {_quoted(report.serve)}"), soft_wrap=True)
    elif not report.dry_run and counts["imported"] + counts["beside"]:
        text = f"Serve it: tellback serve --data {_quoted(report.data)}"
        text += f" --store {_quoted(report.store)}" if report.store else ""
        console.print(Text(text, style="dim"), soft_wrap=True)
    elif report.dry_run:
        console.print(Text("Nothing was written: this was a dry run."), soft_wrap=True)


def _quoted(path: str) -> str:
    return f"'{escaped(path, _PATH_CHARACTERS_MAX)}'" if re.search(r"[^\w./~-]", path) else path
