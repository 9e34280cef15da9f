"""A chat as it is sent to a tab that opens it or asks how it was: in one frame, or in parts made when there is room.

Rules of this module:
- What is sent is the chat as it was when it was opened; later commits travel behind it (BEHAVIOUR R5).
- Parts hold whole messages, about 64 KiB and at least one.
"""

from __future__ import annotations

from collections.abc import Iterator

from tellback_protocol import codec
from tellback_protocol.chat import Chat
from tellback_server.websocket import text_frame

PART_BYTES = 64 << 10


class Snapshot:
    """The last `tail` messages of a chat (all when None), held still. Cost: a pointer a message."""

    __slots__ = ("_cuts", "_frozen", "_ids", "count", "first")

    def __init__(self, chat: Chat, tail: int | None = None) -> None:
        self.count = len(chat.messages)
        self.first = 0 if tail is None else max(0, self.count - tail)
        lines = chat.messages
        ids = list(lines)[self.first :] if self.first else list(lines)
        self._ids = ids
        self._frozen = Chat(chat.version, b"", dict(lines), bare=set(chat.bare), odd=set(chat.odd))
        self._cuts: list[int] = []
        size = 0
        for index, message_id in enumerate(ids):
            length = len(lines[message_id]) + 64
            if size and size + length > PART_BYTES:
                self._cuts.append(index)
                size = 0
            size += length
        self._cuts.append(len(ids))

    @property
    def parts(self) -> int:
        """How many parts it takes; 1 travels inside `opened`."""
        return len(self._cuts)

    def messages(self) -> list[bytes]:
        """All messages, for `opened`."""
        return list(self._frozen.served_all(self._ids))

    def pieces(self) -> Iterator[tuple[int, list[bytes]]]:
        """Number (from 1) and messages of each part, made when they are asked for."""
        start = 0
        for number, end in enumerate(self._cuts, 1):
            yield number, list(self._frozen.served_all(self._ids[start:end]))
            start = end

    def frames(self, chat_json: bytes) -> Iterator[bytes]:
        """The parts as frames of the wire."""
        for number, messages in self.pieces():
            yield text_frame(codec.snapshot_part(chat_json, number, self.parts, messages))
