"""The answer to `open`: nothing missed, a replay, or a snapshot with the reason (BEHAVIOUR R1-R7).

Rules of this module:
- A replay is for a position that the stream or the log remembers exactly: epoch, seq and integrity.
- It is sent when it is at most as large as the snapshot, or 64 KiB.
- What was read from the log is continued from the stream in the same step that makes the answer, so nothing is missed
  and nothing told twice, whatever was committed while it was read.
"""

from __future__ import annotations

from typing import Literal

from tellback_protocol import codec
from tellback_protocol.frames import ListedGeneration, Opened
from tellback_protocol.ids import Version
from tellback_protocol.past import Past
from tellback_protocol.requests import Open, OwnerName
from tellback_protocol.stream import Stream
from tellback_protocol.values import servable
from tellback_server.releases import Following
from tellback_server.replay import Missed, is_replayable
from tellback_server.snapshot import Snapshot


def answer_open(
    stream: Stream, request: Open, session: str, *, created: bool = False, missed: Missed | None = None,
    generations: list[ListedGeneration] | None = None, header: bytes | None = None,
) -> tuple[Opened, bytes, Following | None]:
    """The `opened` frame, as it is and as bytes, and what follows it. Cost: a pointer a message, or the replay.

    `missed` is what the log told of a position that the stream does not remember; `header` the chat's, if asked for.
    """
    opened = Opened("snapshot", stream.head, stream.next_op(session), id=request.id)
    if isinstance(request.owner, OwnerName):
        opened.owner, opened.owner_id = request.owner, stream.chat_id
    else:
        opened.chat, opened.chat_id, opened.version = request.chat, stream.chat_id, stream.chat.version
    if stream.damage:
        opened.read_only = True
        opened.damage = stream.damage
    if created:
        opened.created = True
    if generations:
        opened.generations = generations
    since = request.since
    if since is not None:
        replay = _replay(stream, since, missed)
        if replay is None:
            if missed is None or not missed.is_too_large:
                opened.reset = _why_reset(stream, since, missed)
        elif not replay:
            opened.mode = "current"
            return opened, codec.opened(opened), None
        elif is_replayable(stream, sum(past.size_bytes for past in replay)):
            opened.mode = "replay"
            return opened, codec.opened(opened), Following(None, replay, since)
    if isinstance(request.owner, OwnerName):
        opened.states = {
            namespace: document.version for namespace, document in stream.states.items()
            if document.version is not None and (document.exists or document.corrupt)
        }
        return opened, codec.opened(opened), None
    tail = request.tail if isinstance(request.tail, int) else None
    snapshot = Snapshot(stream.chat, tail)
    opened.count = snapshot.count
    if tail is not None:
        opened.first = snapshot.first
    metadata = servable(stream.chat.metadata)
    header = None if header is None else servable(header)
    if snapshot.parts == 1:
        return opened, codec.opened(opened, metadata, snapshot.messages(), header), None
    opened.parts = snapshot.parts
    parts = Following(snapshot.frames(codec.chat_json(request.chat)))
    return opened, codec.opened(opened, metadata, header=header), parts


def _replay(stream: Stream, since: Version, missed: Missed | None) -> list[Past] | None:
    """Every commit after `since`; None when it is not known or not all of them are at hand."""
    remembered = stream.since(since)
    if remembered is not None:
        return list(remembered)
    if missed is None or missed.verdict != "known" or missed.is_too_large:
        return None
    rest = stream.since(missed.last)
    return None if rest is None else [*missed.commits, *rest]


def _why_reset(stream: Stream, since: Version, missed: Missed | None) -> Literal["epoch", "trimmed", "ahead"]:
    if since.epoch != stream.head.epoch:
        return "epoch" if since.epoch < stream.head.epoch else "ahead"
    if since.seq > stream.head.seq:
        return "ahead"
    if since.seq >= stream.history_from.seq or (missed is not None and missed.verdict == "replaced"):
        # The seq is remembered, under another integrity: this is not the history that the tab knows.
        return "epoch"
    return "trimmed"
