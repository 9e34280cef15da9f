"""Sessions: the file that lets log segments go: outcomes, remembered commits and the base of one chat.

    SessionFile.take(stream, held)      loop, synchronous; flush the log before what was taken is written
    write_sessions(files, saved)        in a thread
    read_sessions(files, user, chat_id) in a thread; None when there is none or it cannot be read
    fold_sessions(saved, stream)        into a stream that is being loaded

Rules of this module:
- Derived data: the log's records above `base.head.seq` are folded on top, and what is in both is installed once.
- Outcomes and history reach up to `answered_seq`, which may be ahead of what the files hold: a chat that is always busy
  is never clean, and its outcomes are kept all the same (BEHAVIOUR O9).
- Persisted: keep stable. `<data>/.tellback/sessions/<user>/<chat_id>.json`, sealed (`sealed`) and written
  atomically. Another chat's file under this name tells nothing.
- Bounded by what a stream keeps: 256 outcomes a session, 30 days, 2,048 commits or 1 MiB of history.
"""

from __future__ import annotations

import os

import msgspec

from tellback_protocol.generations import Running
from tellback_protocol.ids import Version, is_integrity, parse_place
from tellback_protocol.outcomes import SESSION_KEPT_MS, Outcome, SessionOps
from tellback_protocol.past import Past
from tellback_protocol.stream import Stream
from tellback_server.fs import FileMissing
from tellback_server.records import Checkpointed
from tellback_server.sealed import seal, unseal
from tellback_server.store.files import FileStore
from tellback_server.store.held import FileState

__all__ = ["SessionFile", "fold_sessions", "id_of", "left_name", "read_sessions", "write_sessions"]


class KeptOutcome(msgspec.Struct, frozen=True, gc=False):
    """An Outcome with its op number; the body is text, because it is JSON without its braces."""

    op: int
    kind: str
    fingerprint: int
    body: str
    integrity: str | None = None


class KeptSession(msgspec.Struct, gc=False):
    last: int
    used_ms: int
    outcomes: list[KeptOutcome]


class KeptPast(msgspec.Struct, frozen=True, gc=False):
    seq: int
    integrity: str
    core: msgspec.Raw
    """With braces, so that nothing has to be escaped; a string without them in files of earlier versions."""
    targets: tuple[str, ...]

    @property
    def members(self) -> bytes:
        """The core of the Past."""
        core = bytes(self.core)
        return core[1:-1] if core.startswith(b"{") else msgspec.json.decode(core, type=str).encode()


class KeptText(msgspec.Struct, frozen=True, gc=False):
    """The text of a generation that runs."""

    text: str
    reasoning: str = ""


class SessionFile(msgspec.Struct, kw_only=True):
    """See the module."""

    base: Checkpointed
    sessions: dict[str, KeptSession]
    history_from: Version
    history: list[KeptPast]

    seq: int = 0
    """The stream's seq when it was taken; 0 in files of earlier versions, which were taken at the base."""
    position: int = 0
    """The owner's records in the log up to here are answered for."""
    texts: dict[str, KeptText] = {}
    """Of the generations that run, by id."""

    @property
    def answered_seq(self) -> int:
        """Outcomes of all commits up to here are in it."""
        return max(self.seq, self.base.head.seq)

    @classmethod
    def take(cls, stream: Stream, held: FileState, now_ms: int, position: int = 0) -> SessionFile:
        """A snapshot over what the files hold now. Cost: what the stream remembers."""
        return cls.of(stream, held.base(stream, held.head, stream.name), now_ms, position)

    @classmethod
    def of(cls, stream: Stream, base: Checkpointed, now_ms: int, position: int = 0) -> SessionFile:
        """A snapshot over what the files are known to hold."""
        sessions = {
            session: KeptSession(
                ops.last,
                ops.used_ms,
                [
                    KeptOutcome(op, outcome.kind, outcome.fingerprint, outcome.body.decode(), outcome.integrity)
                    for op, outcome in ops.outcomes()
                ],
            )
            for session, ops in stream.sessions.items()
            if ops.used_ms == 0 or ops.used_ms > now_ms - SESSION_KEPT_MS
        }
        history = [
            KeptPast(past.version.seq, past.version.integrity, msgspec.Raw(past.core_json), past.targets)
            for past in stream.history
        ]
        return cls(
            base=base, sessions=sessions, history_from=stream.history_from, history=history, seq=stream.head.seq,
            position=position,
            texts={
                one: KeptText(str(running.text), str(running.reasoning)) for one, running in stream.running.items()
            },
        )


_encode = msgspec.json.encode
_decode = msgspec.json.Decoder(SessionFile).decode


def _path(files: FileStore, user: str, chat_id: str) -> str:
    return os.path.join(files.server_root, "sessions", user, f"{chat_id}.json")


def write_sessions(files: FileStore, saved: SessionFile) -> None:
    """Durable on return. Raises OSError."""
    path = _path(files, saved.base.user, saved.base.chat_id)
    files.fs.make_directories(os.path.dirname(path))
    data = _encode(saved)
    with files.operation("write-sessions", path, size_bytes=len(data)):
        files.fs.write_atomically(path, seal(data))


def read_sessions(files: FileStore, user: str, chat_id: str) -> SessionFile | None:
    """None when there is no file or it is damaged: it is rebuilt from the log as far as that reaches."""
    try:
        unsealed = unseal(files.fs.read(_path(files, user, chat_id)))
        saved = None if unsealed is None else _decode(unsealed[0])
    except (FileMissing, msgspec.MsgspecError):
        return None
    return saved if saved is not None and saved.base.chat_id == chat_id else None


def id_of(files: FileStore, user: str, name: str) -> str | None:
    """The id of the owner that session files know under this name; None when none or several do. Cost: all of them."""
    try:
        names = files.fs.listdir(os.path.join(files.server_root, "sessions", user))
    except FileMissing:
        return None
    ids = [file.removesuffix(".json") for file in names if is_integrity(file.removesuffix(".json"))]
    known = [one for one in ids if (saved := read_sessions(files, user, one)) is not None and saved.base.name == name]
    return known[0] if len(known) == 1 else None


def left_name(files: FileStore, user: str, chat_id: str) -> str | None:
    """The name of a chat that is gone and whose outcomes are kept; None when its place is taken. Blocks."""
    saved = read_sessions(files, user, chat_id)
    if saved is None:
        return None
    place = parse_place(saved.base.name)
    return None if isinstance(place, str) or files.stat_owner(user, place) is not None else saved.base.name


def fold_sessions(saved: SessionFile, stream: Stream) -> None:
    """Outcomes and history, whatever its epoch."""
    for session, kept in saved.sessions.items():
        first = kept.outcomes[0].op if kept.outcomes else kept.last + 1
        ops = stream.sessions[session] = SessionOps(first - 1, kept.used_ms)
        for outcome in kept.outcomes:
            ops.add(
                outcome.op, Outcome(outcome.kind, outcome.fingerprint, outcome.body.encode(), outcome.integrity),
                kept.used_ms,
            )
    stream.running = {one: Running(kept.text, kept.reasoning) for one, kept in saved.texts.items()}
    stream.history_from = saved.history_from
    epoch = saved.history_from.epoch
    stream.remember(
        [Past(Version(epoch, past.seq, past.integrity), past.members, past.targets) for past in saved.history]
    )


