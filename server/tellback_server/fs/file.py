"""An open file, and a held directory: raw descriptors, and what is done through them.

Rules of this module:
- No buffered objects: a buffered object may write after the error handling is over (RELIABILITY checklist 2).
- A write either puts down everything or raises; short writes are continued, because a short write is how a full disk
  begins (checklist 3).
- A sync that failed is never tried again, here or above (RELIABILITY fact 1).

Platforms: on macOS `fsync` does not flush the drive's cache, so F_FULLFSYNC is used, and there is no fdatasync.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys

from tellback_server.failpoint import failpoint, kill_this_process
from tellback_server.fs.stat import FileStat, file_stat

__all__ = ["DirectoryLock", "File", "sync_descriptor"]

_ZEROS_BYTES = 1 << 20  # One write of zero-filling; large enough that the call itself costs nothing.
_ZEROS = bytes(_ZEROS_BYTES)


def sync_descriptor(descriptor: int, *, data_only: bool) -> None:
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
        sync_descriptor(self._descriptor, data_only=True)

    def fsync(self) -> None:
        """Makes data and attributes durable. Raises like `fdatasync`. The name needs `Fs.fsync_directory`."""
        failpoint("fs.fsync")
        sync_descriptor(self._descriptor, data_only=False)

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
        return file_stat(os.fstat(self._descriptor))

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
