"""What a process does to the files of one folder, from two sources in one vocabulary: strace, and a RecordingFs.

    python -m tests.support.system_calls DATA plain|recording

runs a small workload on a real server (it is what gets traced); with `recording` it prints what its RecordingFs saw.

Rules of this module:
- Writes are compared by file and size: an appending write has no offset. Writes behind each other are one.
- Of a file that is renamed, each call is told under the name that the file had at that moment.
- Left out: reading, and the LOCK file for people, which belongs to a library and promises nothing after a crash.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tellback_server.fs import Fs
from tests.support.recording_fs import (
    Call,
    Created,
    Exchanged,
    Linked,
    Made,
    RecordingFs,
    Renamed,
    Synced,
    SyncedDirectory,
    Truncated,
    Unlinked,
    Wrote,
)
from tests.support.server import TabClient, running
from tests.support.waiting import until

TRACED = (
    "openat,open,creat,pwrite64,write,writev,pwritev,pwritev2,fsync,fdatasync,sync_file_range,sync,syncfs,rename,"
    "renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,rmdir,ftruncate,truncate,"
    "copy_file_range,sendfile,mknod,mknodat"
)
Event = tuple[Any, ...]
"""What happened, the path below the folder, and what else tells two of a kind apart."""

_CALL = re.compile(r"^(\d+) +(\w+)\((.*)\) += (-?\d+)")
_UNFINISHED = re.compile(r"^(\d+) +(\w+)\((.*) <unfinished \.\.\.>$")
_RESUMED = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>(.*)$")
_DESCRIPTOR = re.compile(r"^\d+<([^>]*?)>")
_PATH = re.compile(r'"([^"]*)"')


def from_strace(lines: Iterable[str], folder: str) -> list[Event]:
    """The changes below `folder`, of `strace -f -y -s 0 -e trace=TRACED`, in the order in which the calls ended.

    Each call is one event: `joined` makes them comparable with a recording.
    """
    return list(_strace_events(_whole_lines(lines), folder))


def _whole_lines(lines: Iterable[str]) -> Iterator[str]:
    begun: dict[str, str] = {}
    for line in lines:
        unfinished = _UNFINISHED.match(line)
        resumed = _RESUMED.match(line)
        if unfinished:
            begun[unfinished[1]] = f"{unfinished[1]} {unfinished[2]}({unfinished[3]}"
        elif resumed:
            yield begun.pop(resumed[1]) + resumed[3]
        else:
            yield line


def _strace_events(lines: Iterable[str], folder: str) -> Iterator[Event]:
    below = folder + "/"
    for line in lines:
        call = _CALL.match(line)
        if call is None:
            continue
        _, name, arguments, result = call.groups()
        described = _DESCRIPTOR.match(arguments)
        paths = [path for path in _PATH.findall(arguments) if path]
        if described and not paths:
            paths = [described[1]]
        if int(result) < 0 or not paths or not any(path == folder or path.startswith(below) for path in paths):
            continue
        places = [os.path.relpath(path, folder) for path in paths]
        if places[0] == ".tellback/LOCK":
            continue
        match name:
            case "openat":
                if "O_CREAT" in arguments:
                    yield "created", places[0]
            case "pwrite64" | "write":
                yield "wrote", places[0], int(result)
            case "fsync" | "fdatasync":
                kind = "synced-directory" if os.path.isdir(paths[0]) else "synced"
                yield kind, places[0]
            case "rename" | "renameat" | "renameat2":
                yield "exchanged" if "RENAME_EXCHANGE" in arguments else "renamed", *places
            case "link" | "linkat":
                yield "linked", *places
            case "unlink" | "unlinkat":
                yield "unlinked", places[0]
            case "mkdir" | "mkdirat":
                yield "made", places[0]
            case "ftruncate":
                yield "truncated", places[0], int(arguments.rsplit(", ", 1)[1])
            case _:
                yield "unknown", name, line


def from_recording(trace: Iterable[Call], folder: str) -> list[Event]:
    """The same of a RecordingFs."""
    return joined(_recorded_events(trace, folder))


def _recorded_events(trace: Iterable[Call], folder: str) -> Iterator[Event]:
    paths: dict[int, str] = {}
    numbers: dict[str, int] = {}

    def place(path: str) -> str:
        return os.path.relpath(path, folder)

    def name(path: str, file: int | None) -> None:
        if file is not None:
            paths[file], numbers[path] = path, file

    for call in trace:
        match call:
            case Made(path=path):
                yield "made", place(path)
            case Created(path=path, file=file):
                name(path, file)
                yield "created", place(path)
            case Wrote(file=file, data=data):
                yield "wrote", place(paths[file]), len(data)
            case Truncated(file=file, size_bytes=size_bytes):
                yield "truncated", place(paths[file]), size_bytes
            case Synced(file=file):
                yield "synced", place(paths[file])
            case Renamed(source=source, target=target):
                name(target, numbers.pop(source, None))
                yield "renamed", place(source), place(target)
            case Exchanged(first=first, second=second):
                one, two = numbers.get(first), numbers.get(second)
                name(first, two)
                name(second, one)
                yield "exchanged", place(first), place(second)
            case Linked(source=source, target=target):
                yield "linked", place(source), place(target)
            case Unlinked(path=path):
                yield "unlinked", place(path)
            case SyncedDirectory(path=path):
                yield "synced-directory", place(path)


def joined(events: Iterable[Event]) -> list[Event]:
    """Writes to one file without anything of that file between them become one: a write may take several calls."""
    together: list[Event] = []
    for event in events:
        if event[0] == "wrote" and together and together[-1][:2] == event[:2]:
            together[-1] = (*event[:2], together[-1][2] + event[2])
        else:
            together.append(event)
    return together


async def workload(data: Path, fs: Fs) -> None:
    """A chat is made, written to, patched, given a state, folded into its files twice; a segment of the log is full."""
    async with running(data, fs=fs, checkpoint_interval_s=3600, log_segment_bytes=16 << 10) as app:
        tab = await TabClient.join(app.urls[0])
        chat = "character:Alice/First meeting"
        await tab.open(chat, create=True)
        ack = await tab.append(chat, "one", "two")
        await tab.write_state("state-update", chat, namespace="memory", base=None, set={"a": 1})
        await fold(app)
        await tab.write("patch", chat, base="*", message=ack["messages"][0],
                        patch=[{"op": "test", "path": "/mes", "value": "one"},
                               {"op": "replace", "path": "/mes", "value": "changed"}])
        await tab.append(chat, "x" * 10_000)
        await fold(app)
        await tab.append(chat, "y" * 10_000)


async def fold(app: Any) -> None:
    """One checkpoint now, to its end, and the log's pause behind it."""
    [actor] = app._hub.actors
    await app._keeper._fold(actor, "operation")
    await until(lambda: not actor.folding)
    await asyncio.sleep(0.2)


def main() -> None:
    """See the module."""
    data, kind = Path(sys.argv[1]), sys.argv[2]
    fs = RecordingFs(Fs()) if kind == "recording" else Fs()
    asyncio.run(workload(data, fs))
    if isinstance(fs, RecordingFs):
        sys.stdout.write(json.dumps(from_recording(fs.trace, str(data))) + "\n")


if __name__ == "__main__":
    main()
