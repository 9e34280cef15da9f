"""Journal: what was imported for a user, so that a second run knows it whatever became of it since.

    .tellback/imports/<user>.jsonl      <JSON of an Entry> TAB crc32=<8 hex digits> LF, appended

Rules of this module:
- It is no truth: without it the files are compared, and what was changed here since comes in beside itself.
- Lines that do not match their checksum (a crash, a bad disk) tell nothing; the others do.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Final

import msgspec

from tellback_protocol.values import UNDECODABLE
from tellback_server.fs import File, FileMissing, Fs
from tellback_server.sealed import seal_line, unseal_line

__all__ = ["Entry", "Journal"]

FOLDER: Final = "imports"
_SYNC_EVERY: Final = 256
"""Entries; a kill of the process loses none, a power cut at most these."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One import. Persisted: keep stable."""

    root: str
    """The source, as an absolute path."""
    source: str
    """Where it stood in there."""
    place: str
    """Where it belongs."""
    target: str
    """Where it was put; differs when the name was taken."""
    fingerprint: str
    """Of the content in the source."""
    stored: str
    """Of the file as it was written."""
    states: dict[str, str]
    """The same of its states."""
    at_ms: int


_decode: Final = msgspec.json.Decoder(Entry).decode


class Journal:
    """One user's. Used by one thread, under the lock of the data folder."""

    def __init__(self, fs: Fs, own_folder: str, user: str, *, writes: bool) -> None:
        """Reads what is there. Raises FsError, OSError."""
        self._fs = fs
        self._folder = os.path.join(own_folder, FOLDER)
        self._path = os.path.join(self._folder, f"{user}.jsonl")
        self._writes = writes
        self._file: File | None = None
        self._unsynced = 0
        self._by_content: dict[tuple[str, str], Entry] = {}
        self._by_place: dict[str, Entry] = {}
        self._copies: dict[str, list[Entry]] = {}
        self._ends_whole = True
        for entry in self._read():
            self._learn(entry)

    def _read(self) -> Iterator[Entry]:
        try:
            data = self._fs.read(self._path)
        except FileMissing:
            return
        self._ends_whole = not data or data.endswith(b"\n")
        for line in data.split(b"\n"):
            body = unseal_line(line)
            if body is not None:
                with contextlib.suppress(*UNDECODABLE):
                    yield _decode(body)

    def _learn(self, entry: Entry) -> None:
        self._by_content[entry.fingerprint, entry.place] = entry
        self._by_place[entry.place] = entry
        self._copies.setdefault(entry.fingerprint, []).append(entry)

    def same(self, fingerprint: str, place: str) -> Entry | None:
        """The import of this content to this place."""
        return self._by_content.get((fingerprint, place))

    def copies(self, fingerprint: str) -> list[Entry]:
        """Imports of this content to any place."""
        return self._copies.get(fingerprint, [])

    def before(self, place: str) -> Entry | None:
        """The last import of something that belongs to this place."""
        return self._by_place.get(place)

    def add(self, entry: Entry) -> None:
        """Remember an import. Raises OSError."""
        self._learn(entry)
        if not self._writes:
            return
        if self._file is None:
            self._fs.make_directories(self._folder)
            if self._fs.stat(self._path) is None:
                self._fs.create(self._path).close()
                self._fs.fsync_directory(self._folder)
            self._file = self._fs.open_append(self._path)
        start = b"" if self._ends_whole else b"\n"
        self._ends_whole = True
        self._file.append(b"%b%b\n" % (start, seal_line(msgspec.json.encode(entry))))
        self._unsynced += 1
        if self._unsynced >= _SYNC_EVERY:
            self._file.fdatasync()
            self._unsynced = 0

    def close(self) -> None:
        """Durable on return. Raises OSError."""
        if self._file is not None:
            self._file.fdatasync()
            self._file.close()
            self._file = None
