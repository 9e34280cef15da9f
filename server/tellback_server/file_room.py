"""File room: users' folders as a room, shared with other programs.

Rules of this module (STORAGE "User files"):
- It only joins what knows files: `loading` reads, `checkpoint` writes, `lookout` and `orphans` look at what others do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from tellback_protocol.ids import ChatName, Place, StateOwner, Version, file_integrity, parse_place
from tellback_protocol.stream import Stream
from tellback_server.actor import Actor
from tellback_server.backup_folder import FileSource
from tellback_server.checkpoint import CheckpointDone, CheckpointJob, checkpoint
from tellback_server.file_plans import FilePlans
from tellback_server.hub import Hub
from tellback_server.loaded import ChatMissing, LoadedStream
from tellback_server.loading import adopt, create_chat, load_chat, needs_adoption
from tellback_server.lookout import Lookout
from tellback_server.operations import Operation
from tellback_server.orphans import Orphans
from tellback_server.outside_renames import OutsideRenames
from tellback_server.registrar import Registrar
from tellback_server.store.files import FileStore
from tellback_server.store.held import FileState

__all__ = ["FileRoom"]


class FileRoom:
    """See rooms.Room."""

    must_settle = True
    keeps_log = False

    def __init__(self, hub: Hub, files: FileStore) -> None:
        self._hub = hub
        self._files = files
        self.executor = hub.executor
        self._renames = OutsideRenames(files, hub.log, hub.clock)
        self._orphans = Orphans(files, self._renames, hub.clock, hub.executor, hub.is_live)

    def lookout(self, adopt: Callable[[Actor], Awaitable[None]], became_dirty: Callable[[Actor], None]) -> Lookout:
        return Lookout(self._hub, self._files, adopt, became_dirty)

    def plans(self, registrar: Registrar) -> FilePlans:
        return FilePlans(self._files, registrar, self._orphans.make_room)

    def users(self) -> list[str]:
        return self._files.known_users()

    def begin(self, cut_off: Sequence[Operation]) -> None:
        assert not cut_off, "files are moved before anything is served"
        for user in self._files.known_users():
            self._files.clean_temporaries(user)

    def load(self, user: str, place: Place, chat_id: str | None, now_ms: int) -> LoadedStream | ChatMissing:
        self._renames.follow(user, place)
        return load_chat(self._files, self._hub.log, user, place, now_ms=now_ms, chat_id=chat_id)

    def resolve(self, user: str, chat_id: str) -> str | None:
        place = self._files.resolve(user, chat_id)
        return None if place is None else str(place)

    def check_new(self, user: str, place: ChatName) -> None:
        self._files.check_free(user, place)
        self._orphans.make_room(user, place)

    def blank(self, user: str, name: str, chat_id: str, now_ms: int) -> LoadedStream:
        place = parse_place(name)
        assert not isinstance(place, str | StateOwner), "only chats are created"
        before = Version(1, 0, file_integrity(1, 0, name, b""))
        return create_chat(user, place, chat_id, before, now_ms)

    def take(self, stream: Stream, held: FileState, now_ms: int) -> CheckpointJob | None:
        return CheckpointJob.take(stream, held, now_ms)

    async def fold(self, job: CheckpointJob, record_seq: Callable[[], int]) -> CheckpointDone:
        return await checkpoint(job, self._files, self._hub.log, self._hub.executor, record_seq)

    def backup_source(self, stream: Stream, held: FileState, now_ms: int) -> FileSource:
        del now_ms
        return FileSource(
            user=stream.user, place=held.place, chat_id=stream.chat_id, version=held.version, head=held.head,
            file=held.identity, state_files=dict(held.state_files), count=held.lines, inherited=held.image.inherited,
        )

    def is_changed(self, user: str, held: FileState) -> bool:
        return needs_adoption(self._files, user, held)

    def adopt(self, stream: Stream, held: FileState, now_ms: int) -> LoadedStream | ChatMissing:
        return adopt(self._files, self._hub.log, stream, held, now_ms)

    async def step(self) -> None:
        await self._orphans.step()
