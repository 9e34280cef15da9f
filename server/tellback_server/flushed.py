"""Flushed: how far the backup was brought, kept for the next start. Derived: lost, it costs work and nothing else.

    <data>/.tellback/flushed    {"position", "store"}, sealed
"""

from __future__ import annotations

import os

import msgspec

from tellback_server.fs import Fs, FsError
from tellback_server.log import Position
from tellback_server.sealed import seal, unseal

__all__ = ["FlushedFile"]


class _Flushed(msgspec.Struct, frozen=True):
    """Persisted: keep stable."""

    position: int
    store: str
    """The backup that this is about, without its password."""


class FlushedFile:
    """The file. Blocks."""

    def __init__(self, fs: Fs, data: str, store: str) -> None:
        self._fs = fs
        self._path = os.path.join(data, ".tellback", "flushed")
        self._store = store

    def read(self) -> Position:
        """0 when nothing is known of this backup."""
        try:
            found = unseal(self._fs.read(self._path))
            if found is not None:
                flushed = msgspec.json.decode(found[0], type=_Flushed)
                if flushed.store == self._store:
                    return Position(flushed.position)
        except (FsError, msgspec.MsgspecError):
            pass
        return Position(0)

    def write(self, position: Position) -> None:
        """Durable on return. Raises FsError, OSError."""
        self._fs.write_atomically(self._path, seal(msgspec.json.encode(_Flushed(position, self._store))))
