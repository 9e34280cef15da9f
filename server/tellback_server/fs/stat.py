"""What a stat tells of a file."""

from __future__ import annotations

import os
import stat as stat_module

import msgspec

__all__ = ["FileMark", "FileStat", "file_stat"]


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

    def is_file_of(self, other: FileStat | None) -> bool:
        """Whether both are one file, perhaps under two names."""
        return other is not None and (self.inode, self.device) == (other.inode, other.device)


class FileMark(msgspec.Struct, frozen=True, gc=False):
    """Which state of a file this is, as far as a stat can tell."""

    size_bytes: int
    mtime_ns: int
    inode: int


def file_stat(result: os.stat_result) -> FileStat:
    """The part of a stat result that the server knows."""
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
