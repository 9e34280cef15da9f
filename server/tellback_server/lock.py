"""The data folder belongs to one server at a time.

Rules of this module:
- The lock that counts is `flock` on the folder itself: a removed or copied lock file does not free it, a renamed folder
  keeps it, and the kernel lets it go when the process dies (RELIABILITY fact 9).
- `.tellback/LOCK` says the same to people and to programs that look for a lock file.
- The term in the log stops a server whose lock was taken from it all the same (STORAGE).
"""

from __future__ import annotations

import os

from filelock import FileLock, Timeout

from tellback_server.fs import DirectoryLock, DirectoryLocked, Fs


class DataLock:
    """Both locks of one data folder."""

    def __init__(self, directory: DirectoryLock, file: FileLock) -> None:
        self._directory = directory
        self._file = file

    @classmethod
    def take(cls, fs: Fs, data: str) -> DataLock:
        """Lock `data` (absolute, existing). Raises DirectoryLocked."""
        directory = fs.lock_directory(data)
        own = os.path.join(data, ".tellback")
        try:
            fs.make_directories(own)
            file = FileLock(os.path.join(own, "LOCK"), timeout=0, mode=0o600)
            try:
                file.acquire()
            except Timeout:
                raise DirectoryLocked(data, "is locked by another program through .tellback/LOCK") from None
        except BaseException:
            directory.release()
            raise
        return cls(directory, file)

    def release(self) -> None:
        """Let go of both."""
        self._file.release()
        self._directory.release()
