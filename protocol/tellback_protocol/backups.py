"""Backups on the wire: what a user asks of them, and what is told.

Rules of this module (BEHAVIOUR Z):
- A backup belongs to a chat's id; it is called `<seq>-<milliseconds since 1970>`, and `last` is the one taken last.
- Asking and taking are no writes: they have no op number and may be repeated. A restore is a write of its chat.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, UnsetType

from .effects import AnyJson, MessageJson
from .fields import Based, ObjectJson, WireInteger
from .ids import Version

BackupName = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class BackupList(msgspec.Struct, tag="backup-list", tag_field="type", gc=False):
    """The backups of a chat, also of one in the trash; without `chat` the chats that have some."""

    chat: str | UnsetType = UNSET
    id: WireInteger | None = None


class BackupCreate(msgspec.Struct, tag="backup-create", tag_field="type", gc=False):
    """A backup of a chat as it is now."""

    chat: str
    id: WireInteger | None = None


class BackupGet(msgspec.Struct, tag="backup-get", tag_field="type", gc=False):
    """What a backup holds, a page at a time."""

    chat: str
    backup: BackupName = "last"
    cursor: str | None = None
    """`cursor` of the page before."""
    id: WireInteger | None = None


class BackupRestore(Based, tag="backup-restore", tag_field="type", gc=False):
    """Put a chat back as a backup holds it, byte for byte; of a chat in the trash, out of it.

    With `to` beside a chat that is there: a new chat of that name, and the chat itself stays as it is. Only when the
    chat itself is replaced a base is needed.
    """

    chat: str
    backup: BackupName
    to: str | UnsetType = UNSET
    """The name alone: of the new chat, or of the one that comes out of the trash."""


class ListedBackup(msgspec.Struct, omit_defaults=True):
    """A backup, without what it holds."""

    backup: str
    """What it is called."""
    taken_ms: int
    reason: str
    """`schedule`, `idle`, `demand`, `force`, `deletion`, `restore`, `repair`; `piece`: what was kept before something
    was given up, without a version."""
    size_bytes: int
    chat: str | UnsetType = UNSET
    """The chat's name when it was taken."""
    version: Version | UnsetType = UNSET
    count: int | UnsetType = UNSET
    """Messages."""
    namespaces: list[str] = []
    """Of the state documents in it."""


class BackedUpChat(msgspec.Struct):
    """A chat that has backups."""

    chat_id: str
    backups: int
    size_bytes: int
    last: ListedBackup


class BackupListFrame(msgspec.Struct, tag="backup-list", tag_field="type", omit_defaults=True):
    """The backups of the chat that was asked for, the one taken last first; or the chats that have some."""

    chat_id: str | UnsetType = UNSET
    backups: list[ListedBackup] | UnsetType = UNSET
    chats: list[BackedUpChat] | UnsetType = UNSET
    id: int | None = None


class BackupCreated(msgspec.Struct, tag="backup-created", tag_field="type"):
    """The backup that holds the chat as it is; not `is_new` when there was one already."""

    chat_id: str
    backup: ListedBackup
    is_new: bool
    id: int | None = None


class BackupFrame(msgspec.Struct, tag="backup", tag_field="type", omit_defaults=True):
    """A page of what a backup holds: first the metadata and states, then messages in their order."""

    chat_id: str
    backup: ListedBackup
    cursor: str | None
    """Null: that was the last page."""
    metadata: ObjectJson | UnsetType = UNSET
    """On the first page."""
    states: dict[str, AnyJson] = {}
    first: int | UnsetType = UNSET
    """Index of the first message of this page."""
    messages: list[MessageJson] = []
    damaged: int = 0
    """Lines of the chat's file that are no messages; they are restored with it."""
    id: int | None = None


class Restored(msgspec.Struct):
    """What an ack tells of a restore in place: the chat's version from here on."""

    backup: str
    version: Version
