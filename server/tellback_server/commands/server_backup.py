"""`tellback backup server` and `server-restore`: a whole data folder, of a running server too, and back from it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.text import Text

from tellback_server.clock import Clock
from tellback_server.commands.conversation import Json, date, lines, show
from tellback_server.commands.exits import CONFIGURATION, FOUND_WRONG, explained, fail
from tellback_server.commands.showing import size_text
from tellback_server.commands.store_option import StoreUrl, bound_store, opened
from tellback_server.control import NoServer, ServerWentOn, standing_still
from tellback_server.fs import Fs
from tellback_server.lock import DataLock
from tellback_server.metrics import version
from tellback_server.server_backup import (
    BackupUnusable,
    Copying,
    Manifest,
    Report,
    read_manifest,
    restore,
    survey,
)
from tellback_server.standstill import Place
from tellback_server.store.files import SERVER_FOLDER
from tellback_server.store_backup import OwnersCopying, fill_store, owners_size_bytes, settle_filling

__all__ = ["server", "server_restore"]


def server(
    dest: Annotated[str, typer.Argument(help="Folder to make; one that was cut off goes on.")],
    data: Annotated[str, typer.Option("--data", help="The data folder, served or not.")],
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Back a data folder up while its server goes on serving; for root and the server's system user, without a token.

    A server started on the copy has everything acknowledged before the moment that is told. Of a server on a store the
    copy holds what is in the store, too.
    """
    fs, source, target = Fs(), _absolute(data), _absolute(dest)
    own = os.path.join(source, SERVER_FOLDER)
    with explained(), _said_of_backups():
        if not os.path.isdir(own):
            fail(f"--data: {source} is no data folder of a server.", CONFIGURATION)
        if os.path.commonpath((source, target)) == source:
            fail(f"{target} lies in the folder that is backed up; name another place.", CONFIGURATION)
        bound = bound_store(fs, source, store)
        found, _odd = survey(fs, source)
        size_bytes = sum(mark.size_bytes for mark in found.values())
        with contextlib.ExitStack() as stack:
            held = None if bound is None else stack.enter_context(opened(bound[1]))
            if held is not None:
                size_bytes += owners_size_bytes(held)
            report = stack.enter_context(_watched("Copying", size_bytes))
            copying = Copying(fs, source, target, report)
            copying.begin()
            owners, durability = None, ""
            if bound is not None and held is not None:
                owners, durability = OwnersCopying(held, copying, bound[0], Clock().uuid4), held.check().durability
                owners.copy()
            copying.copy_all()
            place = asyncio.run(_copy_rest(fs, copying, owners, source))
            manifest = copying.finish(
                place, f"tellback {version()}", Clock().now_ms(), store="" if bound is None else bound[0].store,
                durability=durability,
            )
    _tell("backed up", target, manifest, as_json)


async def _copy_rest(fs: Fs, copying: Copying, owners: OwnersCopying | None, data: str) -> Place | None:
    """While the server stands still; when there is none, while no other one can begin. Raises ServerWentOn."""
    own = os.path.join(data, SERVER_FOLDER)

    def copy_rest(place: Place | None) -> None:
        if owners is not None:
            owners.copy()
        copying.copy_rest(place)

    try:
        async with standing_still(fs, own) as place:
            await asyncio.to_thread(copy_rest, place)
            return place
    except NoServer:
        lock = DataLock.take(fs, data)
        try:
            copy_rest(None)
        finally:
            lock.release()
        return None


def server_restore(
    source: Annotated[str, typer.Argument(help="A finished backup of a server.")],
    data: Annotated[str, typer.Option("--data", help="The folder to make; not there yet, or empty.")],
    store: Annotated[
        str | None, typer.Option("--store", help="An empty store for the chats, when they were in one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a data folder of a backup, every file compared with what was written. `tellback serve --data` starts it."""
    fs, origin, target = Fs(), _absolute(source), _absolute(data)
    with explained(), _said_of_backups():
        told = read_manifest(fs, origin)
        if told.store and store is None:
            fail(f"the chats of this backup were in {told.store}: name an empty store with --store.", CONFIGURATION)
        if store is not None and not told.store:
            fail("--store: the chats of this backup are in its folders.", CONFIGURATION)
        size_bytes = sum(one.size_bytes for one in told.files.values())
        with contextlib.ExitStack() as stack:
            held = None if store is None else stack.enter_context(opened(store))
            report = stack.enter_context(_watched("Restoring", size_bytes))

            def fill(manifest: Manifest) -> None:
                if held is not None and store is not None:
                    fill_store(fs, origin, target, manifest, store, held, report, Clock().uuid4)

            manifest = restore(fs, origin, target, report, fill=fill)
            settle_filling(fs, target)
    _tell("restored", target, manifest, as_json)


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


@contextmanager
def _said_of_backups() -> Iterator[None]:
    try:
        yield
    except BackupUnusable as error:
        fail(f"{error}.", CONFIGURATION)
    except ServerWentOn as error:
        fail(str(error), FOUND_WRONG)


@contextmanager
def _watched(what: str, size_bytes: int) -> Iterator[Report]:
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=size_bytes)
        yield lambda _path, done: progress.advance(task, done)


def _tell(what: str, folder: str, manifest: Manifest, as_json: bool) -> None:
    size = sum(one.size_bytes for one in manifest.files.values())
    if as_json:
        lines([{
            "folder": folder, "taken_ms": manifest.taken_ms, "position": manifest.position, "term": manifest.term,
            "files": len(manifest.files), "size_bytes": size, "left_out": manifest.left_out,
        }])
        return
    served = f", log position {manifest.position}" if manifest.position else ""
    told = f"{len(manifest.files)} files, {size_text(size)}, of {date(manifest.taken_ms)}{served}"
    show(Text(f"{what}: {folder}  {told}"))
    for path in manifest.left_out:
        show(Text(f"  left out, because it is a link or no file: {path}", style="yellow"))
