"""The past of a chat: pages of its commits, and the chat as it was, from the log's records.

Rules of this module:
- Only what is durable is told.
- The chat as it was is the chat as it is with the undo of each later commit installed, newest first (BEHAVIOUR H2).
- A version that the log does not lead back to is `version-unknown`, never a guess (H3).
"""

from __future__ import annotations

from collections.abc import Iterator

from tellback_protocol import codec
from tellback_protocol.chat import Chat, message_id_of
from tellback_protocol.effects import AppendEffect, ChatEffect, Commit, DeleteEffect, Effect, decode_commit
from tellback_protocol.errors import Refused
from tellback_protocol.frames import HistoryFrame
from tellback_protocol.ids import Version
from tellback_protocol.past import wire_core
from tellback_protocol.values import servable
from tellback_server.log import Log
from tellback_server.records import ADOPT, COMMIT
from tellback_server.snapshot import Snapshot
from tellback_server.websocket import text_frame

PAGE_BYTES_MAX = 1 << 20


def page(log: Log, key: str, chat: str, request_id: int | None, after: int, limit: int) -> bytes:
    """A `history` frame with up to `limit` commits behind seq `after`; at most 1 MiB, but at least one commit.

    Blocks: it reads the log.
    """
    cores: list[bytes] = []
    size_bytes = 0
    more = False
    for commit in _commits(log, key, after):
        core = wire_core(commit)
        size_bytes += len(core)
        if len(cores) == limit or (cores and size_bytes > PAGE_BYTES_MAX):
            more = True
            break
        cores.append(core)
    chat_json = codec.chat_json(chat)
    head = codec.encode(HistoryFrame(chat, request_id, more=more))
    return head[:-1] + b',"commits":[' + b",".join(codec.integrity(chat_json, core) for core in cores) + b"]}"


def chat_at(log: Log, key: str, chat: Chat, head: Version, at: int) -> Chat:
    """The chat as it was when the stream stood at seq `at`. `chat` is at `head`, and the caller's own copy.

    Blocks: it reads the log. Raises: Refused `version-unknown`.
    """
    head_seq, epoch = head.seq, head.epoch
    if at > head_seq:
        raise Refused("version-unknown", f"The stream is at {head_seq}.", pointer="/at")
    commits: list[Commit] = []
    for _position, record in log.records(key, at):
        if record.kind == ADOPT:
            raise Refused("version-unknown", f"Another program changed the chat after {at}.", pointer="/at")
        if record.kind == COMMIT and record.seq <= head_seq:
            commits.append(decode_commit(record.body))
    if [commit.version.seq for commit in commits] != list(range(at + 1, head_seq + 1)):
        raise Refused("version-unknown", f"The log does not lead back to {at}.", pointer="/at")
    if any(commit.version.epoch != epoch for commit in commits):
        raise Refused("version-unknown", f"A backup was restored after {at}.", pointer="/at")
    for commit in reversed(commits):
        for effect in undo_of(commit):
            if isinstance(effect, ChatEffect):
                chat.apply(effect)
        chat.version = Version(commit.version.epoch, commit.version.seq - 1, commit.previous)
    return chat


def undo_of(commit: Commit) -> list[Effect]:
    """The effects that lead back from a commit. A commit that only appended keeps none in the log: they are plain."""
    if commit.undo:
        return commit.undo
    ids = [
        message_id_of(bytes(raw)) for effect in commit.ops if isinstance(effect, AppendEffect)
        for raw in effect.messages
    ]
    return [DeleteEffect(ids)] if ids else []


def as_it_was(chat: str, request_id: int | None, past: Chat) -> tuple[bytes, Iterator[bytes] | None]:
    """A `history` frame with the chat at a version, and the frames of the wire that follow when it takes parts (H4).

    `past` must not change any more.
    """
    snapshot = Snapshot(past)
    head = codec.encode(HistoryFrame(chat, request_id, version=past.version, count=snapshot.count))[:-1]
    head += b',"metadata":' + servable(past.metadata)
    if snapshot.parts == 1:
        return head + b',"messages":[' + b",".join(snapshot.messages()) + b"]}", None
    return head + b',"parts":%d}' % snapshot.parts, _parts(codec.chat_json(chat), request_id, snapshot)


def _parts(chat_json: bytes, request_id: int | None, snapshot: Snapshot) -> Iterator[bytes]:
    id_json = b"null" if request_id is None else b"%d" % request_id
    for number, messages in snapshot.pieces():
        yield text_frame(b'{"type":"history-part",%b,"id":%b,"part":%d,"of":%d,"messages":[%b]}' % (
            chat_json, id_json, number, snapshot.parts, b",".join(messages),
        ))


def _commits(log: Log, key: str, after: int) -> Iterator[Commit]:
    for _position, record in log.records(key, after):
        if record.kind == COMMIT and record.seq > after:
            yield decode_commit(record.body)
