"""An import or export in this process, as the command does it, and one that is killed somewhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tellback_server.checks.log_image import LogImage, log_folder
from tellback_server.clock import Clock
from tellback_server.fs import Fs
from tellback_server.lock import DataLock
from tellback_server.store.files import FileStore
from tellback_server.transfer.cardshark_source import CardSharkSource
from tellback_server.transfer.exporter import Exporter, Form, Given, wants
from tellback_server.transfer.file_source import Choices, FileSource
from tellback_server.transfer.folder_source import FolderSource, LooseChat
from tellback_server.transfer.importer import Importer, Taken
from tellback_server.transfer.item import Item
from tellback_server.transfer.journal import Journal
from tellback_server.transfer.source import Source
from tests.support.warm import set_failpoints

USER = "default-user"


def source_of(form: str, path: Path, choices: Choices | None = None) -> Source:
    """A source as the command makes it."""
    match form:
        case "cardshark":
            return CardSharkSource(Fs(), str(path))
        case "openai" | "text":
            return FileSource(Fs(), str(path), form, choices or Choices())  # type: ignore[arg-type]
        case _ if path.is_file():
            return LooseChat(Fs(), str(path), choices.character if choices else None)
        case _:
            return FolderSource(Fs(), str(path))


def import_into(
    data: Path, form: str, path: Path, choices: Choices | None = None, *, fs: Fs | None = None, **options: Any
) -> list[Taken]:
    """What became of each item of a source."""
    fs = fs or Fs()
    is_dry = options.get("is_dry", False)
    if not is_dry:
        fs.make_directories(str(data))
    lock = None if is_dry else DataLock.take(fs, str(data))
    try:
        files = FileStore(fs, str(data), (USER,))
        if not is_dry:
            files.clean_temporaries(USER)
        journal = Journal(fs, files.server_root, USER, writes=not is_dry)
        source = source_of(form, path, choices)
        source.plan()
        image = LogImage(fs, log_folder(str(data)))
        importer = Importer(files, USER, image, journal, Clock(), source, **options)
        try:
            return [importer.take(found) for found in source.items()]
        finally:
            journal.close()
    finally:
        if lock is not None:
            lock.release()


def killed_import(failpoints: str, *arguments: Any, **options: Any) -> bool:
    """The same in a child process that a failpoint may kill; whether it did."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            set_failpoints(failpoints)
            import_into(*arguments, **options)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -9), code
    return code == -9


def export_to(folder: Path, form: Form, data: Path) -> list[Given]:
    """A user's folder as another program keeps it."""
    exporter = Exporter(Fs(), str(folder), form)
    root = data / USER if (data / USER).is_dir() else data
    source = FolderSource(Fs(), str(root))
    source.plan()
    given = [exporter.take(item) for item in source.items() if isinstance(item, Item) and wants(item, form)]
    return given + exporter.finish()


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file but the server's own."""
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*"))
        if path.is_file() and ".tellback" not in path.parts
    }


def write_files(root: Path, files: dict[str, Any]) -> Path:
    """Files by path, with one date, so that nothing depends on when the test runs."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        os.utime(path, ns=(1_700_000_000_000_000_000,) * 2)
    return root
