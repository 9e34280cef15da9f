"""Writes that have no answer yet: in memory, and in a file that outlives the process.

    line 1      {"tellback-outbox":1,"session":"<id>"}
    then        {"add":<request id>,"chat":"<chat_id>","frame":{...}}   before the frame is sent, synced;
                    with "replaces":<request id> when it takes the place of an earlier attempt, in one line, so
                    that no crash can leave both or none
                {"done":<request id>}                                   answered; not synced: resending is harmless
                {"conflicted":<request id>}                             refused, waits for a person

Rules of this module:
- A write is in the synced file before its first byte is sent, and stays there until its answer is installed (R45).
- The same write is the same bytes: what was sent before a crash is sent again after it, number and all.
- A torn last line was never sent and is dropped; a bad line before it is an error, not an empty outbox.
- This is the only module of the client that touches files. Its calls block; the shell runs them in a thread.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from tellback_protocol.frames import NewChat
from tellback_protocol.ids import Version, session_problem

from .errors import OutboxCorrupt, OutboxInUse
from .own_write import OwnWrite

if TYPE_CHECKING:
    from .intents import Intent

FORMAT = 1
COMPACTED_OVER_BYTES = 256 << 10
"""An outbox without live writes is cut back to its first line once it is larger than this."""

_decode_write = msgspec.json.Decoder(OwnWrite).decode


class WriteResult(msgspec.Struct, frozen=True):
    """A write that is stored."""

    version: Version
    """Of the commit; of the chat when nothing had to change."""
    message_ids: list[str] = []
    """Ids of the appended messages."""
    rebased: bool = False
    """Other commits, of anybody, came between the base and this write and did not touch the same thing."""
    duplicate: bool = False
    """The server had stored it already; this is the answer to a resend."""
    branch: NewChat | None = None
    """The chat that a branch made."""
    linked_from: list[str] = []
    """Chats that link to the one that was removed."""
    changed: bool = True
    """False when there was nothing to change and nothing was sent."""


class PendingWrite:
    """One write on its way. The intent stays; number, base and bytes are those of the latest attempt."""

    __slots__ = (
        "attempts", "data", "doomed", "installed", "intent", "journaled", "kept", "misnumbered", "number", "on_settled",
        "request_id", "sent", "targets", "write",
    )

    def __init__(self, intent: Intent, on_settled: Callable[[WriteResult | Exception], None] | None = None) -> None:
        self.intent = intent
        self.on_settled = on_settled
        """Called once with the outcome; None when nobody waits."""
        self.attempts = 0
        self.number = 0
        """n of the op id."""
        self.request_id = 0
        self.write: OwnWrite | None = None
        self.data = b""
        """The frame. Never changed while the number stands."""
        self.targets: tuple[str, ...] = ()
        """What it touches, as `lane.targets_of_request` says."""
        self.sent = False
        """Sent on this connection, and not refused for a passing reason since."""
        self.journaled = False
        self.installed = False
        """The confirmed chat already holds its effects, or it is known that there are none."""
        self.doomed = False
        """The write it builds on was refused; so will this be."""
        self.kept = False
        """Numbered by an earlier process; a later one may have used the number, too."""
        self.misnumbered = False
        """The number is another request's; the next `opened` gives a free one."""


class Entry(msgspec.Struct):
    """A write that an earlier process left behind."""

    request_id: int
    chat_id: str
    """The chat's id; of a character or preset its text."""
    data: bytes
    write: OwnWrite
    conflicted: bool = False

    @property
    def address(self) -> str:
        """The owner's one text: a chat by its id, a character or preset by its name."""
        return self.chat_id if ":" in self.chat_id else f"id:{self.chat_id}"


class Journal:
    """The outbox file, held by one process at a time."""

    def __init__(self, path: str | os.PathLike[str], new_session: Callable[[], str]) -> None:
        """Open or make the file. Raises: OutboxInUse, OutboxCorrupt, OSError."""
        self.path = Path(path)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise OutboxInUse(str(self.path), "another process holds this outbox") from None
            self.entries = self._load(new_session)
        except BaseException:
            os.close(self._fd)
            raise
        self._live = {entry.request_id for entry in self.entries}

    def _load(self, new_session: Callable[[], str]) -> list[Entry]:
        data = b""
        while chunk := os.pread(self._fd, 1 << 20, len(data)):
            data += chunk
        whole = data[: data.rfind(b"\n") + 1]
        if not whole:
            self.session = new_session()
            self._header = orjson.dumps({"tellback-outbox": FORMAT, "session": self.session}) + b"\n"
            os.ftruncate(self._fd, 0)
            self._append(self._header)
            os.fsync(self._fd)
            self._sync_folder()
            return []
        lines = whole.splitlines(keepends=True)
        self._header = lines[0]
        self.session = self._read_header(lines[0])
        entries: dict[int, Entry] = {}
        for number, line in enumerate(lines[1:], start=2):
            self._read_record(number, line, entries)
        if len(whole) < len(data):
            os.ftruncate(self._fd, len(whole))
        return list(entries.values())

    def _read_header(self, line: bytes) -> str:
        try:
            header = orjson.loads(line)
            session = header["session"]
            if header["tellback-outbox"] != FORMAT or session_problem(session):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise OutboxCorrupt(str(self.path), "the first line is no outbox header") from None
        return str(session)

    def _read_record(self, number: int, line: bytes, entries: dict[int, Entry]) -> None:
        try:
            record = orjson.loads(line)
            if "add" in record:
                start = line.index(b'"frame":') + len(b'"frame":')
                data = line[start:-2]
                entries.pop(record.get("replaces"), None)
                entries[record["add"]] = Entry(record["add"], record["chat"], data, _decode_write(data))
            elif "done" in record:
                entries.pop(record["done"], None)
            elif record["conflicted"] in entries:
                entries[record["conflicted"]].conflicted = True
        except (ValueError, KeyError, TypeError, msgspec.MsgspecError):
            raise OutboxCorrupt(str(self.path), f"line {number} is no record") from None

    def write(self, records: Iterable[Record]) -> None:
        """Append records in order; synced when one of them adds a write. Blocks. Raises: OSError."""
        lines: list[bytes] = []
        sync = False
        for record in records:
            lines.append(record.line)
            if record.kind == "add":
                self._live.add(record.request_id)
                self._live.discard(record.replaces)
                sync = True
            elif record.kind == "done":
                self._live.discard(record.request_id)
            else:
                sync = True
        if not lines:
            return
        if not self._live and not sync and os.fstat(self._fd).st_size > COMPACTED_OVER_BYTES:
            os.ftruncate(self._fd, len(self._header))
            return
        self._append(b"".join(lines))
        if sync:
            os.fdatasync(self._fd)

    def close(self) -> None:
        """Let the file go. What is in it stays."""
        os.close(self._fd)

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def _sync_folder(self) -> None:
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class Record(msgspec.Struct, frozen=True):
    """One line to write. `pending` is marked when an `add` is on the disk."""

    kind: str
    request_id: int
    line: bytes
    replaces: int = 0
    pending: Any = None


def added(chat_id: str, pending: PendingWrite, replaces: int = 0) -> Record:
    """The record that makes a write outlive the process; it takes the place of request `replaces`, if not 0."""
    instead = b'"replaces":%d,' % replaces if replaces else b""
    line = b'{"add":%d,%b"chat":%b,"frame":%b}\n' % (pending.request_id, instead, orjson.dumps(chat_id), pending.data)
    return Record("add", pending.request_id, line, replaces, pending)


def done(request_id: int) -> Record:
    """The record of a write that has its answer."""
    return Record("done", request_id, b'{"done":%d}\n' % request_id)


def conflicted(request_id: int) -> Record:
    """The record of a write that waits for a person."""
    return Record("conflicted", request_id, b'{"conflicted":%d}\n' % request_id)
