"""The answer to `open`: nothing missed, a replay, or a snapshot with the reason (BEHAVIOUR R1-R6).

Rules of this module:
- A replay is for a position that the stream remembers exactly: epoch, seq and integrity.
- It is sent when it is at most as large as the snapshot, or 64 KiB.
"""

from __future__ import annotations

from typing import Literal

from tellback_protocol import codec
from tellback_protocol.frames import Opened
from tellback_protocol.ids import Version
from tellback_protocol.requests import Open
from tellback_protocol.stream import Stream
from tellback_protocol.values import servable
from tellback_server.releases import Following
from tellback_server.snapshot import Snapshot

REPLAY_BYTES_MIN = 64 << 10
"""A replay of this size is sent even when the snapshot would be smaller."""


def answer_open(
    stream: Stream, request: Open, session: str, *, created: bool = False
) -> tuple[Opened, bytes, Following | None]:
    """The `opened` frame, as it is and as bytes, and what follows it. Cost: a pointer a message, or the replay."""
    chat_json = codec.chat_json(request.chat)
    opened = Opened(
        chat=request.chat, chat_id=stream.chat_id, mode="snapshot", version=stream.chat.version, head=stream.head,
        next_op=stream.next_op(session), id=request.id,
    )
    if stream.damage:
        opened.read_only = True
        opened.damage = stream.damage
    if created:
        opened.created = True
    since = request.since
    if since is not None:
        missed = stream.since(since)
        if missed is not None:
            replay = list(missed)
            if not replay:
                opened.mode = "current"
                return opened, codec.opened(opened), None
            size = sum(len(past.core) for past in replay)
            if size <= REPLAY_BYTES_MIN or size <= sum(map(len, stream.chat.messages.values())):
                opened.mode = "replay"
                return opened, codec.opened(opened), Following(None, replay, since)
        else:
            opened.reset = _why_reset(stream, since)
    tail = request.tail if isinstance(request.tail, int) else None
    snapshot = Snapshot(stream.chat, tail)
    opened.count = snapshot.count
    if tail is not None:
        opened.first = snapshot.first
    if snapshot.parts == 1:
        return opened, codec.opened(opened, servable(stream.chat.metadata), snapshot.messages()), None
    opened.parts = snapshot.parts
    return opened, codec.opened(opened, servable(stream.chat.metadata)), Following(snapshot.frames(chat_json))


def _why_reset(stream: Stream, since: Version) -> Literal["epoch", "trimmed", "ahead"]:
    if since.epoch != stream.head.epoch:
        return "epoch" if since.epoch < stream.head.epoch else "ahead"
    if since.seq > stream.head.seq:
        return "ahead"
    if since.seq >= stream.history_from.seq:
        # The seq is remembered, under another integrity: this is not the history that the tab knows.
        return "epoch"
    return "trimmed"
