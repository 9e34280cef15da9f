"""Files of other programs on the wire: cards, files of groups and presets, for whoever takes them along."""

from __future__ import annotations

from typing import Annotated

import msgspec

from .fields import WireInteger

FilePath = Annotated[str, msgspec.Meta(min_length=1, max_length=600)]


class FileList(msgspec.Struct, tag="file-list", tag_field="type", gc=False):
    """A page of the user's cards, files of groups and presets, in the order of their paths."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 500
    cursor: str | None = None
    """`cursor` of the page before."""
    id: WireInteger | None = None


class FileGet(msgspec.Struct, tag="file-get", tag_field="type", gc=False):
    """A piece of one of them."""

    path: FilePath
    offset: WireInteger = 0
    id: WireInteger | None = None


class ListedFile(msgspec.Struct, frozen=True, gc=False):
    """One file."""

    path: str
    """Below the user's folder: `characters/Alice.png`, `groups/1795229131318.json`, `OpenAI Settings/Default.json`."""
    size_bytes: int
    changed_ms: int


class FileListFrame(msgspec.Struct, tag="file-list", tag_field="type"):
    """`cursor` null: that was the last page."""

    files: list[ListedFile]
    cursor: str | None
    id: int | None = None


class FileFrame(msgspec.Struct, tag="file", tag_field="type"):
    """Bytes from `offset` on. When `file` is another one than that of the first piece, it was changed meanwhile."""

    file: ListedFile
    offset: int
    data: bytes
    """In base64."""
    id: int | None = None
