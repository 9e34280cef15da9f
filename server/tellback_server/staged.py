"""Staged: whole owners as files of the server's own: on their way into a store, out of it, or kept beside it.

    name = staged.put(user, key, value)      durable on return; nobody sees it
    staged.get(user, name)                   None when it was removed
    staged.keep(user, value)                 the data folder holds this owner from now on, for a store that may lose it

    <data>/.tellback/staged/<user>/<integrity>-<chat_id>      "tellback-owner 1 crc32=0a1b2c3d\n", then MessagePack
    <data>/.tellback/kept/<user>/<chat_id>                    the same

Rules of this module:
- A life write stages what it will do before it is logged, so that carrying it out needs nothing else, however often.
- What no logged life write names is removed at the start.
"""

from __future__ import annotations

import contextlib
import os
import re
import zlib
from collections.abc import Iterable
from typing import Final

import msgspec

from tellback_protocol.ids import Version
from tellback_protocol.stream import StateDocument
from tellback_protocol.values import UNDECODABLE
from tellback_server.fs import FileMissing, FileTaken
from tellback_server.operations import Operation
from tellback_server.store.base import StoreDamaged, StoredChat
from tellback_server.store.files import FileStore

__all__ = ["Staged", "owner_bytes", "owner_from", "owner_of"]

_HEAD: Final = re.compile(rb"tellback-owner 1 crc32=([0-9a-f]{8})\n")
_ID_CHARACTERS: Final = 36
_HEAD_BYTES: Final = len(b"tellback-owner 1 crc32=00000000\n")


class _Document(msgspec.Struct, array_like=True, gc=False):
    version: Version | None
    data: bytes | None
    corrupt: bool = False


class _Owner(msgspec.Struct):
    """Persisted: keep stable."""

    chat_id: str
    name: str
    head: Version
    version: Version
    metadata: bytes
    messages: list[tuple[str, bytes]]
    states: dict[str, _Document]
    summary: bytes = b"{}"


_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.Decoder(_Owner).decode


def owner_of(name: str) -> str:
    """The owner's id in the name of what is staged."""
    return name[-_ID_CHARACTERS:]


def owner_bytes(value: StoredChat) -> bytes:
    """The file that holds a whole owner."""
    body = _encode(_Owner(
        value.chat_id, value.name, value.head, value.version, value.metadata, list(value.messages.items()),
        {name: _Document(one.version, one.data, one.corrupt) for name, one in value.states.items()}, value.summary,
    ))
    return b"tellback-owner 1 crc32=%08x\n" % zlib.crc32(body) + body


def owner_from(data: bytes, path: str) -> StoredChat:
    """The owner that a file holds. Raises StoreDamaged, with its path."""
    found, body = _HEAD.match(data), data[_HEAD_BYTES:]
    try:
        if found is None or int(found[1], 16) != zlib.crc32(body):
            raise StoreDamaged(f"{path} is not what was written")
        owner = _decode(body)
    except UNDECODABLE as error:
        raise StoreDamaged(f"{path} cannot be read: {error}") from None
    states = {name: StateDocument(one.version, one.data, corrupt=one.corrupt) for name, one in owner.states.items()}
    return StoredChat(
        chat_id=owner.chat_id, name=owner.name, head=owner.head, version=owner.version, metadata=owner.metadata,
        messages=dict(owner.messages), states=states, summary=owner.summary,
    )


class Staged:
    """Of all users. Every method blocks. Raises OSError."""

    def __init__(self, files: FileStore) -> None:
        self._files = files
        self._fs = files.fs

    def put(self, user: str, key: str, value: StoredChat) -> str:
        """`key` tells one life write from another."""
        name = f"{key}-{value.chat_id}"
        self._write(self._path("staged", user, name), value)
        return name

    def get(self, user: str, name: str) -> StoredChat | None:
        """Raises StoreDamaged."""
        return self._read(self._path("staged", user, name))

    def remove(self, user: str, name: str) -> None:
        """Done with it."""
        self._remove(self._path("staged", user, name))

    def hand_over(self, user: str, name: str, path: str) -> None:
        """The same file at another place, which is in a folder that is there. Durable on return."""
        with contextlib.suppress(FileTaken):
            self._fs.link(self._path("staged", user, name), path)
        self._fs.fsync_directory(os.path.dirname(path))

    def read_handed(self, path: str) -> StoredChat | None:
        """What was handed over. Raises StoreDamaged."""
        return self._read(path)

    def clean(self, cut_off: Iterable[Operation]) -> None:
        """Remove what no life write is waiting for. Before serving."""
        named = {
            self._path("staged", operation.user, name)
            for operation in cut_off if operation.stored is not None for name in operation.stored.staged
        }
        root = os.path.join(self._files.server_root, "staged")
        for user in self._listed(root):
            for name in self._listed(os.path.join(root, user)):
                path = os.path.join(root, user, name)
                if path not in named:
                    self._remove(path)

    # -- for a store that may forget ---------------------------------------------------------------------------------

    def keep(self, user: str, value: StoredChat) -> None:
        """Durable on return."""
        self._write(self._path("kept", user, value.chat_id), value)

    def kept(self, user: str, chat_id: str) -> StoredChat | None:
        """Raises StoreDamaged."""
        return self._read(self._path("kept", user, chat_id))

    def forget(self, user: str, chat_id: str) -> None:
        """The owner is gone."""
        self._remove(self._path("kept", user, chat_id))

    def kept_owners(self, user: str) -> list[StoredChat]:
        """Cost: all of them."""
        names = self._listed(os.path.join(self._files.server_root, "kept", user))
        return [value for name in names if (value := self.kept(user, name)) is not None]

    # -- files -------------------------------------------------------------------------------------------------------

    def _path(self, folder: str, user: str, name: str) -> str:
        return os.path.join(self._files.server_root, folder, user, name)

    def _listed(self, folder: str) -> list[str]:
        with contextlib.suppress(FileMissing):
            return [name for name in self._fs.listdir(folder) if not name.endswith(".tellback-tmp")]
        return []

    def _write(self, path: str, value: StoredChat) -> None:
        data = owner_bytes(value)
        self._fs.make_directories(os.path.dirname(path))
        with self._files.operation("stage", path, size_bytes=len(data)):
            self._fs.write_atomically(path, data)

    def _read(self, path: str) -> StoredChat | None:
        try:
            return owner_from(self._fs.read(path), path)
        except FileMissing:
            return None

    def _remove(self, path: str) -> None:
        with contextlib.suppress(FileMissing):
            self._fs.unlink(path)
            self._fs.fsync_directory(os.path.dirname(path))
