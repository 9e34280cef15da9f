"""Base: the port of a store, the small thing that a backend has to be.

Rules of this module:
- A store trails the log. It is never asked whether a write is accepted: what reaches it is durable already.
- A store promises atomicity per owner and nothing more. It never merges, never orders, never invents a version.
- Every method blocks and is called from a thread; one call at a time for one owner, any number for different owners.

Users' files are folded by `checkpoint` and read by `loading`, which know other programs; the stores of this port are
those that only tellback writes.

    StoreError            the backend failed; nothing was changed, or it was changed whole: ask `load`
      StoreUnavailable    it cannot be reached or is busy now; the same call may work later
      StoreUnsafe         `check`: its settings do not keep what it was given, or its URL cannot be used
      StoreDamaged        what stands there is not what was saved; it is kept as it is
      StoreBehind         `save` was told a base that is not what stands there: something in between is missing
      StoreForeign        `claim`: the store belongs to another data folder

No message of an error holds a password.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import msgspec

from tellback_protocol.effects import Effect
from tellback_protocol.ids import Version
from tellback_protocol.stream import StateDocument

__all__ = [
    "Durability", "ListedOwner", "Store", "StoreBehind", "StoreDamaged", "StoreError", "StoreForeign", "StoreHealth",
    "StoreUnavailable", "StoreUnsafe", "StoredChat", "is_at_least",
]

Durability = Literal["store", "log"]
"""Which copy survives a loss of power: the store's own from the moment a call returns, or only that in the log, which
then has to keep everything that the store was ever given."""


class StoreError(Exception):
    """The backend failed. Missing is not an error: `load` answers None."""


class StoreUnavailable(StoreError):
    """The backend cannot be reached, or is busy for too long. Nothing is known to be lost."""


class StoreUnsafe(StoreError):
    """The backend would lose what it was given, or was not set up as it must be. `str` says which setting, what it is
    and what it has to be.
    """


class StoreDamaged(StoreError):
    """What was read is not what was saved. Nothing is guessed, and nothing of it is removed."""


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
    """An owner with everything it owns, at one version of its stream: a chat, or a character or preset, which has
    states and no messages.

    Bytes are kept exactly as they are given: a store never parses them. Text may be anything a Python str can be.
    """

    chat_id: str
    """The owner's immutable id; unique in the store for one user."""
    name: str
    """As `Stream.name`. Two owners may have one name for a while, when both are being renamed."""
    head: Version
    """The stream's version."""
    version: Version
    """The chat document's version."""
    metadata: bytes
    messages: dict[str, bytes]
    """Lines by id, in order, each with its id inside."""
    states: dict[str, StateDocument]
    """By namespace; of a document its version, data and `corrupt` are kept. One that was deleted is kept with data
    None: its version is the base of what comes next."""
    summary: bytes = b"{}"
    """What a list shows of the chat: one JSON object of at most a few KiB, opaque to the store."""


class ListedOwner(msgspec.Struct, frozen=True, gc=False):
    """What `list` tells of one owner."""

    chat_id: str
    name: str
    head: Version
    summary: bytes
    """As `StoredChat.summary`."""


class StoreHealth(msgspec.Struct, frozen=True, kw_only=True):
    """What `check` found."""

    backend: str
    """Product and version, for people."""
    durability: Durability
    settings: dict[str, str] = {}
    """What that rests on, as the backend names it."""


def is_at_least(found: Version | None, head: Version) -> bool:
    """Whether what stands there leaves nothing of `head` to be saved: the same version, or a later one."""
    return found is not None and (found == head or (found.epoch, found.seq) > (head.epoch, head.seq))


class Store(Protocol):
    """Where checkpoints of owners go."""

    def check(self) -> StoreHealth:
        """Reaches the backend, prepares it (schema, migrations), and asks for the settings that durability rests on. At
        start, before anything else, and whenever somebody wants to know. Raises StoreUnsafe, StoreError.
        """
        ...

    def load(self, user: str, chat_id: str) -> StoredChat | None:
        """The owner as it was last saved, or None when it never was or was deleted. Raises StoreError when the backend
        cannot tell, StoreDamaged when what it tells is not what was saved. What is returned is the caller's.
        """
        ...

    def save(self, user: str, base: Version | None, effects: Sequence[Effect] | None, value: StoredChat) -> None:
        """Moves an owner from `base` (None: it is not there) to `value`; `effects` are the difference, None when it is
        not known: then `value` is written whole, in place of whatever stands there. Effects tell what was touched; what
        it became stands in `value`, which nobody changes during the call.

        Durable on return (as far as `check` says), whole or not at all. Idempotent, and never backwards: an owner that
        is at `value.head`, or at a later epoch and seq, is left alone. A backend may write what `effects` touch, or
        `value` as a whole; cost of an append: not that of the chat. Raises StoreBehind when effects are given and the
        owner stands at anything but `base`, the integrity included; then `value` is to be saved without effects. Raises
        StoreError: whether it was saved is not known then, and the same call is harmless.
        """
        ...

    def delete(self, user: str, chat_id: str, head: Version) -> None:
        """Removes an owner that stands at `head` or at an earlier epoch and seq; a later one is left alone. Durable on
        return; harmless when it is gone. Raises StoreError.
        """
        ...

    def rename(self, user: str, chat_id: str, name: str) -> None:
        """Gives an owner another name; id and head stay. Durable on return; harmless when done already or when there is
        no such owner. Raises StoreError.
        """
        ...

    def list(self, user: str) -> Iterator[ListedOwner]:
        """Every owner of the user, in no order. Cost: not that of the messages. Raises StoreError; never ends early
        without one.
        """
        ...

    def users(self) -> Sequence[str]:
        """Who has owners here. Raises StoreError."""
        ...

    def claim(self, data_id: str) -> None:
        """Binds the store to a data folder by its id, for good; the same id again is harmless. Raises StoreForeign when
        it is bound to another one, StoreError.
        """
        ...

    def close(self) -> None:
        """Lets the backend go. Again is harmless."""
        ...
