"""Fs: the one module of the server that opens, writes, syncs, renames and removes files.

Rules this module keeps:

- Every path is an absolute str. The last component is never followed when it is a symbolic link, and what is opened is
  a regular file.
- Raw descriptors, no buffered objects: a buffered object may write after the error handling is over (RELIABILITY
  checklist 2).
- A write either puts down everything or raises; short writes are continued, because a short write is how a full disk
  begins (checklist 3).
- A sync that failed is never tried again, here or above (RELIABILITY fact 1).
- Methods of `Fs` and `File` are the list of durable effects: crash tests subclass both, record the calls and replay
  every legal disk after a cut.
- Whoever creates, renames or removes a name calls `fsync_directory` when the name itself must survive.
  `write_atomically`, `make_directories` do it.

Errors (all of them are OSError, so that `except OSError` catches what a disk can do):

    FsError                 has path
      FileMissing           nothing has that name
      FileTaken             create: something has that name already
      FileUnsafe            a symbolic link, FIFO, device, directory or socket stands where a file is expected
      FileUnreadable        it is there and may be fine, but the system does not let us read it
      FileNotVerified       what was read back is not what was written
      DirectoryLocked       another process holds the directory
    OSError                 everything else (ENOSPC, EIO, EROFS, ...), as the system said it

Platforms: Linux is what is tested. On macOS `fsync` does not flush the drive's cache, so F_FULLFSYNC is used, and there
is no fdatasync. On Windows there is neither a directory fsync, nor flock, nor pwrite: the server does not run there.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat as stat_module
import sys
from collections.abc import Callable

import msgspec

from tellback_server.clock import system_token
from tellback_server.failpoint import failpoint, kill_this_process

__all__ = [
    "TEMPORARY_SUFFIX",
    "DirectoryLock",
    "DirectoryLocked",
    "File",
    "FileMark",
    "FileMissing",
    "FileNotVerified",
    "FileStat",
    "FileTaken",
    "FileUnreadable",
    "FileUnsafe",
    "Fs",
    "FsError",
]

TEMPORARY_SUFFIX = ".tellback-tmp"
_NAME_BYTES_MAX = 255  # NAME_MAX of ext4, xfs, btrfs and APFS.
_ZEROS_BYTES = 1 << 20  # One write of zero-filling; large enough that the call itself costs nothing.
_ZEROS = bytes(_ZEROS_BYTES)
_FILE_MODE = 0o600
_DIRECTORY_MODE = 0o700
_READ_BYTES = 1 << 20

_AT_FDCWD = -100  # fcntl.h
_RENAME_EXCHANGE = 2  # linux/fs.h


class FsError(OSError):
    """Base of the typed errors. `path` is what was asked for; `errno` is set where the system gave one."""

    def __init__(self, path: str, reason: str, number: int = 0) -> None:
        super().__init__(number, reason, path)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class FileMissing(FsError):
    """Nothing has that name (or a directory above it is missing)."""


class FileTaken(FsError):
    """The name is in use; `create` never overwrites."""


class FileUnsafe(FsError):
    """What stands there is not a regular file, and is not touched."""


class FileUnreadable(FsError):
    """The file exists and could not be read: permission or a disk error. It is not the same as missing."""


class FileNotVerified(FsError):
    """The bytes read back differ from the bytes written."""


class DirectoryLocked(FsError):
    """Another process holds the lock on the directory."""


class FileStat(msgspec.Struct, frozen=True, gc=False):
    """What lstat says. Never about the target of a symbolic link."""

    size_bytes: int
    mtime_ns: int
    inode: int
    device: int
    mode: int  # Permission bits only.
    uid: int
    gid: int
    links: int
    is_regular: bool
    is_directory: bool


class FileMark(msgspec.Struct, frozen=True, gc=False):
    """Which state of a file this is, as far as a stat can tell."""

    size_bytes: int
    mtime_ns: int
    inode: int


def _file_stat(result: os.stat_result) -> FileStat:
    return FileStat(
        size_bytes=result.st_size,
        mtime_ns=result.st_mtime_ns,
        inode=result.st_ino,
        device=result.st_dev,
        mode=stat_module.S_IMODE(result.st_mode),
        uid=result.st_uid,
        gid=result.st_gid,
        links=result.st_nlink,
        is_regular=stat_module.S_ISREG(result.st_mode),
        is_directory=stat_module.S_ISDIR(result.st_mode),
    )


def _sync_descriptor(descriptor: int, *, data_only: bool) -> None:
    """Makes what was written through `descriptor` durable. Raises OSError once; the state is then unknown for ever."""
    if sys.platform == "darwin":
        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        except OSError as error:
            # Network and FUSE volumes do not know F_FULLFSYNC; any other answer is a real failure.
            if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY):
                raise
            os.fsync(descriptor)
    elif data_only:
        os.fdatasync(descriptor)
    else:
        os.fsync(descriptor)


class File:
    """An open regular file. Writes by one thread at a time; `pread` from any thread."""

    __slots__ = ("_descriptor", "path")

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Writes all of `data` at `offset`. Raises OSError; how much was written is then unknown."""
        view = memoryview(data)
        torn = failpoint("fs.pwrite")
        if torn is not None:
            os.pwrite(self._descriptor, view[:torn], offset)
            kill_this_process()
        while view:
            written = os.pwrite(self._descriptor, view, offset)
            if written <= 0:
                raise OSError(errno.EIO, "the write put down nothing", self.path)
            view = view[written:]
            offset += written

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Writes all of `data` at the end (of a file opened for appending) or where the last append ended.

        Raises OSError; how much was written is then unknown.
        """
        view = memoryview(data)
        torn = failpoint("fs.append")
        if torn is not None:
            os.write(self._descriptor, view[:torn])
            kill_this_process()
        while view:
            written = os.write(self._descriptor, view)
            if written <= 0:
                raise OSError(errno.EIO, "the write put down nothing", self.path)
            view = view[written:]

    def pread(self, size_bytes: int, offset: int) -> bytes:
        """Up to `size_bytes` from `offset`; fewer only at the end of the file. Raises OSError."""
        data = os.pread(self._descriptor, size_bytes, offset)
        if len(data) == size_bytes or not data:
            return data
        parts = [data]
        have = len(data)
        while have < size_bytes:
            data = os.pread(self._descriptor, size_bytes - have, offset + have)
            if not data:
                break
            parts.append(data)
            have += len(data)
        return b"".join(parts)

    def fdatasync(self) -> None:
        """Makes the data (and the size) durable. Raises OSError: then nothing written since the last sync can be
        trusted.
        """
        failpoint("fs.fdatasync")
        _sync_descriptor(self._descriptor, data_only=True)

    def fsync(self) -> None:
        """Makes data and attributes durable. Raises like `fdatasync`. The name needs `Fs.fsync_directory`."""
        failpoint("fs.fsync")
        _sync_descriptor(self._descriptor, data_only=False)

    def truncate(self, size_bytes: int) -> None:
        """Cuts or grows (with zeros) the file. Not durable before a sync."""
        os.ftruncate(self._descriptor, size_bytes)

    def preallocate(self, size_bytes: int) -> None:
        """Fills the file with zeros up to `size_bytes` from its start and syncs it.

        Really written, not only reserved: a reserved extent still needs a metadata commit at its first write, which
        costs up to three times the latency of a sync (checklist 12). Blocks for as long as the disk takes.
        """
        if sys.platform == "linux":
            # File systems without fallocate get their space from the writes below.
            with contextlib.suppress(OSError):
                os.posix_fallocate(self._descriptor, 0, size_bytes)
        offset = 0
        while offset < size_bytes:
            count = min(_ZEROS_BYTES, size_bytes - offset)
            self.pwrite(memoryview(_ZEROS)[:count], offset)
            offset += count
        self.fsync()

    def stat(self) -> FileStat:
        """What fstat says about the open file, wherever its name is now."""
        return _file_stat(os.fstat(self._descriptor))

    def set_owner_and_mode(self, mode: int, uid: int, gid: int) -> None:
        """Best effort: a file system or user that cannot is not an error."""
        with contextlib.suppress(OSError):
            os.fchown(self._descriptor, uid, gid)
        # After the owner, because changing the owner clears set-id bits.
        with contextlib.suppress(OSError):
            os.fchmod(self._descriptor, mode)

    def close(self) -> None:
        """Closes once; again is harmless. Raises OSError: for a file that was written, that is a failed write."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        # Whoever drops the last reference to a file that is only read need not close it: the index of the log does so,
        # because another thread may still be reading. Who wrote closes, and hears of errors.
        with contextlib.suppress(OSError):
            self.close()

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


class DirectoryLock:
    """A held `flock` on a directory. The kernel drops it when the process ends, however it ends."""

    __slots__ = ("_descriptor", "path")

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def release(self) -> None:
        """Lets another process have the directory. Again is harmless."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


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
            return _file_stat(os.lstat(path))
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
            raise _opening_error(path, error) from error
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
            _sync_descriptor(descriptor, data_only=False)
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
            raise _opening_error(path, error) from error

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


def _opening_error(path: str, error: OSError) -> FsError:
    """The typed error for a failed open."""
    number = error.errno or 0
    match number:
        case errno.ENOENT | errno.ENOTDIR:
            return FileMissing(path, "does not exist", number)
        case errno.EEXIST:
            return FileTaken(path, "exists already", number)
        case errno.ELOOP:
            return FileUnsafe(path, "is a symbolic link", number)
        case errno.EISDIR | errno.ENXIO | errno.ENODEV:
            return FileUnsafe(path, "is not a regular file", number)
        case _:
            return FileUnreadable(path, f"cannot be opened: {error.strerror}", number)


_RENAMEAT2: list[Callable[..., int] | None] = []


def _renameat2() -> Callable[..., int] | None:
    """The C function of Linux, looked up once; None where there is none."""
    if not _RENAMEAT2:
        function: Callable[..., int] | None = None
        if sys.platform == "linux":
            function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        _RENAMEAT2.append(function)
    return _RENAMEAT2[0]
