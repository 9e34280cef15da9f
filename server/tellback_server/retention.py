"""Retention: which log segments may go, and the session files that let them.

    retention.folded(actor, position)       what was committed up to here is in the owner's files
    await retention.save(actor)             outcomes and history into the session file; True when all of it is there
    await retention.collect()               let go of what is over the retention and needed by nobody

Rules of this module (BEHAVIOUR O9, STORAGE R4):
- A segment goes when every owner with a record in it has that record's outcome in its session file and its effects in
  its files, live or not. What no session file holds yet is put there first, one owner after the other, out of the log.
- What cannot be put there (files that cannot be written, records of a kind that is not known here) holds the segment.
- Session files are written when a chat leaves memory, when a segment wants to go, and after many commits, so that a
  chat that is always busy is read back in bounded time after a crash. Nothing is written for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog

from tellback_protocol.ids import parse_place
from tellback_protocol.outcomes import bound_outcomes
from tellback_protocol.stream import HISTORY_COMMITS_MAX, Stream
from tellback_server.actor import Actor
from tellback_server.claims import compared, find_claim, known_past
from tellback_server.departed import load_departed
from tellback_server.hub import Hub
from tellback_server.loading import LoadedStream, keep_unfolded
from tellback_server.log import LogError, Position
from tellback_server.names import Names
from tellback_server.owner_past import LogReader, OwnerPast
from tellback_server.records import BaseRecord, Checkpointed, owner_key
from tellback_server.registrar import Registrar
from tellback_server.sessions import SessionFile, read_sessions, write_sessions
from tellback_server.store.files import FileStore
from tellback_server.trash import Trash

__all__ = ["Retention"]

log = structlog.get_logger()

OWNERS_AT_ONCE: Final = 256
"""Owners that nobody has open whose session files one round writes at most."""
RECORDS_UNSAVED_MAX: Final = 4 * HISTORY_COMMITS_MAX
"""Records of a live owner behind its session file; more are put there after the next checkpoint. A session file holds
what is remembered, so that with fewer a busy chat writes all it ever remembers again; a start reads these in 20 ms."""
NOT_WRITTEN: Final = "the session file cannot be written"
UNDECIDED: Final = "its files and the log contradict each other"


class Retention:
    """See the module. Loop thread; files are touched in threads."""

    def __init__(self, hub: Hub, files: FileStore, names: Names, registrar: Registrar) -> None:
        self._hub = hub
        self._files = files
        self._names = names
        self._registrar = registrar
        self._folded: dict[str, Position] = {}
        """Up to which position what an owner committed is in its files, by owner key, as all of these."""
        self._saved: dict[str, tuple[Position, int]] = {}
        """Up to which position its outcomes are in its session file, and the seq at that time."""
        self._free: dict[str, Position] = {}
        """Up to which position nobody needs an owner's records any more."""
        self._missing: set[str] = set()
        """Owner keys of chats that another program deleted; what no file held of them is in backups."""
        self._writing: set[str] = set()
        self.segments_held = 0
        """Segments over the retention that had to stay at the last look."""

    # -- live owners -------------------------------------------------------------------------------------------------

    def loaded(self, actor: Actor, loaded: LoadedStream) -> None:
        """An actor begins; its session file knows this much already."""
        self._missing.discard(actor.key)
        if loaded.saved is not None and actor.key not in self._saved:
            self._saved[actor.key] = (Position(loaded.saved.position), loaded.saved.answered_seq)

    def position_of(self, actor: Actor) -> Position:
        """The position of the owner's last record."""
        return self._hub.log.last_of(actor.key)

    def folded(self, actor: Actor, position: Position) -> bool:
        """A checkpoint that was taken at `position` is done. True when it is time to save what its ops led to."""
        self._folded[actor.key] = position
        stream = actor.stream
        if stream is None:
            return False
        seq = self._saved.get(actor.key, (Position(0), 0))[1]
        return stream.head.seq - seq > RECORDS_UNSAVED_MAX

    def missing(self, user: str, chat_id: str) -> None:
        """Another program deleted the chat; backups of what no file held were made."""
        self._missing.add(owner_key(user, chat_id))

    async def save(self, actor: Actor) -> bool:
        """Cost: what the stream remembers, when there is news. False when the disk did not take it, or when
        nobody has decided whether the files or the log count (X13).
        """
        stream, held, key = actor.stream, actor.file, actor.key
        if stream is None or held is None or key in self._writing or stream.contradiction:
            return stream is None
        last = self._hub.log.last_of(key)
        is_clean = not (actor.folding or held.pending) and held.head == stream.head
        free = last if is_clean else self._folded.get(key, Position(0))
        begun = actor.generations.first_position
        if begun is not None:
            # The next start finds the generations that run by the records of their beginnings.
            free = min(free, Position(max(0, begun - 1)))
        if last <= self._saved.get(actor.key, (Position(0), 0))[0] or not last:
            if last:
                self._set_free(key, min(free, last))
            return True
        bound_outcomes(stream.sessions, self._hub.clock.now_ms())
        taken = SessionFile.take(stream, held, self._hub.clock.now_ms(), last)
        self._writing.add(key)
        try:
            # Nothing is told by a file that a crash of the log could undo.
            await self._hub.log.flush()
            await self._hub.in_thread(lambda: write_sessions(self._files, taken))
        except (OSError, LogError) as error:
            log.error("sessions-not-saved", chat=actor.name, error=str(error))
            return False
        finally:
            self._writing.discard(key)
        self._saved[key] = (last, taken.seq)
        self._set_free(key, free)
        return True

    def _set_free(self, key: str, position: Position) -> None:
        if position > self._free.get(key, 0):
            self._free[key] = position

    # -- letting go --------------------------------------------------------------------------------------------------

    async def collect(self, needed_elsewhere: Callable[[], Position | None]) -> None:
        """Removes the segments over the retention that nobody needs. Raises OSError, LogError.

        Cost: a look at each owner with retained records, and what the session files of those take that need one.
        """
        records = self._hub.log
        wanted = records.collectable()
        if wanted is None:
            self.segments_held = 0
            return
        holding: dict[str, str] = {}
        safe = wanted
        live = {actor.key: actor for actor in self._hub.actors if actor.key}
        offline = 0
        for key in list(records.owners()):
            first = records.next_of(key, self._free.get(key, Position(0)))
            if first is None or first > wanted or key.endswith("/active-chats"):
                continue
            why: str | None
            actor = live.get(key)
            if actor is not None and actor.state in ("ready", "busy"):
                undecided = actor.stream is not None and actor.stream.contradiction
                why = None if await self.save(actor) else UNDECIDED if undecided else NOT_WRITTEN
            elif offline >= OWNERS_AT_ONCE:
                why = "more owners than one round takes"
            else:
                offline += 1
                why = await self._cover(key)
            first = records.next_of(key, self._free.get(key, Position(0)))
            if first is not None and first <= wanted:
                safe = min(safe, Position(first - 1))
                holding[key] = why or "its files do not hold everything yet"
        elsewhere = needed_elsewhere()
        if elsewhere is not None:
            safe = min(safe, Position(elsewhere - 1))
        if self._hub.is_loading:
            # It may have read its session file before it was written, and would miss what goes now.
            return
        await self._hub.in_thread(lambda: records.collect(safe))
        self._told(holding)
        for known in (self._free, self._folded, self._saved):
            for key in known.keys() - records.owners().keys() - live.keys():
                del known[key]

    def _told(self, holding: dict[str, str]) -> None:
        held = self._hub.log.over_retention
        if held and holding:
            examples = dict(list(holding.items())[:3])
            log.warning("log-segments-held", count=held, owners=len(holding), examples=examples)
        self.segments_held = held

    async def _cover(self, key: str) -> str | None:
        """Session file and files of an owner that nobody has open. Why its records must stay, or None."""
        user, _, owner_id = key.partition("/")
        records = self._hub.log
        last = records.last_of(key)
        if key in self._writing:
            return "its session file is being written"
        self._writing.add(key)
        try:
            await records.flush()
            name = await self._hub.in_thread(lambda: self._cover_now(user, owner_id, last))
        except (OSError, LogError) as error:
            log.error("sessions-not-saved", owner=key, error=str(error))
            return NOT_WRITTEN
        finally:
            self._writing.discard(key)
        if name is None:
            self._set_free(key, last)
            return None
        place = parse_place(name)
        if isinstance(place, str):
            return name
        # It is folded as soon as it is live, and saved when it leaves memory or at the next round.
        self._hub.actor(user, place)
        return "a crash left it unfolded"

    def _cover_now(self, user: str, owner_id: str, last: Position) -> str | None:
        """In a thread. The name of an owner that has to be folded first, or None when all is done."""
        files, records, now_ms = self._files, self._hub.log, self._hub.clock.now_ms()
        key = owner_key(user, owner_id)
        registered = self._registrar.of(user, owner_id)
        stream: Stream
        if registered is not None and registered.gone is not None:
            stream, base = load_departed(files, records, registered, now_ms), registered.gone.base
        else:
            saved = read_sessions(files, user, owner_id)
            undecided = self._undecided(user, owner_id, saved, now_ms)
            if undecided is not None:
                # Without these records chat_sync would count (X13).
                return undecided
            if saved is not None and saved.position >= last:
                return None
            past = OwnerPast.read(records, key, saved.base if saved is not None else None, saved, now_ms)
            if past.base is None:
                log.warning("outcomes-without-a-file", owner=key)
                return None
            if past.kinds:
                return f"records of kinds {sorted(past.kinds)} are not known"
            name = self._names.name_of(user, owner_id) or past.base.name
            if past.pending() and not self._is_kept(user, owner_id, name, now_ms):
                return name
            place = parse_place(past.base.name)
            assert not isinstance(place, str), "a stored name is an address"
            stream, base = past.answers(user, owner_id), _as_checkpointed(past.base)
        write_sessions(files, SessionFile.of(stream, base, now_ms, last))
        return None

    def _undecided(self, user: str, owner_id: str, saved: SessionFile | None, now_ms: int) -> str | None:
        """Why the records must stay although nothing waits for a file, or the name of an owner whose load ends it. None
        when the files go with the log, are another's, or are nowhere.
        """
        files, records = self._files, _Unremembered(self._hub.log)
        went = self._registrar.went_with(user, owner_id)
        name = self._names.name_of(user, owner_id) or ("" if saved is None else saved.base.name)
        place = parse_place(name if went is None else went[0].name)
        if isinstance(place, str):
            return None
        if went is None:
            if files.stat_owner(user, place) is None:
                return None
            claim = find_claim(
                files, records, user, place, now_ms=now_ms, named=owner_id, ours=None, keep_unfolded=lambda _id: None
            )
            if claim.begins_anew and claim.chat_id == owner_id:
                return name
        else:
            trash = Trash(files)
            entry = trash.find(user, went[1].chat_id)
            mark = None if entry is None else trash.mark_of(user, entry, str(place))
            if mark is None:
                return None
            claim = compared(
                records, user, mark, known_past(files, records, user, place, mark.chat_id, mark, now_ms)
            )
        return UNDECIDED if claim.contradiction and claim.chat_id == owner_id else None

    def _is_kept(self, user: str, owner_id: str, name: str, now_ms: int) -> bool:
        """What no file holds is in backups, because the chat is gone or its name is another's."""
        if owner_key(user, owner_id) in self._missing:
            return True
        if self._names.id_of(user, name) in (owner_id, None):
            return False
        place = parse_place(name)
        assert not isinstance(place, str), "a stored name is an address"
        keep_unfolded(self._files, self._hub.log, user, place, owner_id, now_ms)
        return True


class _Unremembered:
    """The log, without what a stream would only remember: whether it contradicts the files is told by its end."""

    def __init__(self, records: LogReader) -> None:
        self.records = records.records

    def seq_within(self, _owner: str, _after_seq: int, until_seq: int, _bytes_max: int) -> int:
        return until_seq


def _as_checkpointed(base: BaseRecord) -> Checkpointed:
    return Checkpointed(
        user=base.user, name=base.name, chat_id=base.chat_id, file=base.file, version=base.version, head=base.head,
        states=base.states, inherited=base.inherited, rotten=base.rotten,
    )
