"""Reading: the bytes of a file as they were at one moment, while others may write; what keeps from it is told."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from tellback_server.checks.findings import Tally
from tellback_server.fs import File, FileMissing, FileStat, Fs, FsError

__all__ = ["PIECE_BYTES", "Busy", "read_steady", "steady_pieces", "telling", "tells_unsafe"]

PIECE_BYTES: Final = 1 << 20
TRIES_MAX: Final = 4


class Busy(Exception):
    """The file changed while it was read."""


def read_steady(fs: Fs, path: str) -> tuple[bytes, FileStat]:
    """The whole of a small file, and the stat that belongs to it. Raises Busy, FsError, OSError."""
    for _try in range(TRIES_MAX):
        with fs.open_read(path) as file:
            before = file.stat()
            data = file.pread(before.size_bytes + 1, 0)
            if file.stat() == before and len(data) == before.size_bytes:
                return data, before
    raise Busy(path)


def steady_pieces(file: File) -> Iterator[bytes]:
    """An open file piece by piece. Raises Busy when it changed meanwhile, OSError."""
    before = file.stat()
    offset = 0
    while True:
        piece = file.pread(PIECE_BYTES, offset)
        if not piece:
            break
        offset += len(piece)
        yield piece
    if file.stat() != before or offset != before.size_bytes:
        raise Busy(file.path)


def tells_unsafe(stat: FileStat, tally: Tally) -> bool:
    """Whether something else than a file stands there, which is then told."""
    if not stat.is_regular:
        tally.add("file-unsafe", "a folder" if stat.is_directory else "a link or a device")
    return not stat.is_regular


@contextlib.contextmanager
def telling(tally: Tally) -> Iterator[None]:
    """Adds that a file could not be read. One that went meanwhile tells nothing."""
    try:
        yield
    except FileMissing:
        pass
    except Busy:
        tally.add("file-busy")
    except FsError as error:
        tally.add("file-unreadable", error.reason)
    except OSError as error:
        tally.add("file-unreadable", error.strerror or str(error))
