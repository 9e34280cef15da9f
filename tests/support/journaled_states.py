"""A second disk for the crash states: a file system with a journal, as ext4 is with its defaults (data=ordered).

Rules of the model:

- Names, sizes of truncated files and new files go through one journal. A cut leaves a prefix of it, over all
  directories: never a later change without an earlier one.
- The journal is committed by the sync of a directory, by fsync, by the fdatasync of a file that is new or has grown or
  shrunk; and by itself at any moment. So a rename is durable only from its directory's sync, or a later commit, on.
- fdatasync of a file that was only overwritten commits nothing but that file's data.
- Data lags: a name that is durable may lead to a file that is still empty, or still has its old bytes (delayed
  allocation). What a file has grown by arrives from its front, in pages, and never as another file's old bytes; what
  was overwritten arrives in sectors, in any order.

The strict model of `crash_states` lets names of different directories come apart, which no journal does; this one lets
every prefix of all of them together be cut, which the strict one only samples.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import ClassVar

from tests.support.crash_states import (
    SECTOR_BYTES,
    Change,
    NameChange,
    NumberedDisk,
    StrictDisk,
    changed,
    rename_in,
    sectors_of,
)
from tests.support.recording_fs import Call, Created, Mark, Synced, SyncedDirectory, Truncated, Wrote

PAGE_BYTES = 4096
_SUBSETS = 8


class JournaledDisk(StrictDisk):
    """See the module."""

    profile: ClassVar[str] = "journaled"

    def apply(self, call: Call) -> None:
        match call:
            case Wrote(file=file) | Truncated(file=file):
                self.pending.setdefault(file, []).append(call)
            case Synced(file=file, full=full):
                changes = self.pending.pop(file, [])
                before = self.files.get(file, b"")
                self.files[file] = changed(before, changes)
                is_new = any(isinstance(entry, Created) and entry.file == file for entry in self.journal)
                if full or is_new or len(before) != len(self.files[file]):
                    self._commit()
            case SyncedDirectory():
                self._commit()
            case Mark():
                pass
            case _:
                self.journal.append(call)

    @property
    def journal(self) -> list[NameChange]:
        """What no commit holds yet; all directories have one journal."""
        return self.pending_names.setdefault("", [])

    def _commit(self) -> None:
        for change in self.journal:
            rename_in(self.names, change)
        self.journal.clear()

    def disks(self, chance: random.Random) -> Iterator[NumberedDisk]:
        """Every prefix of the journal, with all data, with none, and with one file anywhere between."""
        files = [file for file, changes in self.pending.items() if changes]
        whole = {file: changed(self.files.get(file, b""), self.pending[file]) for file in files}
        for count in range(len(self.journal) + 1):
            names = {"": self.journal[:count]}
            yield self.disk(names, {})
            yield self.disk(names, whole)
            for file in files:
                for content in _arrived(self.files.get(file, b""), self.pending[file], chance):
                    yield self.disk(names, {file: content})
                    if len(files) > 1:
                        yield self.disk(names, {**whole, file: content})


def _arrived(content: bytes, changes: list[Change], chance: random.Random) -> Iterator[bytes]:
    """What of the pending changes of one file may be on the disk."""
    for count in range(len(changes)):
        yield changed(content, changes[:count])
    last = changes[-1]
    before = changed(content, changes[:-1])
    if not isinstance(last, Wrote):
        return
    over = max(0, min(len(last.data), len(before) - last.offset))
    grown = len(last.data) - over
    pieces = list(sectors_of(Wrote(last.file, last.offset, last.data[:over]))) if over else []
    if len(pieces) > 1:
        yield changed(before, list(pieces[1:]))
        for _ in range(_SUBSETS):
            yield changed(before, [piece for piece in pieces if chance.random() < 0.5])
    for border in range(SECTOR_BYTES, over, SECTOR_BYTES):
        yield changed(before, [Wrote(last.file, last.offset, last.data[:border])])
    if grown:
        # Its last page may be there in part only: the file's size is set to what was written back.
        start = last.offset + over
        pages = range(start - start % PAGE_BYTES + PAGE_BYTES, start + grown, PAGE_BYTES)
        for end in sorted({start, *pages, start + grown - 1}):
            yield changed(before, [Wrote(last.file, last.offset, last.data[: end - last.offset])])
