"""Crash states: every disk that a power cut may legally leave, computed from a recorded trace.

Rules of the model (strict POSIX: what a file system may do, not what ext4 happens to do):

- Data of a file is pending until that file is synced; a name is pending until its directory is synced. Neither sync
  does the other's work.
- A cut leaves of pending data: nothing, everything, any prefix of the calls, all but one call, the last write torn, the
  last write's sectors in any order, the new size with zeros or garbage instead of the data. Of pending names: nothing,
  everything, any prefix, all but one. A rename is atomic.
- A sector is 512 bytes; overwriting one with its own old bytes does not harm them.
- Where several files and directories are pending, one varies while the others are all there or all missing.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import ClassVar, Protocol

from tests.support.recording_fs import (
    DIRECTORY,
    Call,
    Created,
    Exchanged,
    Linked,
    Made,
    Mark,
    Renamed,
    Synced,
    SyncedDirectory,
    Truncated,
    Unlinked,
    Wrote,
)

SECTOR_BYTES = 512
_SMALL_BYTES = 1024
_SUBSETS = 8
_SECTORS_FEW = 16

Change = Wrote | Truncated
NameChange = Made | Created | Renamed | Exchanged | Linked | Unlinked
Disk = dict[str, bytes | None]
"""Path -> content; None for a directory."""


class NumberedDisk(Disk):
    """A disk that knows which file stands under which name."""

    __slots__ = ("files",)

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, int] = {}
        """Path -> number of the file or directory in the recording; 1 is a directory without one."""


class Recorded(Protocol):
    """A trace, and what was there before it; see RecordingFs."""

    trace: list[Call]
    base: dict[int, bytes]
    base_names: dict[str, int]


class StrictDisk:
    """What is durable and what is pending, after some calls of the trace."""

    profile: ClassVar[str] = "strict"

    def __init__(self, recording: Recorded) -> None:
        self.files: dict[int, bytes] = dict(recording.base)
        self.pending: dict[int, list[Change]] = {}
        self.names: dict[str, int] = dict(recording.base_names)
        self.pending_names: dict[str, list[NameChange]] = {}

    def apply(self, call: Call) -> None:
        match call:
            case Wrote(file=file) | Truncated(file=file):
                self.pending.setdefault(file, []).append(call)
            case Synced(file=file):
                changes = self.pending.pop(file, [])
                self.files[file] = changed(self.files.get(file, b""), changes)
            case Made(path=path) | Created(path=path) | Unlinked(path=path) | Linked(target=path):
                self.pending_names.setdefault(os.path.dirname(path), []).append(call)
            case Renamed(source=path) | Exchanged(first=path):
                # What is pending in a folder that moves would have to be known by the folder, not by its path.
                assert not any(self.pending_names.get(folder) for folder in self.pending_names
                               if folder.startswith(path + "/") or folder == path), f"{path} moves unsynced"
                self.pending_names.setdefault(os.path.dirname(path), []).append(call)
            case SyncedDirectory(path=path):
                for change in self.pending_names.pop(path, []):
                    rename_in(self.names, change)
            case Mark():
                pass

    def disks(self, chance: random.Random) -> Iterator[NumberedDisk]:
        """Every disk a cut may leave now. May repeat itself."""
        directories = [path for path, changes in self.pending_names.items() if changes]
        files = [file for file, changes in self.pending.items() if changes]
        none_d: dict[str, list[NameChange]] = {}
        all_d = {path: self.pending_names[path] for path in directories}
        none_f: dict[int, bytes] = {}
        all_f = {file: changed(self.files.get(file, b""), self.pending[file]) for file in files}
        for names in (none_d, all_d):
            for data in (none_f, all_f):
                yield self.disk(names, data)
        for path in directories:
            for choice in _name_choices(self.pending_names[path]):
                for data in (none_f, all_f):
                    yield self.disk({path: choice}, data)
                    yield self.disk({**all_d, path: choice}, data)
        for file in files:
            for content in _contents(self.files.get(file, b""), self.pending[file], chance):
                for names in (none_d, all_d) if directories else (none_d,):
                    yield self.disk(names, {file: content})
                    if len(files) > 1:
                        yield self.disk(names, {**all_f, file: content})

    def disk(self, names: dict[str, list[NameChange]], data: dict[int, bytes]) -> NumberedDisk:
        """What is durable, with these pending changes of names, and these files."""
        entries = dict(self.names)
        for changes in names.values():
            for change in changes:
                rename_in(entries, change)
        disk = NumberedDisk()
        for path, file in entries.items():
            parent = os.path.dirname(path)
            if parent != path and parent not in entries:
                # The directory above is not durable, so nobody can reach this.
                continue
            if file <= DIRECTORY:
                disk[path] = None
                disk.files[path] = -file
            else:
                disk[path] = data[file] if file in data else self.files.get(file, b"")
                disk.files[path] = file
        return disk


def rename_in(names: dict[str, int], change: NameChange) -> None:
    """Applies one change of names. A change whose source was omitted has nothing to move."""
    match change:
        case Made(path=path, file=file):
            names[path] = file
        case Created(path=path, file=file):
            names[path] = file
        case Unlinked(path=path):
            names.pop(path, None)
        case Renamed(source=source, target=target):
            if names.get(source, 0) <= DIRECTORY:
                below = [path for path in names if path.startswith(source + "/")]
                for path in below:
                    names[target + path[len(source):]] = names.pop(path)
            if source in names:
                names[target] = names.pop(source)
        case Linked(source=source, target=target):
            if source in names:
                names[target] = names[source]
        case Exchanged(first=first, second=second):
            if first in names and second in names:
                names[first], names[second] = names[second], names[first]


def changed(content: bytes, changes: list[Change]) -> bytes:
    data = bytearray(content)
    for change in changes:
        match change:
            case Wrote(offset=offset, data=piece):
                if len(data) < offset:
                    data.extend(bytes(offset - len(data)))
                data[offset : offset + len(piece)] = piece
            case Truncated(size_bytes=size_bytes):
                del data[size_bytes:]
                data.extend(bytes(size_bytes - len(data)))
    return bytes(data)


def _name_choices(changes: list[NameChange]) -> Iterator[list[NameChange]]:
    """Prefixes, and all but one."""
    for count in range(len(changes)):
        yield changes[:count]
    for omitted in range(len(changes)):
        yield changes[:omitted] + changes[omitted + 1 :]


def _contents(content: bytes, changes: list[Change], chance: random.Random) -> Iterator[bytes]:
    """What of the pending changes of one file may be on the disk."""
    for count in range(len(changes)):
        yield changed(content, changes[:count])
    for omitted in range(len(changes)):
        yield changed(content, changes[:omitted] + changes[omitted + 1 :])
    last = changes[-1]
    before = changed(content, changes[:-1])
    if not isinstance(last, Wrote):
        return
    for border in _borders(last):
        yield changed(before, [Wrote(last.file, last.offset, last.data[:border])])
    end = last.offset + len(last.data)
    if end > len(before):
        yield changed(before, [Truncated(last.file, end)])
    sectors = list(sectors_of(last))
    if len(sectors) > 1:
        # The head is missing, the tail is there; then every single one missing; then chance decides.
        yield changed(before, list(sectors[1:]))
        yield changed(before, [sectors[-1]])
        if len(sectors) <= _SECTORS_FEW:
            for omitted in range(len(sectors)):
                yield changed(before, list(sectors[:omitted] + sectors[omitted + 1 :]))
        for _ in range(_SUBSETS):
            yield changed(before, [sector for sector in sectors if chance.random() < 0.5])
    sector = chance.choice(sectors)
    garbage = Wrote(last.file, sector.offset, chance.randbytes(len(sector.data)))
    yield changed(before, [last, garbage])


def _borders(write: Wrote) -> list[int]:
    """Where a write may be torn: at every byte when it is small, else near its ends, its header and the sectors."""
    size = len(write.data)
    if size <= _SMALL_BYTES:
        return list(range(1, size))
    chosen = {1, 2, 4, 8, 20, 63, 64, 65, 83, 84, 85, size - 1, size - 4, size - 5}
    first = SECTOR_BYTES - write.offset % SECTOR_BYTES
    if size <= 16 * SECTOR_BYTES:
        chosen.update(range(first, size, SECTOR_BYTES))
    else:
        chosen.update((first, size - SECTOR_BYTES))
    return sorted(border for border in chosen if 0 < border < size)


def sectors_of(write: Wrote) -> Iterator[Wrote]:
    """The write, cut at the sector borders of the file."""
    start = 0
    while start < len(write.data):
        at = write.offset + start
        count = min(SECTOR_BYTES - at % SECTOR_BYTES, len(write.data) - start)
        yield Wrote(write.file, at, write.data[start : start + count])
        start += count


def crash_states(
    recording: Recorded, seed: int = 1, disk_class: type[StrictDisk] = StrictDisk
) -> Iterator[tuple[int, NumberedDisk]]:
    """(number of calls that had happened, disk) for a cut after each call of the trace; each disk once per cut."""
    chance = random.Random(seed)
    model = disk_class(recording)
    for done in range(len(recording.trace) + 1):
        if done:
            call = recording.trace[done - 1]
            model.apply(call)
        seen: set[int] = set()
        for disk in model.disks(chance):
            fingerprint = hash(frozenset(disk.items()))
            if fingerprint not in seen:
                seen.add(fingerprint)
                yield done, disk
