"""Base: the port of a store, the small thing that a backend has to be.

Rules of this module:
- A store trails the log. It is never asked whether a write is accepted: what reaches it is durable already.
- A store promises atomicity per owner and nothing more. It never merges, never orders, never invents a version.
- Every method blocks and is called from a thread; one call at a time for one owner, any number for different owners.

Users' files are folded by `checkpoint` and read by `loading`, which know other programs; the stores of this port are
those that only tellback writes.

    StoreError            the backend failed; nothing was changed, or it was changed whole: ask `load`
      StoreUnavailable    it cannot be reached or is busy now; the same call may work later
      StoreBehind         `save` was told a base that is newer than what stands there: something in between is missing
      StoreForeign        `claim`: the store belongs to another data folder
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec

from tellback_protocol.effects import Effect
from tellback_protocol.ids import Version
from tellback_protocol.stream import StateDocument

__all__ = ["ListedOwner", "Store", "StoreBehind", "StoreError", "StoreForeign", "StoreUnavailable", "StoredChat"]


class StoreError(Exception):
    """The backend failed. Missing is not an error: `load` answers None."""


class StoreUnavailable(StoreError):
    """The backend cannot be reached, or is busy for too long. Nothing is known to be lost."""


class StoreForeign(StoreError):
    """The store belongs to another data folder: two servers must not write to one store."""


class StoreBehind(StoreError):
    """`save` cannot continue from what the store holds. `found` is what stands there, None when nothing does."""

    def __init__(self, found: Version | None, base: Version | None) -> None:
        super().__init__(found, base)
        self.found = found
        self.base = base

    def __str__(self) -> str:
        return f"the store is at {self.found}, the save continues {self.base}"


class StoredChat(msgspec.Struct, kw_only=True):
    """A chat with everything it owns, at one version of its stream."""

    chat_id: str
    name: str
    head: Version
    """The stream's version."""
    version: Version
    """The chat document's version."""
    metadata: bytes
    messages: dict[str, bytes]
    """Lines by id, in order, each with its id inside."""
    states: dict[str, StateDocument]
    summary: bytes = b"{}"
    """What a list shows of the chat: one JSON object of at most a few KiB, opaque to the store."""


class ListedOwner(msgspec.Struct, frozen=True, gc=False):
    """What `list` tells of one owner."""

    chat_id: str
    name: str
    head: Version
    summary: bytes
    """As `StoredChat.summary`."""


class Store(Protocol):
    """Where checkpoints of chats go."""

    def load(self, user: str, chat_id: str) -> StoredChat | None:
        """The chat as it was last saved, or None when it never was. Raises StoreError when the backend cannot tell."""
        ...

    def save(self, user: str, base: Version | None, effects: Sequence[Effect] | None, value: StoredChat) -> None:
        """Moves a chat from `base` (None: it is not there) to `value`; `effects` are the difference, None when it is not
        known: then `value` is written whole, in place of whatever stands there. They tell what was touched; what it
        became stands in `value`.

        Durable on return, whole or not at all. Idempotent: a chat that is at `value.head` or later (by epoch, then
        seq) is left alone. A backend may write `effects` only, or `value` as a whole. Raises StoreBehind when the
        chat stands before `base`; then `value` is to be saved with the base that it tells. Raises StoreError.
        """
        ...

    def delete(self, user: str, chat_id: str, head: Version) -> None:
        """Removes a chat that stands at `head` or before. Durable on return; harmless when it is gone. Raises
        StoreError.
        """
        ...

    def rename(self, user: str, chat_id: str, name: str) -> None:
        """Gives a chat another name; its id stays. Durable on return; harmless when done already or when there is no
        such chat. Raises StoreError.
        """
        ...

    def list(self, user: str) -> Iterator[ListedOwner]:
        """Every chat, in no order. Cost: not that of the messages. Raises StoreError."""
        ...

    def users(self) -> Sequence[str]:
        """Who has chats here. Raises StoreError."""
        ...

    def claim(self, data_id: str) -> None:
        """Binds the store to a data folder by its id, for good; the same id again is harmless. Raises StoreForeign when
        it is bound to another one, StoreError.
        """
        ...

    def close(self) -> None:
        """Lets the backend go. Again is harmless."""
        ...
