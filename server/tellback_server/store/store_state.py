"""Store state: what a store holds of one live owner, and what it does not hold yet.

Rules of this module:
- As `held` for files, with the effects themselves: a store is told what was touched, and takes what it became from the
  value.
- What waits is bounded: past EFFECTS_MAX the owner is saved whole.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Final

import msgspec
from msgspec import Raw

from tellback_protocol.chat import EMPTY_METADATA, Chat
from tellback_protocol.effects import AppendEffect, Effect
from tellback_protocol.ids import CharacterChat, Place, Version
from tellback_protocol.stream import StateDocument, Stream
from tellback_protocol.values import UNDECODABLE, loads
from tellback_server.records import Anchor, FileIdentity, encode
from tellback_server.store.base import StoredChat
from tellback_server.store.chat_summary import main_chat_of, preview
from tellback_server.store.held import FileState, Pending
from tellback_server.store.jsonl import Image, header_filled, image_of_header, line_object

__all__ = ["Listing", "StorePending", "StoreState", "decode_listing", "image_of", "listing_of", "state_of", "value_now"]

EFFECTS_MAX: Final = 20_000
LAST: Final = "\0"
"""Stands for the id of a last message; no message has it."""
HEADER_BYTES_MAX: Final = 8 << 10
"""A longer header is kept without the metadata, which stand in the value; lists read the headers of all chats. One
that would be another one with them put back, because its JSON is not compact, is kept whole.
"""
_MS_NS: Final = 1_000_000


class StorePending(Pending):
    """What the store does not hold yet."""

    __slots__ = ("_effects", "is_whole")

    def __init__(self) -> None:
        super().__init__()
        self._effects: list[Effect | str] = []
        """In order; a message that was appended plainly by its id."""
        self.is_whole = False
        """The difference is not known."""

    def add(self, effects: Iterable[Effect]) -> None:
        known = list(effects)
        super().add(known)
        self._keep(known)

    def add_plain(self, ids: list[str]) -> None:
        super().add_plain(ids)
        self._keep(ids)

    def _keep(self, effects: list[Effect] | list[str]) -> None:
        if not self.is_whole:
            self._effects += effects
        if len(self._effects) > EFFECTS_MAX:
            self._effects.clear()
            self.is_whole = True

    def give_back(self, earlier: Pending) -> None:
        super().give_back(earlier)
        assert isinstance(earlier, StorePending), "of the same owner"
        self._effects = earlier._effects + self._effects
        self.is_whole = self.is_whole or earlier.is_whole
        self._keep([])

    def effects(self, chat: Chat) -> list[Effect] | None:
        """What was touched, in order; None when that is not known any more."""
        if self.is_whole:
            return None
        effects: list[Effect] = []
        lines: list[Raw] = []
        for effect in self._effects:
            if isinstance(effect, str):
                line = chat.messages.get(effect)
                # What was deleted since is told by a later effect.
                if line is not None:
                    lines.append(Raw(line))
                continue
            if lines:
                effects.append(AppendEffect(lines))
                lines = []
            effects.append(effect)
        if lines:
            effects.append(AppendEffect(lines))
        return effects


class StoreState(FileState):
    """As FileState, for an owner in a store. `identity` tells size and time for lists; no file has it."""

    stored: Version | None = None
    """What the store holds; None when it never held the owner."""
    documents: dict[str, StateDocument] = msgspec.field(default_factory=dict)
    """State documents as the store holds them."""

    def anchor(self, stream: Stream, header: bytes | None = None) -> bytes:
        return encode(self.anchored(stream, stream.name, header))

    def anchored(self, stream: Stream, name: str, header: bytes | None = None) -> Anchor:
        """The ANCHOR of an owner that is called `name`."""
        return Anchor(
            user=stream.user, name=name, chat_id=stream.chat_id, file=None, version=self.version, head=self.head,
            created=self.stored is None, header=None if header is None else header.decode(),
        )


class Listing(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What a list shows of a chat, and its header line: `StoredChat.summary`. Persisted: new fields have a default."""

    count: int = 0
    preview: str = ""
    main_chat: str | None = None
    size_bytes: int = 0
    changed_ms: int = 0
    header: str | None = None
    mark: tuple[int, int, int] | None = None
    """Size, mtime and inode of the file that this is a copy of; None in the place of files."""
    line_end: str = "\n"
    is_open: bool = False
    """The file that it came from had no line end behind its last line."""
    inherited: int | None = None
    """CRC-32 of metadata that stand in the file of the chat's group, as long as they are the chat's."""
    whole: int | None = None
    """CRC-32 of the header with the metadata, when `header` is without them and they did not change since."""


_decode_listing = msgspec.json.Decoder(Listing).decode


def decode_listing(summary: bytes) -> Listing:
    """What a store was given; an empty one for what is none."""
    try:
        return _decode_listing(summary)
    except UNDECODABLE:
        return Listing()


def listing_of(image: Image, value: StoredChat, now_ms: int, identity: FileIdentity | None = None) -> Listing:
    """What a list shows of a chat; `identity` is its file, when it is kept in one.

    Cost: a look at each message's size; the last one becomes a value.
    """
    messages = value.messages
    last = line_object(messages[next(reversed(messages))])[0] if messages else None
    main_chat = None
    if b'"main_chat"' in value.metadata:
        main_chat = main_chat_of({"chat_metadata": loads(value.metadata)})
    header, whole = image.header, None
    if header is not None and len(header) > HEADER_BYTES_MAX:
        header, whole = _shortened(image, header, value.metadata)
    return Listing(
        len(messages), preview(last) if last is not None else "", main_chat,
        sum(map(len, messages.values())) + len(messages) + len(value.metadata), now_ms,
        None if header is None else header.decode("utf-8", "surrogatepass"),
        None if identity is None else (identity.size_bytes, identity.mtime_ns, identity.inode),
        image.line_end.decode(), image.last is not None and not image.ends_with_newline,
        zlib.crc32(value.metadata) if header is None and image.metadata == value.metadata != EMPTY_METADATA else None,
        whole,
    )


def _shortened(image: Image, header: bytes, metadata: bytes) -> tuple[bytes, int | None]:
    """`Listing.header` and `Listing.whole`."""
    short = header_filled(header, EMPTY_METADATA)
    if metadata != image.metadata:
        # It is written anew.
        return short, None
    if header_filled(short, metadata) != header:
        return header, None
    return short, zlib.crc32(header)


def image_of(place: Place, listing: Listing, metadata: bytes) -> Image:
    """What a list tells of the chat's file; `metadata` are the chat's."""
    header = None if listing.header is None else listing.header.encode("utf-8", "surrogatepass")
    if header is not None and listing.whole is not None:
        whole = header_filled(header, metadata)
        header = whole if zlib.crc32(whole) == listing.whole else header
    image = image_of_header(header, headed=isinstance(place, CharacterChat))
    if header is None and listing.inherited == zlib.crc32(metadata):
        image = msgspec.structs.replace(image, metadata=metadata)
    line_end = listing.line_end.encode()
    # What comes last is not known here, and need not be: what stands behind it is.
    last = LAST if listing.is_open else None
    return msgspec.structs.replace(image, line_end=line_end, last=last, tail=b"" if listing.is_open else line_end)


def value_now(stream: Stream) -> StoredChat:
    """A live owner, whole, but for its summary. Cost: one pointer a message."""
    chat = stream.chat
    return StoredChat(
        chat_id=stream.chat_id, name=stream.name, head=stream.head, version=chat.version, metadata=chat.metadata,
        messages=dict(chat.messages),
        states={
            name: StateDocument(document.version, document.data, corrupt=document.corrupt)
            for name, document in stream.states.items() if document.version is not None
        },
    )


def state_of(place: Place, value: StoredChat | None, version: Version, head: Version) -> StoreState:
    """What a store holds of an owner; None when it never held it."""
    listing = decode_listing(value.summary) if value is not None else Listing()
    image = image_of(place, listing, EMPTY_METADATA if value is None else value.metadata)
    identity = None
    if value is not None:
        identity = FileIdentity(listing.size_bytes, 0, listing.changed_ms * _MS_NS, 0)
    held = StoreState(
        place, identity, image, version, head, {}, {}, 0 if value is None else len(value.messages), StorePending(),
    )
    if value is not None:
        held.stored = value.head
        held.documents = dict(value.states)
    return held
