"""Records: what the log's bodies mean to the layers above it.

Rules of this module:
- Persisted, keep stable: a kind keeps its number and a field its meaning; new fields have a default.
- Record.owner is `<user>/<chat_id>`, Record.seq the stream's seq when the record was made.
- A base record (ANCHOR, CHECKPOINT, ADOPT) says which bytes the file held and up to which seq; commits above it are
  pending.

    kind        body                 when
    COMMIT      Committed.record     a write was accepted
    STORED      Stored.record        a conflict or refusal used up its op number
    ANCHOR      Anchor               before the first COMMIT or STORED of an actor's life
    INTENT      Intent               before a chat file or sidecar is touched; durable before the first touch
    CHECKPOINT  Checkpointed         after everything up to `seq` is durable in the files
    ADOPT       Adopted              another program's edit became the chat; before anybody is shown it
    ACTIVE      active_chats.Choice  a user chose the active chat of a character or group; owner `<user>/active-chats`
    OPERATION   operations.Operation before the COMMIT of a life write: the files that it moves
    DONE        Done                 when they are moved
    DELTAS      Deltas               text of a generation that runs, at most 250 ms or 8 KiB after it came
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType

from tellback_protocol.ids import Version

__all__ = [
    "ACTIVE",
    "ADOPT",
    "ANCHOR",
    "CHECKPOINT",
    "COMMIT",
    "DELTAS",
    "DONE",
    "INTENT",
    "OPERATION",
    "STORED",
    "Adopted",
    "Anchor",
    "BaseRecord",
    "Checkpointed",
    "Deltas",
    "Done",
    "FileIdentity",
    "Intent",
    "StateMark",
    "decode_base",
    "decode_deltas",
    "decode_done",
    "decode_intent",
    "encode",
    "owner_key",
]

COMMIT: Final = 1
STORED: Final = 2
ANCHOR: Final = 3
INTENT: Final = 4
CHECKPOINT: Final = 5
ADOPT: Final = 6
ACTIVE: Final = 9
OPERATION: Final = 7
DONE: Final = 8
DELTAS: Final = 10


class FileIdentity(msgspec.Struct, frozen=True, gc=False):
    """Which bytes a file holds (size, CRC) and which file it is (mtime, inode)."""

    size_bytes: int
    crc32: int
    mtime_ns: int
    inode: int

    def same_bytes(self, size_bytes: int, crc32: int) -> bool:
        """True when the bytes are the same, as far as length and CRC can tell."""
        return self.size_bytes == size_bytes and self.crc32 == crc32

    def is_untouched(self, size_bytes: int, mtime_ns: int, inode: int) -> bool:
        """Whether nobody wrote to the file since: a write changes its time, a new file has another inode. False when it
        is not known which file it was.
        """
        return self.inode != 0 and (size_bytes, mtime_ns, inode) == (self.size_bytes, self.mtime_ns, self.inode)


class StateMark(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A state namespace as its file holds it."""

    version: Version
    size_bytes: int
    crc32: int
    mtime_ns: int = 0
    inode: int = 0
    """Which file it was; 0 where that is not told: in what earlier versions wrote, and behind a move."""

    @property
    def identity(self) -> FileIdentity:
        """The file."""
        return FileIdentity(self.size_bytes, self.crc32, self.mtime_ns, self.inode)


class _Base(msgspec.Struct, kw_only=True):
    user: str
    name: str
    chat_id: str
    file: FileIdentity | None
    """None when the chat has no file yet."""
    version: Version
    """The chat's version that the file holds."""
    head: Version
    """The stream's version that the files hold; its seq is the watermark."""
    states: dict[str, StateMark] = {}
    inherited: Raw | UnsetType = UNSET
    """Metadata that a group chat without a header line had from its group's file; unset where there is a header."""
    rotten: FileIdentity | None = None
    """What the file was when we wrote it: nobody wrote to it since, and its bytes changed all the same (X6)."""


class Anchor(_Base, kw_only=True, tag="anchor"):
    """The chat stands on these bytes. Binds the name to the id."""

    created: bool = False
    """The chat was created by us with this record; its file is made by the first checkpoint."""
    header: str | None = None
    """The header line of a created chat."""


class Checkpointed(_Base, kw_only=True, tag="checkpoint"):
    """Everything up to `head.seq` is in the files."""


class Adopted(_Base, kw_only=True, tag="adopt"):
    """`file` is another program's; the chat is that file with `effects` on top, at `version`."""

    effects: Raw = Raw(b"[]")
    """What of ours applied on top and is not in the file yet, as effects; pending states among them."""
    was: dict[str, int] = {}
    """As in Commit, for `effects`."""
    recovered: list[str] = []
    """Names of chats that hold our version."""
    backups: list[str] = []
    """Backup files, relative to the user's root."""
    cut: list[tuple[int, int]] = []
    """Offset and size of pieces of our own unfinished append inside `file`; they are left out when it is read."""


BaseRecord = Anchor | Checkpointed | Adopted


class Intent(msgspec.Struct, gc=False):
    """A file is about to be touched: if it is found with these bytes, it was us."""

    kind: Literal["none", "append", "rewrite", "create"]
    seq: int
    before: FileIdentity | None
    size_bytes: int
    crc32: int
    states: dict[str, tuple[int, int] | None] = {}
    """Size and CRC of each sidecar to come; None when it will be removed."""


class Deltas(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Text of a generation behind `offset`. It has no version; its seq is that of the stream when it came."""

    generation: str
    offset: int
    """In UTF-16 units."""
    text: str
    reasoning_offset: int = 0
    reasoning: str = ""


class Done(msgspec.Struct, frozen=True, gc=False):
    """The files of a logged operation are moved."""

    integrity: str
    """Of the operation's COMMIT."""
    gone: bool = False
    """The owner is in the trash."""


_encode = msgspec.json.encode
_decode_base = msgspec.json.Decoder(BaseRecord).decode
decode_intent = msgspec.json.Decoder(Intent).decode
decode_deltas = msgspec.json.Decoder(Deltas).decode
decode_done = msgspec.json.Decoder(Done).decode


def encode(record: BaseRecord | Intent) -> bytes:
    """The body of a record."""
    return _encode(record)


def decode_base(body: bytes) -> BaseRecord:
    """The body of an ANCHOR, CHECKPOINT or ADOPT record. Raises msgspec.MsgspecError."""
    record: BaseRecord = _decode_base(body)
    return record


def owner_key(user: str, chat_id: str) -> str:
    """Record.owner of a chat."""
    return f"{user}/{chat_id}"
