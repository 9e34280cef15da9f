"""Power cuts for a real server: every durable call it makes is written to a journal outside its folder, and after a
kill -9 the folder is made what a cut may legally have left.

    prepare   in the server's process, before it starts: its file system writes the journal
    cut       in the test's process, when the server is dead

Faults of the disk come with it: with `fail_sync_at` one fdatasync of the log fails, and what it should have made
durable is gone for ever, as after a real EIO.
"""

from __future__ import annotations

import errno
import os
import pickle
import random
import re
from itertools import islice
from pathlib import Path
from typing import Any

from tellback_server.fs import File, Fs
from tellback_server.log.format import BATCH_MAGIC
from tests.support.crash_states import Disk, StrictDisk
from tests.support.journaled_states import JournaledDisk
from tests.support.recording_fs import Call, Mark, RecordingFile, RecordingFs

DISKS_LOOKED_AT = 60
LENGTH_OFFSET = 8
"""Of the length in a batch's header (STORAGE "Log")."""
LOST = "lost"
"""The mark of a file whose pending data an error of the disk has taken."""


class Journal:
    """The trace of a RecordingFs, as a file."""

    def __init__(self, path: str, base: dict[str, bytes | None]) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC)
        self._write(base)

    def append(self, call: Call) -> None:
        self._write(call)

    def _write(self, value: object) -> None:
        data = memoryview(pickle.dumps(value))
        while data:
            data = data[os.write(self._descriptor, data) :]


class FailingFile(RecordingFile):
    """One sync fails, and takes along what it was to save."""

    __slots__ = ()

    def fdatasync(self) -> None:
        fs = self._fs
        assert isinstance(fs, JournalingFs)
        if "/log/" in self.path:
            fs.syncs += 1
            if fs.syncs == fs.fail_sync_at:
                fs.mark(LOST, self._number)
                raise OSError(errno.EIO, os.strerror(errno.EIO), self.path)
        super().fdatasync()


class JournalingFs(RecordingFs):
    """The real file system with a journal."""

    fail_sync_at = 0
    syncs = 0

    def open_write(self, path: str) -> File:
        return self._failing(super().open_write(path))

    def create(self, path: str) -> File:
        return self._failing(super().create(path))

    def _failing(self, file: File) -> File:
        # Not a second object on the same descriptor: the first one would close it.
        file.__class__ = FailingFile
        return file

    def remove_directory(self, path: str) -> None:
        self._inner.remove_directory(path)


def contents(data: Path) -> dict[str, bytes | None]:
    """Everything below a folder, and the folders above it."""
    found: dict[str, bytes | None] = {str(parent): None for parent in reversed(data.parents)}
    found[str(data)] = None
    for path in sorted(data.rglob("*")):
        if path.is_dir():
            found[str(path)] = None
        elif path.is_file():
            found[str(path)] = path.read_bytes()
    return found


def prepare(arguments: dict[str, Any]) -> None:
    """The server that starts now writes a journal. `arguments`: `journal`, `data`, `fail_sync_at`."""
    import tellback_server.app

    base = contents(Path(arguments["data"]))

    def journaling() -> Fs:
        fs = JournalingFs(Fs(), base)
        fs.trace = Journal(arguments["journal"], {path: base[path] for path in fs.base_names})  # type: ignore[assignment]
        fs.fail_sync_at = arguments.get("fail_sync_at", 0)
        return fs

    tellback_server.app.Fs = journaling  # type: ignore[assignment, misc]


def replayed(journal: Path, disk_class: type[StrictDisk]) -> StrictDisk:
    """What is durable and what is pending at the end of a journal. The last call may be torn: it was not done."""
    with journal.open("rb") as file:
        disk = disk_class(RecordingFs(Fs(), pickle.load(file)))
        while True:
            try:
                call: Call = pickle.load(file)
            except (EOFError, pickle.UnpicklingError):
                return disk
            if isinstance(call, Mark) and call.what == LOST:
                disk.pending.pop(call.value, None)
            disk.apply(call)


def cut(journal: Path, data: Path, chance: random.Random) -> str:
    """Makes the folder what a power cut left of it; says what was chosen."""
    disk_class = chance.choice([StrictDisk, JournaledDisk])
    model = replayed(journal, disk_class)
    choice = chance.choice([0, 0, chance.randrange(DISKS_LOOKED_AT)])
    chosen: Disk = model.disk({}, {})
    for chosen in islice(model.disks(chance), choice + 1):  # noqa: B007  The last one is taken.
        pass
    _install(chosen, data)
    return f"{disk_class.profile} {choice}, {len(model.pending)} files and {len(model.pending_names)} folders pending"


def rot(data: Path, chance: random.Random) -> str:
    """Flips one bit in the text of a message in the log's last segment, where there is one."""
    segments = sorted((data / ".tellback/log").glob("*.log")) or sorted((data / ".tellback/log").iterdir())
    for path in reversed(segments):
        content = bytearray(path.read_bytes())
        starts = [found.end() for found in re.finditer(rb'"mes":"t', content)]
        if starts:
            content[chance.choice(starts[-10:])] ^= 1
            path.write_bytes(content)
            return f"a bit of {path.name} flipped"
    return "nothing to flip a bit in"


def rot_length(data: Path, chance: random.Random) -> str:
    """Flips one bit of how long a batch is, in one of the last headers of the log, where there is one."""
    for path in sorted((data / ".tellback/log").glob("*.log"), reverse=True):
        content = bytearray(path.read_bytes())
        starts = [found.start() for found in re.finditer(re.escape(BATCH_MAGIC), content)]
        if starts:
            content[chance.choice(starts[-10:]) + LENGTH_OFFSET + chance.randrange(4)] ^= 1 << chance.randrange(8)
            path.write_bytes(content)
            return f"a bit of a length in {path.name} flipped"
    return "nothing to flip a bit in"


def _install(disk: Disk, data: Path) -> None:
    inside = str(data) + os.sep
    for path in sorted(data.rglob("*"), reverse=True):
        if str(path) in disk:
            continue
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        else:
            path.unlink()
    for name, content in disk.items():
        path = Path(name)
        if not name.startswith(inside):
            continue
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
        elif not path.is_file() or path.read_bytes() != content:
            path.write_bytes(content)
