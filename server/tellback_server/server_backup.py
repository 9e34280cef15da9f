"""Server backup: a copy of a whole data folder, of a running server too, that another machine can serve.

    copy_all(fs, data, dest)                    while the server goes on: most of it, in any state
    copy_rest(fs, data, dest, place)            while it stands still: what changed since, and the log up to `place`
    finish(fs, dest, ...)                       the manifest, then the mark of what is unfinished goes

    <dest>/.tellback/UNFINISHED     from the first byte on until everything is there; a server does not start on it
    <dest>/.tellback/backup.json    the Manifest

Rules of this module (BEHAVIOUR Z13):
- Together the copy is what a kill would have left at one moment; recovery does the rest.
- A file that stands in `dest` with size and mtime of its source is not copied again: a copy that was cut off goes on.
- Links and what is no regular file are left out, and told.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from tellback_protocol.values import UNDECODABLE
from tellback_server.fs import TEMPORARY_SUFFIX, FileMark, FileMissing, FileUnsafe, Fs, FsError
from tellback_server.standstill import Place
from tellback_server.store.files import SERVER_FOLDER

__all__ = [
    "UNFINISHED", "BackupUnusable", "CopiedFile", "Copying", "Manifest", "read_manifest", "restore", "store_of_copy",
    "survey",
]

UNFINISHED: Final = f"{SERVER_FOLDER}/UNFINISHED"
MANIFEST: Final = f"{SERVER_FOLDER}/backup.json"
LOG_FOLDER: Final = f"{SERVER_FOLDER}/log"
OWNERS: Final = f"{SERVER_FOLDER}/owners"
"""Owners of a store, in a copy: `<user>/<id>`, each as `staged` writes it."""
LEFT_OUT: Final = frozenset((f"{SERVER_FOLDER}/LOCK", UNFINISHED, MANIFEST))
FORMAT: Final = 1
Report = Callable[[str, int], None]
"""Told of each file, with its size, when it is there."""


class CopiedFile(msgspec.Struct, frozen=True):
    """One file of a backup."""

    size_bytes: int
    crc32: int


class Manifest(msgspec.Struct, kw_only=True):
    """A finished backup. Persisted: keep stable."""

    format: int = FORMAT
    server: str
    taken_ms: int
    position: int
    """Of the log: everything up to here is in it. 0 for a folder that nobody served."""
    term: int
    files: dict[str, CopiedFile]
    left_out: list[str] = []
    """Links and what is no regular file."""
    store: str = ""
    """Where chats were, without its password; empty when they were in users' folders."""
    durability: str = ""
    """What that store promised: of one that promises nothing the log is the copy."""


class BackupUnusable(Exception):
    """What stands there is no finished backup, or not as it was finished."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def survey(fs: Fs, root: str) -> tuple[dict[str, FileMark], list[str]]:
    """Every regular file below a folder that belongs into a backup, and what is left out. Cost: a stat each."""
    found: dict[str, FileMark] = {}
    odd: list[str] = []
    for path in _walk(fs, root, "", odd):
        stat = fs.stat(os.path.join(root, path))
        if stat is None or path in LEFT_OUT or _is_spare(path):
            continue
        if stat.is_regular:
            found[path] = FileMark(stat.size_bytes, stat.mtime_ns, stat.inode)
        else:
            odd.append(path)
    return found, odd


def _walk(fs: Fs, root: str, folder: str, odd: list[str]) -> Iterator[str]:
    try:
        names = fs.listdir(os.path.join(root, folder))
    except FileMissing:
        return
    except FsError:
        odd.append(folder)
        return
    for name in names:
        path = f"{folder}/{name}" if folder else name
        stat = fs.stat(os.path.join(root, path))
        if stat is not None and stat.is_directory:
            yield from _walk(fs, root, path, odd)
        else:
            yield path


def _is_spare(path: str) -> bool:
    """The next segment of the log, being filled with zeros."""
    return path.startswith(f"{LOG_FOLDER}/") and not path.endswith(".log")


def _segment_of(path: str) -> int | None:
    """The number of a segment of the log."""
    name = path.removeprefix(f"{LOG_FOLDER}/")
    return int(name[:-4]) if name != path and name.endswith(".log") and name[:-4].isdigit() else None


class Copying:
    """One backup being made. Every method blocks."""

    def __init__(self, fs: Fs, data: str, dest: str, report: Report = lambda _path, _size_bytes: None) -> None:
        self._fs = fs
        self._data = data
        self._dest = dest
        self._report = report
        self._copied: dict[str, tuple[FileMark, CopiedFile]] = {}
        """What the source was when it was copied, and what was."""
        self._put: set[str] = set()
        """Files that the data folder has otherwise, or not at all."""
        self.left_out: list[str] = []

    def begin(self) -> None:
        """Raises BackupUnusable when `dest` holds something else than a backup that was cut off."""
        fs = self._fs
        mark = os.path.join(self._dest, UNFINISHED)
        standing = fs.stat(self._dest)
        if standing is not None and fs.stat(mark) is None:
            if not standing.is_directory:
                raise BackupUnusable(self._dest, "is no folder")
            if fs.stat(os.path.join(self._dest, MANIFEST)) is not None:
                raise BackupUnusable(self._dest, "holds a finished backup already; name another folder")
            if any(not path.endswith(TEMPORARY_SUFFIX) for path in _walk(fs, self._dest, "", [])):
                raise BackupUnusable(self._dest, "is not empty, and no backup that was cut off")
        fs.make_directories(os.path.join(self._dest, SERVER_FOLDER))
        if fs.stat(mark) is None:
            fs.write_atomically(mark, b"A backup that is not finished; run the same command again.\n")

    def copy_all(self) -> None:
        """A first pass. Files that go, or change, while they are copied are the second pass's."""
        found, _odd = survey(self._fs, self._data)
        for path, mark in found.items():
            if path not in self._put:
                with contextlib.suppress(FileMissing, FileUnsafe):
                    self._copy(path, mark)

    def put(self, path: str, data: bytes) -> None:
        """A file of the copy that stands nowhere in the data folder."""
        self._put.add(path)
        target = os.path.join(self._dest, path)
        self._fs.make_directories(os.path.dirname(target))
        self._fs.write_atomically(target, data)
        self._copied[path] = FileMark(0, 0, 0), CopiedFile(len(data), zlib.crc32(data))
        self._report(path, len(data))

    def take_back(self, path: str) -> None:
        """It does not belong into the copy any more; `copy_rest` removes it."""
        self._put.discard(path)

    def copy_rest(self, place: Place | None) -> None:
        """While nothing touches the files: what is different now, and of the log what is behind nothing else."""
        found, self.left_out = survey(self._fs, self._data)
        for path, mark in found.items():
            if path in self._put:
                continue
            number = None if place is None else _segment_of(path)
            if number is not None and place is not None and number >= place.segment:
                if number == place.segment:
                    self._copy(path, None, place.offset)
            else:
                self._copy(path, mark)
        beyond = {
            path for path in found if place is not None and (number := _segment_of(path)) is not None
            and number > place.segment
        }
        for path in list(_walk(self._fs, self._dest, "", [])):
            if path not in LEFT_OUT and path not in self._put and (path not in found or path in beyond):
                with contextlib.suppress(FileMissing):
                    self._fs.unlink(os.path.join(self._dest, path))
                self._copied.pop(path, None)

    def _copy(self, path: str, mark: FileMark | None, size_bytes: int | None = None) -> None:
        known = self._copied.get(path)
        if mark is not None and known is not None and known[0] == mark:
            return
        source, target = os.path.join(self._data, path), os.path.join(self._dest, path)
        if mark is not None and known is None:
            there = self._fs.stat(target)
            if there is not None and (there.size_bytes, there.mtime_ns) == (mark.size_bytes, mark.mtime_ns):
                # Of a run that was cut off. What it is is read, so that rot is not called a backup.
                _found, crc32 = _measured(self._fs, target)
                self._copied[path] = mark, CopiedFile(mark.size_bytes, crc32)
                self._report(path, mark.size_bytes)
                return
        self._fs.make_directories(os.path.dirname(target))
        was, crc32 = self._fs.copy(source, target, size_bytes)
        self._copied[path] = was, CopiedFile(was.size_bytes, crc32)
        self._report(path, was.size_bytes)

    def finish(
        self, place: Place | None, server: str, now_ms: int, *, store: str = "", durability: str = ""
    ) -> Manifest:
        """Everything is durable and told by the manifest; from here on it is a backup."""
        fs = self._fs
        for folder in {os.path.dirname(path) for path in self._copied} | {""}:
            while True:
                fs.fsync_directory(os.path.join(self._dest, folder))
                if not folder:
                    break
                folder = os.path.dirname(folder)
        manifest = Manifest(
            server=server, taken_ms=now_ms, position=0 if place is None else place.position,
            term=0 if place is None else place.term, left_out=self.left_out, store=store, durability=durability,
            files={path: copied for path, (_mark, copied) in sorted(self._copied.items())},
        )
        fs.write_atomically(os.path.join(self._dest, MANIFEST), msgspec.json.encode(manifest))
        fs.unlink(os.path.join(self._dest, UNFINISHED))
        fs.fsync_directory(os.path.join(self._dest, SERVER_FOLDER))
        return manifest


def _measured(fs: Fs, path: str) -> tuple[int, int]:
    crc32, offset = 0, 0
    with fs.open_read(path) as file:
        while data := file.pread(1 << 20, offset):
            crc32 = zlib.crc32(data, crc32)
            offset += len(data)
    return offset, crc32


def read_manifest(fs: Fs, source: str) -> Manifest:
    """The manifest of a finished backup. Raises BackupUnusable, OSError."""
    if fs.stat(os.path.join(source, UNFINISHED)) is not None:
        raise BackupUnusable(source, "the backup is not finished; run `tellback backup server` again")
    try:
        manifest = msgspec.json.decode(fs.read(os.path.join(source, MANIFEST)), type=Manifest)
    except FileMissing:
        raise BackupUnusable(source, "there is no backup of a server") from None
    except UNDECODABLE as error:
        raise BackupUnusable(os.path.join(source, MANIFEST), f"cannot be read: {error}") from None
    if manifest.format != FORMAT:
        raise BackupUnusable(source, f"the backup has format {manifest.format}; this program knows {FORMAT}")
    return manifest


class _Kept(msgspec.Struct):
    store: str = ""


def store_of_copy(fs: Fs, folder: str) -> str:
    """Of a copy of a server on a store, which nobody can serve as it is: which store; else empty. Raises FsError."""
    with contextlib.suppress(FileMissing, *UNDECODABLE):
        return msgspec.json.decode(fs.read(os.path.join(folder, MANIFEST)), type=_Kept).store
    return ""


def restore(
    fs: Fs, source: str, data: str, report: Report = lambda _path, _size_bytes: None, *,
    fill: Callable[[Manifest], None] = lambda _manifest: None,
) -> Manifest:
    """A data folder of a backup, each file compared with the manifest. `data` is not there, or empty. `fill` brings the
    owners of a store back; it comes last.

    Raises BackupUnusable, and what `fill` does: then `data` is marked as unfinished, and the same call goes on.
    """
    manifest = read_manifest(fs, source)
    copying = Copying(fs, source, data, report)
    copying.begin()
    for path, told in manifest.files.items():
        target = os.path.join(data, path)
        if ".." in path.split("/") or os.path.isabs(path):
            raise BackupUnusable(path, "leads out of the backup")
        if path.startswith(f"{OWNERS}/"):
            continue
        fs.make_directories(os.path.dirname(target))
        try:
            was, crc32 = fs.copy(os.path.join(source, path), target)
        except FileMissing:
            raise BackupUnusable(os.path.join(source, path), "is missing") from None
        if (was.size_bytes, crc32) != (told.size_bytes, told.crc32):
            raise BackupUnusable(os.path.join(source, path), "is not what was written")
        fs.fsync_directory(os.path.dirname(target))
        report(path, was.size_bytes)
    fill(manifest)
    fs.unlink(os.path.join(data, UNFINISHED))
    fs.fsync_directory(os.path.join(data, SERVER_FOLDER))
    return manifest
