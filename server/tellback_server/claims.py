"""Claims: which chat stands at a place, what is known of its past, and whether its chat_sync and the log agree.

Rules of this module (STORAGE F8, F13; BEHAVIOUR X4, X11, X13):
- The newest of chat_sync, session file and log counts, as long as all of it is one history.
- A chat_sync that knows, alone or with the session file, of commits which the log never had is no newer truth:
  somebody put an older log, or a file of another server, in its place.
- Two files that say that they are the same chat are two chats: the one that the log names keeps the id.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from tellback_protocol.ids import ChatName, Place, StateOwner, parse_place
from tellback_protocol.stream import Stream
from tellback_server.fs import FileMissing
from tellback_server.owner_past import LogReader, OwnerPast
from tellback_server.records import BaseRecord, Checkpointed, FileIdentity, owner_key
from tellback_server.sessions import id_of, read_sessions
from tellback_server.store.files import FileStore, SyncMark

__all__ = ["Claim", "compared", "find_claim", "known_past"]

Keep = Callable[[str], object]
"""Backs up what no file ever held of a chat, by its id."""


class Claim(msgspec.Struct, frozen=True):
    """What is known of a chat before its files are read."""

    chat_id: str
    past: OwnerPast
    contradiction: str = ""
    """How chat_sync and the log differ, as a sentence; empty when they agree."""
    told: tuple[int, int] = (0, 0)
    """With a contradiction: the highest epoch and the highest seq that anything tells of."""
    begins_anew: bool = False
    """A repair was told to take the files as they are."""


def find_claim(
    files: FileStore, log: LogReader, user: str, place: Place, *, now_ms: int, named: str | None,
    ours: Stream | None, keep_unfolded: Keep,
) -> Claim:
    """`named` is the id that the log's names tell, `ours` the live stream. Blocks; writes only what `keep_unfolded`
    does. Cost: chat_sync, the session file, and what the log tells since.
    """
    sync = files.read_sync(user, place)
    mark = sync.mark if sync is not None else None
    if mark is not None and not files.owns_mark(user, place, mark):
        mark = None
    if ours is not None:
        mark = mark if mark is not None and mark.chat_id == ours.chat_id else None
        past = known_past(files, log, user, place, ours.chat_id, mark, now_ms, outcomes=False)
        # What contradicts itself does so whatever another program writes meanwhile.
        told = (ours.head.epoch - 1, ours.head.seq) if ours.contradiction else (0, 0)
        return Claim(ours.chat_id, past, contradiction=ours.contradiction, told=told)
    if mark is not None and named not in (None, mark.chat_id) and not isinstance(place, StateOwner):
        assert named is not None, "it is another one"
        mark = _settled(files, log, user, place, mark, named, now_ms, keep_unfolded)
    if mark is not None:
        past = known_past(files, log, user, place, mark.chat_id, mark, now_ms)
        if not _is_anothers(files, user, place, mark, past.newest):
            return compared(log, user, mark, past)
        named = None
    elif named is None and files.has_broken_sync(user, place, sync):
        # Only the id is lost with it: the session file knows under which one the chat was written (X11).
        named = id_of(files, user, str(place))
    chat_id = files.new_id(user, str(place)) if named is None else named
    return Claim(chat_id, known_past(files, log, user, place, chat_id, None, now_ms))


def known_past(
    files: FileStore, log: LogReader, user: str, place: Place, chat_id: str, mark: SyncMark | None, now_ms: int, *,
    outcomes: bool = True,
) -> OwnerPast:
    """What chat_sync, session file and log tell of an owner's past."""
    saved = read_sessions(files, user, chat_id)
    base: BaseRecord | None = saved.base if saved is not None else None
    if mark is not None and (base is None or mark.head.seq > base.head.seq):
        base = Checkpointed(
            user=user,
            name=str(place),
            chat_id=chat_id,
            file=None if isinstance(place, StateOwner) else FileIdentity(
                mark.watermark.bytes, mark.watermark.crc32, 0, 0
            ),
            version=mark.version,
            head=mark.head,
            states=mark.states,
        )
    return OwnerPast.read(log, owner_key(user, chat_id), base, saved, now_ms, outcomes=outcomes)


def compared(log: LogReader, user: str, mark: SyncMark, past: OwnerPast) -> Claim:
    """The claim, held against where the log ends."""
    chat_id, epoch, seq = mark.chat_id, mark.head.epoch, mark.head.seq
    if past.saved is not None:
        seq = max(seq, past.saved.answered_seq)
    if past.end_seq < 0 and next(iter(log.records(owner_key(user, chat_id), -1)), None) is None:
        # The log knows nothing of this chat: it was trimmed, or lost; then the files are what there is.
        return Claim(chat_id, past)
    if seq <= past.end_seq and (epoch <= past.end_epoch or not past.end_epoch):
        return Claim(chat_id, past)
    where = f"epoch {past.end_epoch}, seq {past.end_seq}" if past.end_seq >= 0 else "long before that"
    return Claim(
        chat_id, past, contradiction=f"chat_sync tells of epoch {epoch}, seq {seq}, and the log ends at {where}",
        told=(max(epoch, past.end_epoch), max(seq, past.end_seq)), begins_anew=mark.anew,
    )


def _settled(
    files: FileStore, log: LogReader, user: str, place: ChatName, mark: SyncMark, named: str, now_ms: int,
    keep_unfolded: Keep,
) -> SyncMark | None:
    """The chat_sync, or None when the chat that the log names last is the one: the log tells of two under this name.

    What stands beside the file belongs to it, and a name in the log may be that of a chat that was deleted outside. But
    a chat_sync does not win over commits that wait for their file, unless its own file stands there.
    """
    pending = OwnerPast.read(log, owner_key(user, named), None, None, now_ms, outcomes=False).pending()
    if not pending:
        return mark
    try:
        found = files.read(files.owner_path(user, place)).identity
    except FileMissing:
        return None
    if not found.same_bytes(mark.watermark.bytes, mark.watermark.crc32):
        return None
    keep_unfolded(named)
    return mark


def _is_anothers(files: FileStore, user: str, place: Place, mark: SyncMark, known: BaseRecord | None) -> bool:
    """Whether log or session file know this id under another name, where a chat stands that says the same."""
    if known is None or known.name == str(place):
        return False
    other = parse_place(known.name)
    if isinstance(other, str) or files.stat_owner(user, other) is None:
        return False
    sync = files.read_sync(user, other)
    return sync is not None and sync.mark is not None and (sync.mark.chat_id, sync.mark.name) == (
        mark.chat_id, known.name
    )
