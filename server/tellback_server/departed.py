"""Departed: what is still known of a chat in the trash: its version and the outcomes of its ops.

Rules of this module:
- Its files are not read: whoever sends an op again gets the answer it had, and a restore goes on from its version.
"""

from __future__ import annotations

from collections.abc import Callable

from tellback_protocol.chat import Chat
from tellback_protocol.stream import HISTORY_COMMITS_MAX, Stream
from tellback_server.loading import fold_refusal, remember
from tellback_server.owner_past import LogReader, OwnerPast
from tellback_server.records import Checkpointed, owner_key
from tellback_server.registrar import Registered
from tellback_server.sessions import SessionFile, fold_sessions, read_sessions, write_sessions
from tellback_server.store.files import FileStore

__all__ = ["load_departed", "save_departed"]


def load_departed(files: FileStore, log: LogReader, registered: Registered, now_ms: int) -> Stream:
    """The stream of a deleted chat, without its documents. Blocks."""
    assert registered.gone is not None, "a deleted chat"
    user, chat_id, base = registered.user, registered.chat_id, registered.gone.base
    saved = read_sessions(files, user, chat_id)
    past = OwnerPast.read(log, owner_key(user, chat_id), max(-1, base.head.seq - HISTORY_COMMITS_MAX - 1), base, saved)
    stream = Stream(user, registered.name, chat_id, Chat(base.version), past.head(base.head))
    stream.deleted = True
    if saved is not None:
        fold_sessions(saved, stream)
    for entry in past.entries:
        if isinstance(entry, bytes):
            fold_refusal(stream, entry, now_ms)
            continue
        remember(stream, entry)
        if entry.by is not None and entry.by.op > stream.session(entry.by.session).last:
            stream.fold_outcome(entry, now_ms)
    newest = stream.history[-1].integrity if stream.history else stream.history_from.integrity
    if newest != stream.head.integrity:
        stream.forget_history()
    return stream


def save_departed(files: FileStore, stream: Stream, base: Checkpointed, now_ms: int) -> Callable[[], None]:
    """What writes the session file, to be called in a thread. The snapshot is taken now."""
    taken = SessionFile.of(stream, base, now_ms)
    return lambda: write_sessions(files, taken)
