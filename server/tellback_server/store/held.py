"""Held: what the files of one live chat hold, and what they do not hold yet.

Rules of this module:
- Positions by their names: the files hold everything up to `head.seq` (checkpointed); `Pending` is what came after.
- Loop thread only, except `check` and `quick_check`, which take values out of it and run in a thread.
- Noting a commit costs what the commit touched, not what the chat holds.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Iterable

import msgspec

from tellback_protocol.chat import message_id_of
from tellback_protocol.effects import (
    AppendEffect,
    DeleteEffect,
    Effect,
    InsertEffect,
    MetadataEffect,
    PatchEffect,
    StateEffect,
)
from tellback_protocol.ids import Place, StateOwner, Version
from tellback_protocol.stream import Stream, documents_of
from tellback_server.fs import FileMissing, FileStat
from tellback_server.records import Anchor, Checkpointed, FileIdentity, StateMark, encode
from tellback_server.save_strategy import events_of
from tellback_server.store.files import SYNC_NAMESPACE, FileStore
from tellback_server.store.jsonl import Image
from tellback_server.store.place import is_nameable

__all__ = [
    "FileState", "OutsideEdit", "Pending", "check_file", "has_appeared", "has_folder_changed", "knows_all",
    "quick_check",
]


class OutsideEdit(Exception):
    """A file is not as we left it. Nothing of ours or theirs was lost; load the chat again to adopt it.

    `namespace` names the state whose sidecar it is, None for the chat's own file.
    """

    def __init__(self, path: str, reason: str, namespace: str | None = None) -> None:
        super().__init__(path, reason, namespace)
        self.path = path
        self.reason = reason
        self.namespace = namespace

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"


class Pending:
    """What the files do not hold yet."""

    __slots__ = ("_appended", "_plain", "commits", "events", "full_at", "reordered", "rewrite", "states")

    def __init__(self) -> None:
        self._appended: dict[str, None] = {}
        self._plain: list[str] = []
        """To be put behind these: a list grows for less."""
        self.rewrite = False
        """A message that the file holds changed, or the metadata did: the whole file is written anew."""
        self.states: set[str] = set()
        self.reordered = False
        """Messages were put between others or taken out: the logs of floor states count them."""
        self.commits = 0
        self.events: set[str] = set()
        """What happened, as far as it may be a reason to fold soon."""
        self.full_at = sys.maxsize
        """With so many commits it may be a reason, too; set by who folds."""

    @property
    def is_urgent(self) -> bool:
        """Whether there may be a reason to fold before the time that is set."""
        return bool(self.events) or self.commits >= self.full_at

    def __bool__(self) -> bool:
        return self.commits > 0 or self.rewrite or bool(self.appended) or bool(self.states)

    def add(self, effects: Iterable[Effect]) -> None:
        """Note the effects of one commit. Cost: theirs."""
        self.commits += 1
        effects = list(effects)
        self.events |= events_of(effects)
        for effect in effects:
            match effect:
                case AppendEffect():
                    for raw in effect.messages:
                        self.appended[message_id_of(bytes(raw))] = None
                case PatchEffect():
                    if effect.message not in self.appended:
                        self.rewrite = True
                case DeleteEffect():
                    self.reordered = True
                    for message_id in effect.messages:
                        if message_id in self.appended:
                            del self.appended[message_id]
                        else:
                            self.rewrite = True
                case StateEffect():
                    self.states.update(documents_of(effect))
                case InsertEffect() | MetadataEffect():
                    self.rewrite = True
                    self.reordered = self.reordered or isinstance(effect, InsertEffect)

    @property
    def appended(self) -> dict[str, None]:
        """New messages at the end, in order, by id. Nobody else changes it."""
        if self._plain:
            self._appended |= dict.fromkeys(self._plain)
            self._plain = []
        return self._appended

    def add_plain(self, ids: list[str]) -> None:
        """As `add`, for commits that append one message each."""
        self.commits += len(ids)
        self._plain += ids

    def give_back(self, earlier: Pending) -> None:
        """A checkpoint of `earlier` failed: it is pending again, before what came since."""
        self.rewrite = self.rewrite or earlier.rewrite
        self.reordered = self.reordered or earlier.reordered
        self._appended = {**earlier.appended, **self.appended}
        self.states |= earlier.states
        self.commits += earlier.commits
        self.events |= earlier.events


class FileState(msgspec.Struct, gc=True):
    """What the files of a live chat hold. Made by loading, moved on by each checkpoint."""

    place: Place
    """Where the owner's files are."""
    identity: FileIdentity | None
    """The chat file as we know it; None when it has not been made, and for an owner without messages."""
    image: Image
    version: Version
    """The chat's version that the file holds."""
    head: Version
    """The stream's version that the files hold."""
    states: dict[str, StateMark]
    """What each sidecar holds."""
    state_files: dict[str, FileIdentity]
    """Which file each sidecar is."""
    lines: int
    """Messages in the file."""
    pending: Pending
    rotten: FileIdentity | None = None
    """As in a base record."""
    folder_mtime_ns: int = 0
    """Of the owner's folder, when all state files in it were known."""

    def note(self, effects: Iterable[Effect]) -> None:
        """A commit was installed in the stream. Call it once for each, in order."""
        self.pending.add(effects)

    def base(self, stream: Stream, head: Version, name: str) -> Checkpointed:
        """What the files hold, for a record of its own: under `name`, and up to `head` of the stream."""
        return Checkpointed(
            user=stream.user, name=name, chat_id=stream.chat_id, file=self.identity, version=self.version, head=head,
            states=dict(self.states), inherited=self.image.inherited, rotten=self.rotten,
        )

    def anchor(self, stream: Stream, header: bytes | None = None) -> bytes:
        """The body of the ANCHOR record that comes before the first commit; `header` when we create the chat."""
        return encode(
            Anchor(
                user=stream.user,
                name=stream.name,
                chat_id=stream.chat_id,
                file=self.identity,
                version=self.version,
                head=self.head,
                states=self.states,
                created=header is not None,
                header=None if header is None else header.decode(),
                inherited=self.image.inherited,
                rotten=self.rotten,
            )
        )


def same_file(stat: FileStat, identity: FileIdentity) -> bool:
    """Whether a stat says that this is the file we know, untouched."""
    return (
        stat.is_regular
        and stat.size_bytes == identity.size_bytes
        and stat.mtime_ns == identity.mtime_ns
        and stat.inode == identity.inode
    )


def check_file(
    files: FileStore, path: str, known: FileIdentity | None, namespace: str | None = None
) -> tuple[FileIdentity | None, FileStat | None]:
    """The identity of a file that is still the one we know, by stat, else by its bytes; and its stat.

    Raises OutsideEdit, FileUnsafe, FileUnreadable. Cost: a stat, or a read when somebody touched or copied the file.
    """
    stat = files.fs.stat(path)
    if stat is None or known is None:
        if stat is None and known is None:
            return None, None
        raise OutsideEdit(path, "is gone" if stat is None else "appeared", namespace)
    if same_file(stat, known):
        return known, stat
    try:
        loaded = files.read(path)
    except FileMissing as error:
        raise OutsideEdit(path, "is gone", namespace) from error
    if not known.same_bytes(loaded.identity.size_bytes, loaded.identity.crc32):
        raise OutsideEdit(path, "was changed by another program", namespace)
    return loaded.identity, loaded.stat


def quick_check(files: FileStore, user: str, held: FileState) -> bool:
    """True when no stat differs from what we know. False means: look closer (load again, or let a checkpoint decide).

    Blocks for one stat of the chat and one for each state. Raises OSError.
    """
    if isinstance(held.place, StateOwner):
        if not files.has_owner(user, held.place):
            return False
        stat = None
    else:
        stat = files.stat_chat(user, held.place)
    if (stat is None) != (held.identity is None):
        return False
    if stat is not None and held.identity is not None and not same_file(stat, held.identity):
        return False
    for namespace, identity in held.state_files.items():
        found = files.fs.stat(files.state_path(user, held.place, namespace))
        if found is None or not same_file(found, identity):
            return False
    return not isinstance(held.place, StateOwner) or knows_all(files, user, held)


def has_folder_changed(files: FileStore, user: str, held: FileState) -> bool:
    """Whether a state file may stand there that was not known. Blocks for a stat. Raises OSError."""
    folder = files.fs.stat(os.path.dirname(files.owner_path(user, held.place)))
    return folder is not None and folder.mtime_ns != held.folder_mtime_ns


def knows_all(files: FileStore, user: str, held: FileState) -> bool:
    """False when a state file stands there that was not known. Cost: a stat; a listing when the folder changed."""
    folder = files.fs.stat(os.path.dirname(files.owner_path(user, held.place)))
    if folder is None or folder.mtime_ns == held.folder_mtime_ns:
        return True
    known = {SYNC_NAMESPACE, *held.state_files}
    if any(namespace not in known for namespace in files.namespaces(user, held.place)):
        return False
    held.folder_mtime_ns = folder.mtime_ns
    return True


def has_appeared(files: FileStore, user: str, held: FileState, namespaces: Iterable[str]) -> bool:
    """Whether one of the namespaces has a state file that was not known. Blocks for a stat each. Raises OSError."""
    return any(
        namespace not in held.state_files and is_nameable(held.place, namespace)
        and files.fs.stat(files.state_path(user, held.place, namespace)) is not None
        for namespace in namespaces
    )


def state_mark(version: Version, data: bytes, stat: FileStat | None = None) -> StateMark:
    """How chat_sync and the log remember a sidecar."""
    mtime_ns, inode = (0, 0) if stat is None else (stat.mtime_ns, stat.inode)
    return StateMark(version, len(data), zlib.crc32(data), mtime_ns, inode)


