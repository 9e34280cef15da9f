"""Departed: what is still known of a chat in the trash: its version and the outcomes of its ops.

Rules of this module:
- Its files are not read: whoever sends an op again gets the answer it had, and a restore goes on from its version.
"""

from __future__ import annotations

from collections.abc import Callable

from tellback_protocol.chat import Chat
from tellback_protocol.stream import Stream
from tellback_server.owner_past import LogReader, OwnerPast
from tellback_server.records import Checkpointed, owner_key
from tellback_server.registrar import Registered
from tellback_server.sessions import SessionFile, read_sessions, write_sessions
from tellback_server.store.files import FileStore

__all__ = ["load_departed", "save_departed"]


def load_departed(files: FileStore, log: LogReader, registered: Registered, now_ms: int) -> Stream:
    """The stream of a deleted chat, without its documents. Blocks."""
    assert registered.gone is not None, "a deleted chat"
    user, chat_id, base = registered.user, registered.chat_id, registered.gone.base
    saved = read_sessions(files, user, chat_id)
    past = OwnerPast.read(log, owner_key(user, chat_id), base, saved, now_ms)
    stream = Stream(user, registered.name, chat_id, Chat(base.version), past.head(base.head))
    past.give(stream)
    stream.deleted = True
    return stream


def save_departed(files: FileStore, stream: Stream, base: Checkpointed, now_ms: int) -> Callable[[], None]:
    """What writes the session file, to be called in a thread. The snapshot is taken now."""
    taken = SessionFile.of(stream, base, now_ms)
    return lambda: write_sessions(files, taken)
