"""Source: a folder or file to import from, read and never touched.

Rules of this module:
- Files are opened for reading only, and no link below the source is followed.
- What cannot be read, or changes while it is read, is told and left out; the rest goes on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Protocol

import msgspec

from tellback_server.checks.reading import Busy, read_steady
from tellback_server.fs import FileMissing, FileStat, FileUnsafe, Fs, FsError
from tellback_server.store.place import is_text
from tellback_server.transfer.anomalies import Anomaly, Notes
from tellback_server.transfer.item import Item

__all__ = ["Entry", "Found", "Reading", "Source", "SourceUnusable", "existing", "other", "overlap"]

Found = Item | Anomaly
"""What a source yields: something to import, or something to say about what is left out."""


class SourceUnusable(Exception):
    """What was named is nothing that this format imports; it says why."""


class Entry(msgspec.Struct, frozen=True):
    """A file of the source."""

    path: str
    parts: tuple[str, ...]
    """Below the source's root."""
    size_bytes: int

    @property
    def name(self) -> str:
        """As reports tell it."""
        return "/".join(part.encode("utf-8", "replace").decode() for part in self.parts)


def other(entry: Entry) -> Anomaly:
    """A file that is nothing to import."""
    notes = Notes(entry.name)
    notes.add("source-other", "left out")
    return notes.take()[0]


class Source(Protocol):
    """One format's way through a source."""

    @property
    def root(self) -> str:
        """What is read, absolute."""

    def plan(self) -> int:
        """Look at what is there; how many bytes will be read. Raises SourceUnusable, FsError."""

    def items(self) -> Iterator[Found]:
        """All of it, one by one; after `plan`. Raises OSError when the source's disk fails."""

    def has(self, source: str) -> bool:
        """Whether the path that an item had is there still."""


class Reading:
    """The files below a root."""

    def __init__(self, fs: Fs, root: str) -> None:
        self.fs = fs
        self.root = root

    def listed(self, parts: tuple[str, ...]) -> Iterator[Entry | Anomaly]:
        """What stands in a folder, by name; folders are left out. Nothing when there is no such folder."""
        folder = os.path.join(self.root, *parts)
        stat = self.fs.stat(folder)
        if stat is None:
            return
        notes = Notes("/".join(parts))
        if not stat.is_directory:
            notes.add("source-link", "left out")
            yield from notes.take()
            return
        try:
            names = self.fs.listdir(folder)
        except FsError as error:
            notes.add("source-unreadable", "left out", detail=error.reason)
            yield from notes.take()
            return
        for name in names:
            path = os.path.join(folder, name)
            found = self.fs.stat(path)
            if found is None or found.is_directory:
                continue
            entry = Entry(path, (*parts, name), found.size_bytes)
            told = Notes(entry.name)
            if not is_text(name):
                told.add("name-not-text", "left out")
            elif not found.is_regular:
                told.add("source-link", "left out")
            anomalies = told.take()
            yield anomalies[0] if anomalies else entry

    def folders(self, parts: tuple[str, ...]) -> Iterator[str | Anomaly]:
        """The names of the folders in a folder."""
        folder = os.path.join(self.root, *parts)
        stat = self.fs.stat(folder)
        if stat is None or not stat.is_directory:
            return
        for name in self.fs.listdir(folder):
            notes = Notes("/".join((*parts, name)).encode("utf-8", "replace").decode())
            found = self.fs.stat(os.path.join(folder, name))
            if found is None or found.is_regular:
                continue
            if not is_text(name):
                notes.add("name-not-text", "left out, with what is in it")
            elif not found.is_directory:
                notes.add("source-link", "left out")
            anomalies = notes.take()
            yield anomalies[0] if anomalies else name

    def read(self, entry: Entry, notes: Notes) -> tuple[bytes, FileStat] | None:
        """The whole file, or None and why in `notes`."""
        try:
            return read_steady(self.fs, entry.path)
        except Busy:
            notes.add("source-busy", "left out; run it again")
        except FsError as error:
            notes.add("source-unreadable", "left out", detail=error.reason)
        except OSError as error:
            notes.add("source-unreadable", "left out", detail=error.strerror or str(error))
        return None

    def has(self, source: str) -> bool:
        """Whether an item's file is there."""
        return self.fs.stat(os.path.join(self.root, *source.partition("#")[0].split("/"))) is not None


def overlap(fs: Fs, one: str, other: str) -> bool:
    """Whether one of two places lies in the other, whatever links or mounts lead there."""

    def line(path: str) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        path = os.path.realpath(path)
        while True:
            stat = fs.stat(path)
            if stat is not None:
                found.append((stat.device, stat.inode))
            above = os.path.dirname(path)
            if above == path:
                return found
            path = above

    def itself(path: str) -> tuple[int, int] | None:
        stat = fs.stat(os.path.realpath(path))
        return None if stat is None else (stat.device, stat.inode)

    return (itself(one) or (-1, -1)) in line(other) or (itself(other) or (-1, -1)) in line(one)


def existing(fs: Fs, path: str) -> FileStat:
    """What stands at a path, links above and at it followed. Raises FileMissing, FileUnsafe."""
    stat = fs.stat(os.path.realpath(path))
    if stat is None:
        raise FileMissing(path, "does not exist")
    if not (stat.is_regular or stat.is_directory):
        raise FileUnsafe(path, "is neither a folder nor a file")
    return stat
