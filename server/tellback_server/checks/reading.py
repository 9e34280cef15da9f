"""Reading: a file's bytes as they were at one moment, whole or in pieces, while others may write."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tellback_server.fs import File, FileStat, Fs

__all__ = ["PIECE_BYTES", "Busy", "read_steady", "steady_pieces"]

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
