"""Touch: the ways in which a user's file is changed. Each looks before, and looks again afterwards.

Rules of this module (STORAGE "User files" F6, F7):
- Whatever raises OutsideEdit left the other program's bytes under the file's name, or kept them as a backup.
- A file is durable on return; when something else is raised, the old file stands.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from typing import Literal

import msgspec

from tellback_protocol.ids import Place
from tellback_server.failpoint import failpoint
from tellback_server.fs import File, FileMissing, FileNotVerified, FileStat, FileTaken
from tellback_server.records import FileIdentity
from tellback_server.store.files import FileStore
from tellback_server.store.held import OutsideEdit, check_file, same_file
from tellback_server.store.jsonl import Image

__all__ = ["Plan", "SyncFailed", "append", "create", "remove_state", "replace_state", "rewrite"]

SWAPS_MAX = 8
"""How often a swap that meets another program's save is turned round."""


class Plan(msgspec.Struct, kw_only=True):
    """How a chat's file will be touched."""

    user: str
    place: Place
    chat_id: str
    seq: int
    now_ms: int
    kind: Literal["none", "append", "rewrite", "create"]
    path: str
    data: bytes
    """What is appended, or the whole file."""
    image: Image
    identity: FileIdentity | None
    stat: FileStat | None
    size_bytes: int
    crc32: int
    written: dict[str, tuple[bytes, bytes]]


class SyncFailed(Exception):
    """A sync of the chat file failed; it is not tried again."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(cause)
        self.cause = cause


def append(plan: Plan, files: FileStore) -> FileStat:
    """Appends and syncs. Raises OutsideEdit when somebody was faster; our bytes may then be in the file, and loading
    knows them by the INTENT.
    """
    identity = plan.identity
    assert identity is not None, "an append has a file"
    with files.fs.open_append(plan.path) as file:
        if not same_file(file.stat(), identity):
            raise OutsideEdit(plan.path, "was changed by another program")
        failpoint("checkpoint.before_append")
        try:
            file.append(plan.data)
        except OSError:
            _cut_off(file, identity.size_bytes, plan.data)
            raise
        failpoint("checkpoint.after_append")
        try:
            file.fdatasync()
        except OSError as error:
            # Cut off, so that nobody takes what the page cache shows for what the disk has.
            _cut_off(file, identity.size_bytes, plan.data)
            raise SyncFailed(error) from error
        after = file.stat()
        if file.pread(len(plan.data), identity.size_bytes) != plan.data and after.size_bytes == plan.size_bytes:
            raise SyncFailed(FileNotVerified(plan.path, "what was read back differs from what was written"))
    standing = files.fs.stat(plan.path)
    if (
        after.size_bytes != plan.size_bytes
        or standing is None
        or (standing.inode, standing.device) != (after.inode, after.device)
    ):
        raise OutsideEdit(plan.path, "was changed by another program while we appended")
    failpoint("checkpoint.after_append_sync")
    return after


def _cut_off(file: File, size_bytes: int, data: bytes) -> None:
    """After a failed append: takes back what of it is there, unless somebody wrote behind it."""
    with contextlib.suppress(OSError):
        rest = file.pread(len(data) + 1, size_bytes)
        if len(rest) <= len(data) and data.startswith(rest):
            file.truncate(size_bytes)


def create(plan: Plan, files: FileStore) -> FileStat:
    files.make_folder(plan.user, plan.place)
    try:
        return files.publish_new(plan.path, plan.data)
    except FileTaken as error:
        raise OutsideEdit(plan.path, "appeared") from error


def rewrite(plan: Plan, files: FileStore) -> FileStat:
    """Writes a verified new file and swaps it in; then looks at what was swapped out."""
    fs = files.fs
    assert plan.identity is not None, "a rewrite has a file"
    assert plan.stat is not None, "a known file has a stat"
    swap = files.swap_path(plan.user, plan.place, plan.chat_id)
    if fs.stat(swap) is not None:
        # Left by a checkpoint whose clean-up failed. It may be somebody's save, so it is kept.
        files.backup(plan.user, plan.chat_id, plan.seq, plan.now_ms, fs.read(swap))
        fs.unlink(swap)
    swapped = False
    try:
        with fs.create(swap) as file:
            failpoint("checkpoint.before_write")
            file.append(plan.data)
            file.set_owner_and_mode(plan.stat.mode, plan.stat.uid, plan.stat.gid)
            file.fsync()
            ours = file.stat()
        failpoint("checkpoint.after_write")
        if fs.read(swap) != plan.data:
            raise FileNotVerified(swap, "what was read back differs from what was written")
        failpoint("checkpoint.before_swap")
        swapped = _swap(plan, swap, files)
        failpoint("checkpoint.after_swap")
        if swapped:
            _judge(plan, swap, ours, files)
            fs.unlink(swap)
        fs.fsync_directory(os.path.dirname(plan.path))
        failpoint("checkpoint.after_swap_sync")
    except OSError:
        if not swapped:
            with contextlib.suppress(OSError):
                fs.unlink(swap)
        raise
    return ours


def replace_state(
    files: FileStore, path: str, data: bytes, known: FileIdentity | None, namespace: str
) -> FileStat:
    """Swaps a verified sidecar in and looks at what was swapped out, as for the chat's file. Durable on return.

    Its temporary name is an ordinary one: what another program saved between the swap and the look is lost only if we
    are killed in that moment too.
    """
    if known is None:
        try:
            return files.publish_new(path, data)
        except FileTaken as error:
            raise OutsideEdit(path, "appeared", namespace) from error
    fs = files.fs
    temporary = fs.temporary_path(path)
    with files.operation("write-state", path, size_bytes=len(data), crc32=zlib.crc32(data)):
        ours = fs.write_atomically(temporary, data, keep_mode_of=fs.stat(path))
        try:
            check_file(files, path, known, namespace)
            try:
                swapped = fs.exchange(temporary, path)
            except FileMissing as error:
                raise OutsideEdit(path, "is gone", namespace) from error
            if not swapped:
                fs.rename(temporary, path)
            else:
                try:
                    check_file(files, temporary, known, namespace)
                except OutsideEdit:
                    fs.exchange(temporary, path)
                    raise
        finally:
            with contextlib.suppress(FileMissing):
                fs.unlink(temporary)
        fs.fsync_directory(os.path.dirname(path))
    return ours


def remove_state(files: FileStore, path: str, known: FileIdentity | None, namespace: str) -> None:
    """Takes a sidecar away, looks at it, and removes it when it is the one we knew. Durable on return."""
    if known is None:
        return
    fs = files.fs
    temporary = fs.temporary_path(path)
    with files.operation("remove-state", path):
        try:
            fs.rename(path, temporary)
        except FileMissing as error:
            raise OutsideEdit(path, "is gone", namespace) from error
        try:
            check_file(files, temporary, known, namespace)
        except OutsideEdit:
            # When somebody made a new one meanwhile, that one replaces this as it would have without us.
            with contextlib.suppress(FileTaken):
                fs.link(temporary, path)
            raise
        finally:
            fs.unlink(temporary)
        fs.fsync_directory(os.path.dirname(path))


def _swap(plan: Plan, swap: str, files: FileStore) -> bool:
    """Gives the new file its name. True when the old one stands at `swap` now; False when it was replaced."""
    try:
        if files.fs.exchange(swap, plan.path):
            return True
    except FileMissing as error:
        with contextlib.suppress(OSError):
            files.fs.unlink(swap)
        raise OutsideEdit(plan.path, "is gone") from error
    # Without an exchange there is a moment between looking and replacing; it cannot be made shorter than this.
    try:
        check_file(files, plan.path, plan.identity)
    except OutsideEdit:
        files.fs.unlink(swap)
        raise
    files.fs.rename(swap, plan.path)
    return False


def _judge(plan: Plan, swap: str, ours: FileStat, files: FileStore) -> None:
    """What was swapped out must be the file we knew; else it is given its name back and OutsideEdit raised."""
    try:
        check_file(files, swap, plan.identity)
        return
    except OutsideEdit as error:
        reason = error.reason
    fs = files.fs
    for _turn in range(SWAPS_MAX):
        fs.exchange(swap, plan.path)
        out = fs.stat(swap)
        if out is not None and out.inode == ours.inode:
            fs.unlink(swap)
            break
    else:
        # Somebody replaces the file as fast as we look: theirs stands, and the last one swapped out is kept.
        files.backup(plan.user, plan.chat_id, plan.seq, plan.now_ms, fs.read(swap))
        fs.unlink(swap)
    fs.fsync_directory(os.path.dirname(plan.path))
    raise OutsideEdit(plan.path, reason)
