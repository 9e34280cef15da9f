"""`tellback move`: the chats of a data folder into a store, into another store, or out of it into users' folders."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from tellback_server.clock import Clock
from tellback_server.commands.conversation import Json, lines, show
from tellback_server.commands.exits import CONFIGURATION, DATA_LOCKED, FOUND_WRONG, explained, fail
from tellback_server.commands.store_option import StoreUrl, bound_store, named_store, opened
from tellback_server.failpoint import failpoint
from tellback_server.fs import DirectoryLocked, Fs
from tellback_server.leftovers import Leftovers
from tellback_server.lock import DataLock
from tellback_server.log import Log
from tellback_server.logging_setup import configure_logging
from tellback_server.moving import Moving
from tellback_server.remote import NoDataFolder, served
from tellback_server.server_backup import BackupUnusable
from tellback_server.store.address import StoreAddress
from tellback_server.store.base import Store
from tellback_server.store.files import FileStore
from tellback_server.store_backup import begin_filling, copy_owners, end_filling, settle_filling
from tellback_server.store_binding import Binding, unbind

__all__ = ["move"]

TOLD_MAX = 20


def move(
    data: Annotated[str, typer.Option("--data", help="The data folder; nobody serves it meanwhile.")],
    to: Annotated[str, typer.Option("--to", help='The URL of an empty store, or "files": users\' folders.')],
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Move all chats between users' folders and a store, or between stores: versions, ids, history and trash stay.

    Nothing is removed: a store is left as it is, files are put aside. Cut off, the same command goes on.
    """
    fs, folder = Fs(), os.path.abspath(os.path.expanduser(data))
    configure_logging("error", "console")
    with explained(), _said():
        bound = bound_store(fs, folder, store)
        target = named_store(to)
        if bound is None and target is None:
            fail(f"the chats of {folder} are in its folders already.", CONFIGURATION)
        if bound is not None and target is not None and str(StoreAddress(target)) == bound[0].store:
            fail(f"the chats of {folder} are there already.", CONFIGURATION)
        # A server that runs for a moment finishes what a crash cut off and folds everything.
        asyncio.run(_folded(folder, None if bound is None else bound[1]))
        lock = DataLock.take(fs, folder)
        try:
            moved, aside = asyncio.run(_moved(fs, folder, bound, target))
        finally:
            lock.release()
    if as_json:
        lines([{"data": folder, "to": to if target is None else str(StoreAddress(target)), "owners": moved}])
        return
    show(Text(f"moved: {moved:,} chats, characters and presets"))
    if aside:
        show(Text(f"their files are in {aside} of each user's folder", style="dim"))


@contextlib.contextmanager
def _said() -> Iterator[None]:
    try:
        yield
    except BackupUnusable as error:
        fail(f"{error}.", CONFIGURATION)
    except NoDataFolder as error:
        fail(f"--data: {error}. Name the folder that a server would serve.", CONFIGURATION)
    except DirectoryLocked as error:
        fail(f"{error}: a server has this folder. Stop it first.", DATA_LOCKED)


async def _folded(data: str, url: str | None) -> None:
    async with served("", None, data, store=url):
        pass


async def _moved(
    fs: Fs, data: str, bound: tuple[Binding, str] | None, target: str | None
) -> tuple[int, str]:
    files, clock = FileStore(fs, data, None), Clock()
    leftovers = Leftovers()
    records = Log.open(fs, os.path.join(data, ".tellback", "log"), clock, seen=leftovers.see)
    records.start(asyncio.get_running_loop(), lambda _position: None, lambda _error: None)
    count = 0
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    aside = ""
    try:
        with contextlib.ExitStack() as stack:
            held: Store | None = None if bound is None else stack.enter_context(opened(bound[1]))
            new: Store | None = None if target is None else stack.enter_context(opened(target))
            progress = stack.enter_context(Progress(*columns, console=Console(stderr=True), transient=True))
            task = progress.add_task("Moving", total=None)

            def report(_name: str) -> None:
                nonlocal count
                count += 1
                progress.advance(task)

            if new is None:
                assert held is not None, "out of a store"
                moving = Moving(files, records, leftovers.names, held, clock, report)
                _refuse(list(moving.check_store()))
                moving.into_files()
                await records.flush()
                failpoint("moving.after_records")
                settle_filling(fs, data)
                unbind(fs, data)
                return count, ""
            assert target is not None, "it is open"
            if new.check().durability != "store":
                fail(f"{StoreAddress(target)} may lose what it confirmed, and the log lets go of it.", CONFIGURATION)
            binding = begin_filling(fs, data, target, new, clock.uuid4)
            if held is not None:
                for name in copy_owners(held, new):
                    failpoint("moving.after_owner")
                    report(name)
            else:
                moving = Moving(files, records, leftovers.names, new, clock, report)
                _refuse(list(moving.check_files()))
                moving.into_store()
                await records.flush()
                failpoint("moving.after_records")
            end_filling(fs, data, binding)
            failpoint("moving.after_binding")
            if held is None:
                aside = moving.put_aside()
            return count, aside
    finally:
        records.close()


def _refuse(problems: list[str]) -> None:
    if problems:
        fail("\n".join([*problems[:TOLD_MAX], "Nothing was changed."]), FOUND_WRONG)
