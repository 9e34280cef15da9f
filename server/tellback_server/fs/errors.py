"""What a disk answers when it does not do as asked.

All of them are OSError, so that `except OSError` catches what a disk can do:

    FsError                 has path
      FileMissing           nothing has that name
      FileTaken             create: something has that name already
      FileUnsafe            a symbolic link, FIFO, device, directory or socket stands where a file is expected
      FileUnreadable        it is there and may be fine, but the system does not let us read it
      FileNotVerified       what was read back is not what was written
      DirectoryLocked       another process holds the directory
    OSError                 everything else (ENOSPC, EIO, EROFS, ...), as the system said it
"""

from __future__ import annotations

import errno

__all__ = [
    "DirectoryLocked",
    "FileMissing",
    "FileNotVerified",
    "FileTaken",
    "FileUnreadable",
    "FileUnsafe",
    "FsError",
    "opening_error",
]


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


def opening_error(path: str, error: OSError) -> FsError:
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
