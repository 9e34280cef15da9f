"""RecordingFs: any Fs, with every durable call written down in order, data and all.

Rules this module keeps:

- A call is written down after the inner file system did it; a call that failed is not written down.
- One lock around each call, so the trace is an order that really happened.
- Reading is passed through and leaves no trace.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping
from typing import NamedTuple

from tellback_server.fs import DirectoryLock, File, FileMark, FileStat, Fs

DIRECTORY = -1
"""The file number of a directory; where directories are told apart, all numbers from here down are."""


class Made(NamedTuple):
    """A directory was made."""

    path: str
    file: int = DIRECTORY


class Created(NamedTuple):
    """A file got its first name."""

    path: str
    file: int


class Wrote(NamedTuple):
    """Bytes were written at an offset."""

    file: int
    offset: int
    data: bytes


class Truncated(NamedTuple):
    """A size was set."""

    file: int
    size_bytes: int


class Synced(NamedTuple):
    """A file's data became durable; with `full`, its metadata too (fsync)."""

    file: int
    full: bool = False


class Renamed(NamedTuple):
    """A name moved over another one."""

    source: str
    target: str


class Exchanged(NamedTuple):
    """Two names were swapped."""

    first: str
    second: str


class Linked(NamedTuple):
    """A file got a further name."""

    source: str
    target: str


class Unlinked(NamedTuple):
    """A name was removed."""

    path: str


class SyncedDirectory(NamedTuple):
    """The names in a directory became durable."""

    path: str


class Mark(NamedTuple):
    """Not an effect: something the test wants to know the moment of."""

    what: str
    value: int


Call = Made | Created | Wrote | Truncated | Synced | Renamed | Exchanged | Linked | Unlinked | SyncedDirectory | Mark


class RecordingFile(File):
    """An open file whose changes are written down."""

    __slots__ = ("_fs", "_inner", "_number")

    def __init__(self, fs: RecordingFs, inner: File, number: int) -> None:
        super().__init__(inner.path, -1)
        self._fs = fs
        self._inner = inner
        self._number = number

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        with self._fs.lock:
            self._inner.pwrite(data, offset)
            self._fs.trace.append(Wrote(self._number, offset, bytes(data)))

    def append(self, data: bytes | bytearray | memoryview) -> None:
        with self._fs.lock:
            offset = self._inner.stat().size_bytes
            self._inner.append(data)
            self._fs.trace.append(Wrote(self._number, offset, bytes(data)))

    def pread(self, size_bytes: int, offset: int) -> bytes:
        return self._inner.pread(size_bytes, offset)

    def fdatasync(self) -> None:
        with self._fs.lock:
            self._inner.fdatasync()
            self._fs.trace.append(Synced(self._number))

    def fsync(self) -> None:
        with self._fs.lock:
            self._inner.fsync()
            self._fs.trace.append(Synced(self._number, full=True))

    def truncate(self, size_bytes: int) -> None:
        with self._fs.lock:
            self._inner.truncate(size_bytes)
            self._fs.trace.append(Truncated(self._number, size_bytes))

    def preallocate(self, size_bytes: int) -> None:
        self.pwrite(bytes(size_bytes), 0)
        self.fsync()

    def stat(self) -> FileStat:
        return self._inner.stat()

    def set_owner_and_mode(self, mode: int, uid: int, gid: int) -> None:
        self._inner.set_owner_and_mode(mode, uid, gid)

    def close(self) -> None:
        self._inner.close()


class RecordingFs(Fs):
    """Wraps `inner`. `trace` is what happened; `base` what was there, durably, when the recording began."""

    def __init__(self, inner: Fs, base: Mapping[str, bytes | None] | None = None) -> None:
        super().__init__()
        self._inner = inner
        self.trace: list[Call] = []
        self.lock = threading.RLock()
        self._numbers: dict[str, int] = {}
        self._last_number = 0
        self.base: dict[int, bytes] = {}
        """Content of the files that were there, by file number."""
        self.base_names: dict[str, int] = {}
        for path, data in (base or {}).items():
            if data is None:
                self.base_names[path] = DIRECTORY
            else:
                number = self.base_names[path] = self._number(path)
                self.base[number] = data

    def mark(self, what: str, value: int) -> None:
        """Notes a moment."""
        with self.lock:
            self.trace.append(Mark(what, value))

    def _number(self, path: str) -> int:
        number = self._numbers.get(path)
        if number is None:
            self._last_number += 1
            number = self._numbers[path] = self._last_number
        return number

    def stat(self, path: str) -> FileStat | None:
        return self._inner.stat(path)

    def listdir(self, path: str) -> list[str]:
        return self._inner.listdir(path)

    def scan(self, path: str, ending: str) -> tuple[dict[str, FileMark], dict[str, int]]:
        return self._inner.scan(path, ending)

    def free_bytes(self, path: str) -> int:
        return self._inner.free_bytes(path)

    def bind_private(self, listener: socket.socket, directory: str, name: str) -> None:
        self._inner.bind_private(listener, directory, name)

    def open_read(self, path: str) -> File:
        with self.lock:
            return RecordingFile(self, self._inner.open_read(path), self._number(path))

    def open_write(self, path: str) -> File:
        with self.lock:
            return RecordingFile(self, self._inner.open_write(path), self._number(path))

    def open_append(self, path: str) -> File:
        with self.lock:
            return RecordingFile(self, self._inner.open_append(path), self._number(path))

    def create(self, path: str) -> File:
        with self.lock:
            inner = self._inner.create(path)
            self._numbers.pop(path, None)
            number = self._number(path)
            self.trace.append(Created(path, number))
            return RecordingFile(self, inner, number)

    def _leads_to_directory(self, path: str) -> bool:
        return self._inner._leads_to_directory(path)

    def _mkdir(self, path: str) -> None:
        with self.lock:
            self._inner._mkdir(path)
            self.trace.append(Made(path))

    def rename(self, source: str, target: str) -> None:
        with self.lock:
            self._inner.rename(source, target)
            self._numbers.pop(target, None)
            # A folder takes what is in it along.
            for path in [path for path in self._numbers if path == source or path.startswith(source + "/")]:
                self._numbers[target + path[len(source):]] = self._numbers.pop(path)
            self.trace.append(Renamed(source, target))

    def exchange(self, first: str, second: str) -> bool:
        with self.lock:
            if not self._inner.exchange(first, second):
                return False
            one, two = self._number(first), self._number(second)
            self._numbers[first], self._numbers[second] = two, one
            self.trace.append(Exchanged(first, second))
            return True

    def link(self, source: str, target: str) -> None:
        with self.lock:
            self._inner.link(source, target)
            self._numbers[target] = self._number(source)
            self.trace.append(Linked(source, target))

    def unlink(self, path: str) -> None:
        with self.lock:
            self._inner.unlink(path)
            self._numbers.pop(path, None)
            self.trace.append(Unlinked(path))

    def remove_directory(self, path: str) -> None:
        raise AssertionError(f"no recorded workload removes a directory, but one tried {os.path.basename(path)}")

    def fsync_directory(self, path: str) -> None:
        with self.lock:
            self._inner.fsync_directory(path)
            self.trace.append(SyncedDirectory(path))

    def lock_directory(self, path: str) -> DirectoryLock:
        return self._inner.lock_directory(path)
