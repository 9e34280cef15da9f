"""Fs: names on the disk; opens, creates, replaces, renames and removes what stands behind them.

Rules of this module:
- Every path is an absolute str. The last component is never followed when it is a symbolic link, and what is opened is
  a regular file.
- Methods of `Fs` and `File` are the list of durable effects: crash tests subclass both, record the calls and replay
  every legal disk after a cut.
- Whoever creates, renames or removes a name calls `fsync_directory` when the name itself must survive.
  `write_atomically`, `make_directories` do it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat as stat_module
import sys
import zlib
from collections.abc import Callable

from tellback_server.clock import system_token
from tellback_server.failpoint import failpoint
from tellback_server.fs.errors import (
    DirectoryLocked,
    FileMissing,
    FileNotVerified,
    FileTaken,
    FileUnreadable,
    FileUnsafe,
    opening_error,
)
from tellback_server.fs.file import DirectoryLock, File, sync_descriptor
from tellback_server.fs.stat import FileMark, FileStat, file_stat

__all__ = ["TEMPORARY_SUFFIX", "Fs"]

TEMPORARY_SUFFIX = ".tellback-tmp"
_NAME_BYTES_MAX = 255  # NAME_MAX of ext4, xfs, btrfs and APFS.
_FILE_MODE = 0o600
_DIRECTORY_MODE = 0o700
_READ_BYTES = 1 << 20

_AT_FDCWD = -100  # fcntl.h
_RENAME_EXCHANGE = 2  # linux/fs.h


class Fs:
    """The real file system.

    `on_operation(verb, path, detail)`, where given, hears of each change of a name (create, rename, exchange, link,
    unlink, make-directory, write-atomically) after it happened; it is where the structured log line of every file
    operation is made. It may be called from any thread.
    """

    def __init__(self, on_operation: Callable[[str, str, str], None] | None = None) -> None:
        self._on_operation = on_operation

    # Looking.

    def stat(self, path: str) -> FileStat | None:
        """What stands at `path`, or None when nothing does. Does not follow a link. Raises OSError (EACCES, ...)."""
        try:
            return file_stat(os.lstat(path))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read(self, path: str) -> bytes:
        """The whole file. Raises FileMissing, FileUnsafe, FileUnreadable."""
        with self.open_read(path) as file:
            try:
                size_bytes = file.stat().size_bytes
                parts = [file.pread(size_bytes + 1, 0)]
                have = len(parts[0])
                # The file may grow while it is read; what is there at the end of the last read is what is returned.
                while parts[-1] and have > size_bytes:
                    parts.append(file.pread(_READ_BYTES, have))
                    have += len(parts[-1])
            except OSError as error:
                raise FileUnreadable(path, f"cannot be read: {error.strerror}", error.errno or 0) from error
            return b"".join(parts)

    def listdir(self, path: str) -> list[str]:
        """The names in a directory, sorted. Raises FileMissing, FileUnsafe (not a directory), FileUnreadable."""
        try:
            return sorted(os.listdir(path))
        except FileNotFoundError as error:
            raise FileMissing(path, "does not exist", errno.ENOENT) from error
        except NotADirectoryError as error:
            raise FileUnsafe(path, "is not a directory", errno.ENOTDIR) from error
        except OSError as error:
            raise FileUnreadable(path, f"cannot be listed: {error.strerror}", error.errno or 0) from error

    def scan(self, path: str, ending: str) -> tuple[dict[str, FileMark], dict[str, int]]:
        """The regular files in a directory whose names end so, and the inodes of all other names.

        One stat for each of the former and none for the latter: a folder of 10,000 chats is looked at again and again.
        Links are in neither. Raises like `listdir`.
        """
        marks: dict[str, FileMark] = {}
        inodes: dict[str, int] = {}
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        continue
                    if not entry.name.endswith(ending):
                        inodes[entry.name] = entry.inode()
                    elif entry.is_file(follow_symlinks=False):
                        with contextlib.suppress(FileNotFoundError):
                            found = entry.stat(follow_symlinks=False)
                            marks[entry.name] = FileMark(found.st_size, found.st_mtime_ns, found.st_ino)
        except FileNotFoundError as error:
            raise FileMissing(path, "does not exist", errno.ENOENT) from error
        except NotADirectoryError as error:
            raise FileUnsafe(path, "is not a directory", errno.ENOTDIR) from error
        except OSError as error:
            raise FileUnreadable(path, f"cannot be listed: {error.strerror}", error.errno or 0) from error
        return marks, inodes

    def free_bytes(self, path: str) -> int:
        """Bytes an ordinary user can still write on the file system of `path`."""
        result = os.statvfs(path)
        return result.f_bavail * result.f_frsize

    # Opening.

    def open_read(self, path: str) -> File:
        """Opens for reading. Raises FileMissing, FileUnsafe, FileUnreadable."""
        return self._file(path, self._open(path, os.O_RDONLY))

    def open_write(self, path: str) -> File:
        """Opens an existing file for reading and writing at offsets. Raises like `open_read`."""
        return self._file(path, self._open(path, os.O_RDWR))

    def open_append(self, path: str) -> File:
        """Opens an existing file so that every write goes to its end. Raises like `open_read`."""
        return self._file(path, self._open(path, os.O_RDWR | os.O_APPEND))

    def create(self, path: str) -> File:
        """Makes a new, empty file, mode 0600. Raises FileTaken. The name is durable after `fsync_directory`."""
        file = self._file(path, self._open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        self._tell("create", path, "")
        return file

    def _file(self, path: str, descriptor: int) -> File:
        return File(path, descriptor)

    def _open(self, path: str, flags: int) -> int:
        # O_NONBLOCK: opening a FIFO that somebody planted must not wait for its other end. It does nothing to regular
        # files.
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            descriptor = os.open(path, flags, _FILE_MODE)
        except OSError as error:
            raise opening_error(path, error) from error
        if not stat_module.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise FileUnsafe(path, "is not a regular file")
        return descriptor

    # Changing names.

    def make_directories(self, path: str) -> None:
        """Makes `path` and what is missing above it, mode 0700, each new name durable. Harmless when it exists.

        Raises FileUnsafe when something else than a directory is in the way.
        """
        missing: list[str] = []
        level = path
        while True:
            found = self.stat(level)
            if found is not None:
                break
            missing.append(level)
            level = os.path.dirname(level)
        # A link above is the administrator's business; a link at the end is refused.
        if not found.is_directory and (level == path or not self._leads_to_directory(level)):
            raise FileUnsafe(level, "is not a directory", errno.ENOTDIR)
        for level in reversed(missing):
            self._mkdir(level)
            self.fsync_directory(os.path.dirname(level))
            self._tell("make-directory", level, "")

    def _leads_to_directory(self, path: str) -> bool:
        return os.path.isdir(path)

    def _mkdir(self, path: str) -> None:
        # Another process may have made it meanwhile.
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, _DIRECTORY_MODE)

    def rename(self, source: str, target: str) -> None:
        """Gives `source` the name `target`, replacing what has it, at once for every reader. Raises FileMissing,
        OSError.
        """
        try:
            os.replace(source, target)
        except FileNotFoundError as error:
            raise FileMissing(source, "does not exist", errno.ENOENT) from error
        self._tell("rename", source, target)

    def exchange(self, first: str, second: str) -> bool:
        """Swaps two names at once. False where the platform or the file system cannot (nothing was changed). Raises
        FileMissing, OSError.
        """
        function = _renameat2()
        if function is None:
            return False
        if function(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
            self._tell("exchange", first, second)
            return True
        number = ctypes.get_errno()
        if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            return False
        if number == errno.ENOENT:
            raise FileMissing(first if self.stat(first) is None else second, "does not exist", number)
        raise OSError(number, os.strerror(number), first)

    def link(self, source: str, target: str) -> None:
        """Gives the file at `source` a second name. Raises FileTaken, FileMissing, OSError. With `unlink` it publishes
        without overwriting.
        """
        try:
            os.link(source, target, follow_symlinks=False)
        except FileExistsError as error:
            raise FileTaken(target, "exists already", errno.EEXIST) from error
        except FileNotFoundError as error:
            raise FileMissing(source, "does not exist", errno.ENOENT) from error
        self._tell("link", source, target)

    def unlink(self, path: str) -> None:
        """Removes a name that is not a directory. Raises FileMissing, OSError."""
        try:
            os.unlink(path)
        except FileNotFoundError as error:
            raise FileMissing(path, "does not exist", errno.ENOENT) from error
        self._tell("unlink", path, "")

    def remove_directory(self, path: str) -> None:
        """Removes an empty directory. Raises FileMissing, OSError (ENOTEMPTY)."""
        try:
            os.rmdir(path)
        except FileNotFoundError as error:
            raise FileMissing(path, "does not exist", errno.ENOENT) from error
        self._tell("remove-directory", path, "")

    def fsync_directory(self, path: str) -> None:
        """Makes creations, renames and removals inside `path` durable. Raises FileMissing, FileUnsafe, OSError."""
        failpoint("fs.fsync_directory")
        descriptor = self._open_directory(path)
        try:
            sync_descriptor(descriptor, data_only=False)
        finally:
            os.close(descriptor)

    def lock_directory(self, path: str) -> DirectoryLock:
        """Takes the one lock on a directory, or raises DirectoryLocked at once. Held until `release` or the end of the
        process.

        On the directory itself, not on a file in it: a lock file can be removed while it is held (RELIABILITY fact 9).
        Do not fork afterwards: a child that does not exec shares the lock.
        """
        descriptor = self._open_directory(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise DirectoryLocked(path, "is in use by another process", error.errno) from error
            raise
        return DirectoryLock(path, descriptor)

    def _open_directory(self, path: str) -> int:
        try:
            return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ENOTDIR:
                raise FileUnsafe(path, "is not a directory", errno.ENOTDIR) from error
            raise opening_error(path, error) from error

    def copy(self, source: str, target: str, size_bytes: int | None = None) -> tuple[FileMark, int]:
        """Copies a file's bytes, or its first `size_bytes`, to a new file with the mode and mtime of the source; what
        has the name is replaced at once. Durable but for the name. Returns what the source was, and the CRC-32.

        Never a link: other programs edit in place. Raises FileUnsafe, FileUnreadable, FileMissing, OSError.
        """
        temporary = self.temporary_path(target)
        file = self.create(temporary)
        try:
            try:
                with self.open_read(source) as original:
                    stat = original.stat()
                    left = stat.size_bytes if size_bytes is None else size_bytes
                    offset, crc32 = 0, 0
                    while left > 0:
                        data = original.pread(min(_READ_BYTES, left), offset)
                        if not data:
                            break
                        file.append(data)
                        crc32 = zlib.crc32(data, crc32)
                        offset += len(data)
                        left -= len(data)
                file.set_owner_and_mode(stat.mode, stat.uid, stat.gid)
                file.fdatasync()
            finally:
                file.close()
            self.set_mtime(temporary, stat.mtime_ns)
            self.rename(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                self.unlink(temporary)
            raise
        return FileMark(offset, stat.mtime_ns, stat.inode), crc32

    def set_mtime(self, path: str, mtime_ns: int) -> None:
        """Dates a file. Not durable by itself: a date is for people. Raises FileMissing, OSError."""
        try:
            os.utime(path, ns=(mtime_ns, mtime_ns), follow_symlinks=False)
        except FileNotFoundError as error:
            raise FileMissing(path, "does not exist", errno.ENOENT) from error

    # The one way to replace a file.

    def temporary_path(self, path: str) -> str:
        """A fresh name beside `path`: `.<name, shortened>.<random>.tellback-tmp`, at most 255 bytes."""
        directory, name = os.path.split(path)
        ending = f".{self.token()}{TEMPORARY_SUFFIX}"
        room = _NAME_BYTES_MAX - 1 - len(ending)
        shortened = os.fsencode(name)[:room].decode("utf-8", "ignore")
        return os.path.join(directory, f".{shortened}{ending}")

    def token(self) -> str:
        """16 characters that no other temporary file here has."""
        return system_token()

    def write_atomically(
        self, path: str, data: bytes, *, verify: bool = True, keep_mode_of: FileStat | None = None
    ) -> FileStat:
        """Replaces `path` by a file that holds `data`; after return it is durable, before it the old file stands whole.

        Temporary file in the same folder, written, synced, read back (`verify`), renamed, folder synced. Mode 0600, or
        mode and owner of `keep_mode_of`. Returns the stat of the new file. Raises FileUnsafe when `path` is something
        else than a file, FileNotVerified, OSError. An error before the rename leaves the old file and no temporary
        file; an error of the last step leaves the new file, perhaps not durable.
        """
        standing = self.stat(path)
        if standing is not None and not standing.is_regular:
            raise FileUnsafe(path, "is not a regular file")
        temporary = self.temporary_path(path)
        file = self.create(temporary)
        try:
            try:
                failpoint("fs.atomic.before_write")
                file.append(data)
                failpoint("fs.atomic.after_write")
                if keep_mode_of is not None:
                    file.set_owner_and_mode(keep_mode_of.mode, keep_mode_of.uid, keep_mode_of.gid)
                file.fsync()
                failpoint("fs.atomic.after_sync")
                written = file.stat()
            finally:
                file.close()
            if verify and self.read(temporary) != data:
                raise FileNotVerified(path, "what was read back differs from what was written", errno.EIO)
            self.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                self.unlink(temporary)
            raise
        failpoint("fs.atomic.after_rename")
        self.fsync_directory(os.path.dirname(path))
        failpoint("fs.atomic.after_directory_sync")
        self._tell("write-atomically", path, f"{len(data)} bytes")
        return written

    def _tell(self, verb: str, path: str, detail: str) -> None:
        if self._on_operation is not None:
            self._on_operation(verb, path, detail)


_RENAMEAT2: list[Callable[..., int] | None] = []


def _renameat2() -> Callable[..., int] | None:
    """The C function of Linux, looked up once; None where there is none."""
    if not _RENAMEAT2:
        function: Callable[..., int] | None = None
        if sys.platform == "linux":
            function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        _RENAMEAT2.append(function)
    return _RENAMEAT2[0]
