"""The trash on the wire: what is in it, and how it is emptied. What comes out of it is a life write of its owner."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, UnsetType

from .fields import WireInteger

EntryName = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class TrashList(msgspec.Struct, tag="trash-list", tag_field="type", gc=False):
    """Everything in the user's trash: chats, characters, presets, and state files whose owner was deleted outside."""

    id: WireInteger | None = None


class TrashEmpty(msgspec.Struct, tag="trash-empty", tag_field="type", gc=False):
    """Remove entries for good: those named, or those deleted before a moment. Exactly one of the two."""

    entries: list[EntryName] | UnsetType = UNSET
    before_ms: WireInteger | UnsetType = UNSET
    id: WireInteger | None = None


class TrashEntry(msgspec.Struct, omit_defaults=True):
    """One deletion."""

    entry: str
    """What it is called: `<deleted_ms>-<id>`."""
    name: str
    """The owner's name: `character:Alice/First meeting`, `character:Alice`, `preset:OpenAI Settings/x`."""
    deleted_ms: int
    reason: str
    """`deleted`, `owner-deleted` (with its character), `orphaned` (its owner was deleted by another program)."""
    size_bytes: int
    files: list[str] = []
    """Paths that the files had below the user's folder."""


class TrashListFrame(msgspec.Struct, tag="trash-list", tag_field="type"):
    """The entry made last first."""

    entries: list[TrashEntry]
    id: int | None = None


class TrashEmptied(msgspec.Struct, tag="trash-emptied", tag_field="type"):
    """What is gone for good. A backup of a chat that was in the trash is still there."""

    entries: list[str]
    size_bytes: int
    id: int | None = None
