"""The one package of the server that opens, writes, syncs, renames and removes files.

Linux is what is tested. On Windows there is neither a directory fsync, nor flock, nor pwrite: the server does not run
there.
"""

from tellback_server.fs.errors import (
    DirectoryLocked,
    FileMissing,
    FileNotVerified,
    FileTaken,
    FileUnreadable,
    FileUnsafe,
    FsError,
)
from tellback_server.fs.file import DirectoryLock, File
from tellback_server.fs.fs import TEMPORARY_SUFFIX, Fs
from tellback_server.fs.stat import FileMark, FileStat

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
