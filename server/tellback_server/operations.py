"""Operations: what a life write does to files, fully described before the first of them is touched.

    OPERATION record, COMMIT record, then in a thread
    carry_out(files, operation)      moves, trash, sidecars, groups, names; each step may be done twice
    then the base record under the new name, and DONE

Rules of this module (STORAGE "Logged operations"):
- An OPERATION counts when the COMMIT that it names stands in the log; one without it never happened.
- After a crash every OPERATION that counts and has no DONE is carried out again, before anything is served.
- Nothing is overwritten. A file of another program that stands where ours must go is put aside: a chat becomes
  `<name> - recovered #n`, anything else a backup.
- A file is moved by its name: it is never opened, so an edit of the last moment comes along.
- Of a move both names are on the disk before the old one goes; nothing is served between.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Final, Literal

import msgspec

from tellback_protocol.ids import NAME_BYTES_MAX, GroupChat, Version
from tellback_server.failpoint import failpoint
from tellback_server.fs import FileMark, FileMissing, FileStat, FileTaken
from tellback_server.records import Anchor, Checkpointed
from tellback_server.registrar import Registered, write_registered
from tellback_server.store.files import CHAT_ENDING, FileStore
from tellback_server.store.groups import GroupEdit, edit_group, groups_with
from tellback_server.trash import Entry, Trash

__all__ = ["Move", "Operation", "Replaced", "StoredChange", "Written", "carry_out", "decode_operation"]

ASIDE_MAX: Final = 1000
"""Names that are tried for a file that is put aside."""


class Move(msgspec.Struct, frozen=True, gc=False):
    """A file under another name; both paths are below the user's root."""

    source: str
    target: str
    inode: int
    """Which file it is."""


class Written(msgspec.Struct, frozen=True, gc=False):
    """A small file of ours: chat_sync."""

    path: str
    data: str


class Replaced(msgspec.Struct, frozen=True, gc=False):
    """A file that takes the place of another one."""

    source: str
    """Staged under a temporary name; empty when the other one only goes."""
    target: str
    inode: int
    """Which file the staged one is."""
    was: FileMark | None
    """What stood at the target when it was planned; what stands there instead of it is kept as a backup."""


class StoredChange(msgspec.Struct, frozen=True, gc=False):
    """A life write in a store. Persisted: keep stable."""

    staged: list[str] = []
    """Files of `.tellback/staged`, each with an owner as it goes to the trash, or comes to be."""
    renames: list[tuple[str, str]] = []
    """Chats that go with their character: chat_id and new name."""
    removed: list[tuple[str, Version]] = []
    """Owners that leave the store: chat_id and the last version."""


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """The body of an OPERATION record. Persisted: keep stable."""

    what: Literal["create", "rename", "delete", "restore", "branch", "backup-restore"]
    user: str
    chat_id: str
    name: str
    """The owner's name before."""
    integrity: str
    """Of the COMMIT without which this never happened."""
    seq: int
    folders: list[str] = []
    """To be made first."""
    moves: list[Move] = []
    """In this order."""
    replaced: list[Replaced] = []
    """By files that were written before, after the moves."""
    folder_moves: list[Move] = []
    """Whole folders, after the files."""
    trash: Entry | None = None
    """What goes to the trash, or comes out of it when `out` is there."""
    out: dict[str, str] | None = None
    """Where the entry's files go, where that is not their old place."""
    written: list[Written] = []
    unlinked: list[Move] = []
    """Files that another one took the place of: `source`, by its inode; `target` is empty."""
    groups: list[GroupEdit] = []
    registered: list[Registered] = []
    emptied: list[str] = []
    """Folders that go when nothing is left in them."""
    bases: list[Checkpointed] = []
    """What the files hold when all is done; recorded then."""
    anchors: list[Anchor] = []
    """As `bases`, of owners in a store that does not hold the operation itself yet."""
    stored: StoredChange | None = None
    """What is done in a store instead of in files."""


decode_operation = msgspec.json.Decoder(Operation).decode


# -- carrying out ----------------------------------------------------------------------------------------------------


def carry_out(files: FileStore, operation: Operation) -> None:
    """Do everything that an operation says, or what of it is not done yet. Blocks; durable on return.

    Raises FsError, OSError, OutsideEdit: what was done stays, and the same call goes on from there.
    """
    user = operation.user
    fs = files.fs
    with files.operation(f"life-{operation.what}", files.user_root(user), name=operation.name):
        failpoint("operation.begin")
        for folder in operation.folders:
            fs.make_directories(files.checked_path(user, folder))
        if operation.moves:
            _move_all(files, operation)
        for one in operation.replaced:
            _replace(files, operation, one)
        for move in operation.folder_moves:
            _move_folder(files, operation, move)
            failpoint("operation.after_folder")
        if operation.trash is not None:
            _trash(files, operation, operation.trash)
            failpoint("operation.after_trash")
        for written in operation.written:
            path = files.checked_path(user, written.path)
            data = written.data.encode("utf-8", "surrogatepass")
            if not _holds(files, path, data):
                files.write_state(path, data)
            failpoint("operation.after_written")
        for replaced in operation.unlinked:
            _unlink(files, files.checked_path(user, replaced.source), replaced.inode)
            failpoint("operation.after_unlinked")
        for edit in operation.groups:
            edit_group(files, user, edit)
            failpoint("operation.after_group")
        for registered in operation.registered:
            write_registered(files, registered)
            failpoint("operation.after_names")
        for folder in operation.emptied:
            path = files.checked_path(user, folder)
            with contextlib.suppress(OSError):
                fs.remove_directory(path)
                fs.fsync_directory(os.path.dirname(path))
        failpoint("operation.end")


def _holds(files: FileStore, path: str, data: bytes) -> bool:
    with contextlib.suppress(FileMissing):
        return files.fs.read(path) == data
    return False


def _move_all(files: FileStore, operation: Operation) -> None:
    """Every file gets its new name, then all of them lose the old one."""
    fs, user = files.fs, operation.user
    paths = [
        (files.checked_path(user, move.source), files.checked_path(user, move.target), move)
        for move in operation.moves
    ]
    left: list[tuple[str, int]] = []
    for source, target, move in paths:
        inode = _link(files, operation, source, target, move)
        if inode is not None:
            left.append((source, inode))
        failpoint("operation.after_link")
    for folder in _folders(target for _source, target, _move in paths):
        fs.fsync_directory(folder)
    failpoint("operation.after_links")
    for source, inode in left:
        standing = fs.stat(source)
        # A program that replaced the file since has another one there, and that one stays.
        if standing is not None and standing.inode == inode:
            fs.unlink(source)
        failpoint("operation.after_unlink")
    for folder in _folders(source for source, _target, _move in paths):
        with contextlib.suppress(FileMissing):
            fs.fsync_directory(folder)
    failpoint("operation.after_moves")


def _replace(files: FileStore, operation: Operation, one: Replaced) -> None:
    """The staged file gets the name; what had it goes when it is what was planned with, else it is kept first."""
    fs = files.fs
    target = files.checked_path(operation.user, one.target)
    if not one.source:
        _give_up(files, operation, target, one)
        return
    source = files.checked_path(operation.user, one.source)
    staged = fs.stat(source)
    if staged is not None and staged.inode == one.inode:
        if fs.stat(target) is None:
            fs.rename(source, target)
        elif not fs.exchange(source, target):
            _keep_other(files, operation, target, one)
            fs.rename(source, target)
        failpoint("operation.after_exchange")
        fs.fsync_directory(os.path.dirname(target))
    # After an exchange the staged name has what was replaced; also when a crash came in between.
    _give_up(files, operation, source, one)
    failpoint("operation.after_replace")


def _give_up(files: FileStore, operation: Operation, path: str, one: Replaced) -> None:
    if files.fs.stat(path) is None:
        return
    _keep_other(files, operation, path, one)
    files.fs.unlink(path)
    files.fs.fsync_directory(os.path.dirname(path))


def _keep_other(files: FileStore, operation: Operation, path: str, one: Replaced) -> None:
    """A backup of what another program put there in the last moment."""
    standing = files.fs.stat(path)
    if standing is None or FileMark(standing.size_bytes, standing.mtime_ns, standing.inode) == one.was:
        return
    name = os.path.basename(one.target)
    ending = CHAT_ENDING if name.endswith(CHAT_ENDING) else f".{name[-64:]}"
    files.backup(operation.user, operation.chat_id, operation.seq, 0, files.read(path).data, ending)


def _move_folder(files: FileStore, operation: Operation, move: Move) -> None:
    fs, user = files.fs, operation.user
    source, target = files.checked_path(user, move.source), files.checked_path(user, move.target)
    here, there = fs.stat(source), fs.stat(target)
    if here is None or here.inode != move.inode or not here.is_directory:
        # Done before. A folder that another program made under the old name since is its own.
        return
    if there is not None:
        with files.operation("put-aside", target):
            for number in range(1, ASIDE_MAX):
                aside = f"{target} - recovered #{number}"
                if fs.stat(aside) is None:
                    fs.rename(target, aside)
                    break
    with files.operation("move-folder", target):
        fs.rename(source, target)
        fs.fsync_directory(os.path.dirname(target))


def _folders(paths: Iterable[str]) -> Iterator[str]:
    return iter(dict.fromkeys(os.path.dirname(path) for path in paths))


def _link(files: FileStore, operation: Operation, source: str, target: str, move: Move) -> int | None:
    """Give the file its new name. The inode of what must lose its old one, None when nothing must."""
    fs = files.fs
    there, here = fs.stat(target), fs.stat(source)
    if here is None or not here.is_regular:
        # Done before; or another program removed it, and what is not there cannot be moved.
        return None
    if there is not None:
        if _is_same(files, source, here, target, there):
            return here.inode
        if there.inode == move.inode:
            # Done before; what another program made under the old name since is its own.
            return None
        _put_aside(files, operation, target)
    fs.link(source, target)
    return here.inode


def _is_same(files: FileStore, one: str, one_stat: FileStat, other: str, other_stat: FileStat) -> bool:
    """One file under two names; by its bytes where a file system gives each name an inode of its own."""
    if one_stat.is_file_of(other_stat):
        return True
    return one_stat.size_bytes == other_stat.size_bytes and files.fs.read(one) == files.fs.read(other)


def _put_aside(files: FileStore, operation: Operation, path: str) -> None:
    """Another program made a file where ours must go, after we had looked: nothing of it is lost."""
    fs = files.fs
    with files.operation("put-aside", path):
        if path.endswith(CHAT_ENDING):
            folder, name = os.path.split(path)
            chat = name.removesuffix(CHAT_ENDING)
            stem = chat.encode()[: NAME_BYTES_MAX + 64].decode("utf-8", "ignore")
            for number in range(1, ASIDE_MAX):
                aside = f"{stem} - recovered #{number}"
                if files.link(path, os.path.join(folder, aside + CHAT_ENDING)):
                    break
            else:
                raise FileTaken(path, f"stands in the way, and {ASIDE_MAX} recovered chats have its name")
            fs.fsync_directory(folder)
            if path == files.chat_path(operation.user, GroupChat(chat)):
                # Ours gets its name, in whatever group that is, behind this.
                for group in groups_with(files, operation.user, chat):
                    edit_group(files, operation.user, GroupEdit(path=group, action="replace", chat=chat, to=aside))
        else:
            data = files.read(path).data
            ending = f".{os.path.basename(path)[-64:]}"
            files.backup(operation.user, operation.chat_id, operation.seq, 0, data, ending)
        fs.unlink(path)


def _unlink(files: FileStore, path: str, inode: int) -> None:
    standing = files.fs.stat(path)
    if standing is not None and standing.inode == inode:
        files.fs.unlink(path)
        files.fs.fsync_directory(os.path.dirname(path))


def _trash(files: FileStore, operation: Operation, entry: Entry) -> None:
    trash = Trash(files)
    if operation.out is None:
        trash.put(operation.user, entry)
        return
    for path in entry.files:
        target = files.checked_path(operation.user, operation.out.get(path, path))
        source = trash.path(operation.user, entry, path)
        kept, there = files.fs.stat(source), files.fs.stat(target)
        if kept is not None and there is not None and not _is_same(files, source, kept, target, there):
            _put_aside(files, operation, target)
    trash.take_out(operation.user, entry, operation.out)
