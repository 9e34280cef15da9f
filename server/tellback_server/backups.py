"""Backups: when a live owner is backed up, and what of its backups goes. They are files, wherever owners are kept.

    schedule    a chat that changed, `backup_interval_s` after its last backup at the earliest; looked at every second
    idle        a chat that changed leaves memory
    force       before a write overwrites what its author had not seen
    deletion    before many messages are deleted at once
    restore     before a backup takes a chat's place
    demand      somebody asked

Rules of this module (BEHAVIOUR Z2 to Z6):
- An owner is backed up while its files stand still and hold everything; what comes meanwhile is acknowledged, and
  folded afterwards.
- A backup that the disk refuses is logged and counted. It is in nobody's way but a restore's.
- Backups of one user are taken and removed one after another: what one names as its file, no other takes away.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import structlog

from tellback_protocol.decide import Committed
from tellback_protocol.effects import DeleteEffect
from tellback_protocol.errors import Refused
from tellback_protocol.ids import Version
from tellback_server.actor import Actor
from tellback_server.backup_folder import BackupFolder, Manifest, Reason, Taken
from tellback_server.hub import Hub
from tellback_server.log import LogError
from tellback_server.releases import Envelope
from tellback_server.rooms import Room
from tellback_server.store.files import FileStore
from tellback_server.store.held import OutsideEdit
from tellback_server.thinning import Policy

__all__ = ["BackupSettings", "Backups"]

log = structlog.get_logger()

TRIES_MAX: Final = 5
"""Checkpoints that a backup waits for, of a chat that is written to all the time."""
POLL_S: Final = 0.005
ALARM_S: Final = 3600.0
"""How often a bound that cannot be held is told, and looked at again."""


class BackupSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What can be set."""

    interval_s: float = 600.0
    """0: nothing is backed up by itself but before a loss."""
    deletions_min: int = 10
    bytes_max: int = 2 << 30
    policy: Policy = Policy()


class _Known(msgspec.Struct):
    """The last backup of an owner."""

    head: Version
    at_s: float


class _Room(msgspec.Struct):
    """All backups of a user."""

    size_bytes: int | None = None
    """None before it was counted."""
    is_over: bool = False
    looked_s: float = float("-inf")


class Backups:
    """See the module. Loop thread; files are touched in threads."""

    def __init__(self, hub: Hub, files: FileStore, settings: BackupSettings) -> None:
        self._hub = hub
        self._settings = settings
        self.folder = BackupFolder(files)
        self._last: dict[str, _Known] = {}
        """By owner key; of owners that were backed up or looked at since the start."""
        self._locks: dict[str, asyncio.Lock] = {}
        self._rooms: dict[str, _Room] = {}
        self._learning: set[str] = set()
        """Owners whose last backup is being looked for."""
        self._settle: Callable[[Actor, Envelope | None], Awaitable[bool]]
        self._fold: Callable[..., Awaitable[bool]]
        self._became_dirty: Callable[[Actor], None]
        self._room: Room

    def attend(
        self, room: Room, *, settle: Callable[[Actor, Envelope | None], Awaitable[bool]],
        fold: Callable[..., Awaitable[bool]], became_dirty: Callable[[Actor], None],
    ) -> None:
        """Where the owners are that are backed up, and how they are brought to stand still. Once, before the first
        request.
        """
        self._room = room
        self._settle, self._fold, self._became_dirty = settle, fold, became_dirty

    @property
    def users_over(self) -> int:
        """Users whose backups take more than they may: only last ones are left."""
        return sum(room.is_over for room in self._rooms.values())

    # -- when --------------------------------------------------------------------------------------------------------

    def loses(self, decision: Committed) -> Reason | None:
        """Why a backup comes before this commit."""
        if decision.forced:
            return "force"
        deleted = sum(len(effect.messages) for effect in decision.effects if isinstance(effect, DeleteEffect))
        return "deletion" if deleted >= self._settings.deletions_min else None

    def keep_first(self, actor: Actor, letter: Envelope, decision: Committed) -> bool:
        """See Shelf."""
        reason = self.loses(decision)
        if reason is None or actor.file is None or actor.kept_seq == actor.live_stream.head.seq:
            return False
        actor.state = "busy"
        actor.put_back(letter)
        self._hub.spawn(self._keep_first(actor, reason, actor.turn))
        return True

    def is_begun(self, actor: Actor) -> bool:
        """True when a live owner changed, its last backup is old enough, and another one begins now. Cost: two
        comparisons.
        """
        held, interval_s = actor.file, self._settings.interval_s
        if not interval_s or held is None or not held.head.seq:
            return False
        known = self._last.get(actor.key)
        if known is None:
            if actor.key not in self._learning:
                self._hub.spawn(self._learn(actor))
            return False
        if known.head == held.head or self._hub.clock.monotonic_s() - known.at_s < interval_s:
            return False
        known.at_s = self._hub.clock.monotonic_s()
        self._hub.spawn(self._keep_by_itself(actor, "schedule"))
        return True

    async def leaves(self, actor: Actor) -> None:
        """An owner leaves memory: what changed since its last backup is in one, however young that is."""
        if not self._settings.interval_s or actor.file is None or not actor.file.head.seq:
            return
        if actor.key not in self._last:
            await self._learn(actor)
        held = actor.file
        if held is not None and self._last[actor.key].head != held.head:
            await self._keep_by_itself(actor, "idle")

    async def _learn(self, actor: Actor) -> None:
        """Look for the last backup that an earlier process took."""
        key, user, chat_id = actor.key, actor.user, actor.chat_id
        self._learning.add(key)
        found: Manifest | None = None
        try:
            found = await self._hub.in_thread(lambda: self.folder.find(user, chat_id, "last"))
        except OSError as error:
            log.error("backups-not-read", chat=actor.name, error=str(error))
        finally:
            self._learning.discard(key)
        clock = self._hub.clock
        age_s = float("inf") if found is None else max(0.0, (clock.now_ms() - found.taken_ms) / 1000)
        head = Version(1, 0, "") if found is None else found.head
        # A chat without a backup gets its first an interval after it was seen to be ours.
        at_s = clock.monotonic_s() - (0.0 if found is None else age_s)
        self._last.setdefault(key, _Known(head, at_s))

    # -- taking ------------------------------------------------------------------------------------------------------

    async def take(self, actor: Actor, reason: Reason) -> Taken:
        """A backup of an owner that stands still: a checkpoint's place is taken, or it is busy.

        Raises OutsideEdit, FileUnsafe, FileUnreadable, OSError, LogError; counted and logged.
        """
        held, hub, settings = actor.file, self._hub, self._settings
        assert held is not None, "a live owner has files"
        source = self._room.backup_source(actor.live_stream, held, hub.clock.now_ms())
        try:
            # What a backup shows no crash takes back.
            await hub.log.flush()
            async with self._locks.setdefault(actor.user, asyncio.Lock()):
                now_ms = hub.clock.now_ms()
                taken = await self._hub.in_thread(lambda: self.folder.take(source, reason, now_ms))
                self._last[actor.key] = _Known(source.head, hub.clock.monotonic_s())
                if taken.is_new:
                    hub.counters.backed_up(reason, taken.written_bytes)
                    await self._hub.in_thread(
                        lambda: self.folder.thin(actor.user, source.chat_id, now_ms, settings.policy)
                    )
                    await self._make_room(actor.user, taken.written_bytes)
                return taken
        except Exception as error:
            hub.counters.backup_failures += 1
            # Not again at once: a full disk is asked once an interval.
            known = self._last.get(actor.key)
            self._last[actor.key] = _Known(
                Version(1, 0, "") if known is None else known.head, hub.clock.monotonic_s()
            )
            log.error("backup-failed", chat=actor.name, reason=reason, error=str(error))
            raise

    async def keep(self, actor: Actor, reason: Reason) -> Taken:
        """A backup of a live owner with everything that was committed before the call; nobody waits for it.

        Raises Refused when the owner is not there any more or cannot be folded, and as `take`.
        """
        seq = actor.live_stream.head.seq
        for tries in range(TRIES_MAX):
            while actor.state in ("busy", "loading") or (actor.folding and actor.state == "ready"):  # noqa: ASYNC110
                await asyncio.sleep(POLL_S)
            held = actor.file
            if actor.state != "ready" or held is None:
                raise Refused("not-found", "It is not there any more.", pointer="/chat")
            # What was committed since the call may stay pending: the files hold one version all the same. A store that
            # is away is in nobody's way.
            if not held.pending or held.head.seq >= seq or (tries and not self._room.must_settle):
                break
            await self._fold(actor, "backup")
        else:
            raise Refused("storage-full", "The files could not be written; there is no backup of this version.")
        actor.folding = True
        try:
            return await self.take(actor, reason)
        finally:
            actor.folding = False
            if actor.state == "ready" and actor.file is not None and actor.file.pending:
                self._became_dirty(actor)

    async def _keep_by_itself(self, actor: Actor, reason: Reason) -> None:
        with contextlib.suppress(OSError, OutsideEdit, Refused, LogError):
            await self.keep(actor, reason)

    async def _keep_first(self, actor: Actor, reason: Reason, turn: int) -> None:
        """Before a write that loses something. What the disk refuses is in the record of that write all the same."""
        try:
            if actor.turn != turn or not await self._settle(actor, None):
                # An outside edit was adopted, and the write was decided again.
                return
            await self.take(actor, reason)
        except (OSError, OutsideEdit, Refused, LogError) as error:
            log.error("backup-missed", chat=actor.name, reason=reason, error=str(error))
        finally:
            if actor.state == "busy" and actor.turn == turn and actor.stream is not None:
                actor.kept_seq = actor.stream.head.seq
                actor.resume()

    async def keep_restore(self, actor: Actor) -> None:
        """Before a backup takes the place of an owner that stands still. Raises Refused."""
        try:
            await self.take(actor, "restore")
        except (OSError, OutsideEdit) as error:
            raise Refused(
                "storage-full", "What is there could not be backed up first; nothing was changed."
            ) from error

    async def _make_room(self, user: str, written_bytes: int) -> None:
        """Hold the bound on all backups of a user. Cost: nothing, but when it is reached."""
        room, bound = self._rooms.setdefault(user, _Room()), self._settings.bytes_max
        now_s = self._hub.clock.monotonic_s()
        if room.size_bytes is not None:
            room.size_bytes += written_bytes
            if room.size_bytes <= bound or (room.is_over and now_s - room.looked_s < ALARM_S):
                return
        crowd = await self._hub.in_thread(lambda: self.folder.make_room(user, bound))
        room.size_bytes, room.looked_s, room.is_over = crowd.size_bytes, now_s, crowd.size_bytes > bound
        if crowd.going:
            log.warning("backups-dropped", user=user, count=len(crowd.going), size_bytes=crowd.size_bytes, bound=bound)
        if room.is_over:
            log.error("backups-over-bound", user=user, size_bytes=crowd.size_bytes, bound=bound)
