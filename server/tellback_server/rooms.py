"""Rooms: what the keeper and the life writes ask of where owners are kept. Ports; users' folders and stores are rooms.

    Room        reads owners, folds commits, finds names          file_room.FileRoom, vault.Vault
    Lookout     whether somebody else changed a live owner         lookout.Lookout, NoLookout
    Plans       what makes, moves and ends owners there            file_plans.FilePlans, store_plans.StorePlans

Rules of this module:
- A room knows *what* and *where*, the keeper knows *when*: timers, idle chats, retries and what a crash left are there.
- A method that blocks is called in a thread; one call at a time for one owner.
- Missing is an answer; unreachable, unreadable and unsafe are errors, each of its own kind.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import structlog

from tellback_protocol.errors import Refused
from tellback_protocol.ids import ChatName, Place, Version
from tellback_protocol.life import Facts
from tellback_protocol.requests import ChatCreate, LifeWrite
from tellback_protocol.stream import Stream
from tellback_server.backup_folder import Source
from tellback_server.fs import FileUnsafe
from tellback_server.loaded import ChatMissing, LoadedStream, NewRecord
from tellback_server.log import LogPoisoned
from tellback_server.store.base import StoreError, StoreUnavailable
from tellback_server.store.held import FileState

if TYPE_CHECKING:
    from tellback_server.actor import Actor
    from tellback_server.operations import Operation
    from tellback_server.registrar import Registrar
    from tellback_server.store.groups import GroupEdit

__all__ = [
    "Around", "Folded", "Lookout", "NoLookout", "Plan", "Plans", "Room", "RoomFor", "refusal_of", "store_away",
    "trouble_code",
]

log = structlog.get_logger()


class Folded(Protocol):
    """What a checkpoint has brought up to the log."""

    @property
    def size_bytes(self) -> int:
        """Bytes written."""

    def install(self, stream: Stream, held: FileState) -> None:
        """Move what is known of the owner's place on. Loop, synchronous."""


class Lookout(Protocol):
    """Whether somebody else changed what is live. Loop thread."""

    def look(self, actor: Actor, namespaces: Iterable[str] = (), *, around: bool = False) -> bool:
        """True when the actor is busy until a change is adopted."""

    async def closer(self, actor: Actor) -> None:
        """The actor stands still (folding): read anew and adopt what is new."""


class NoLookout:
    """Nobody else writes there."""

    def look(self, actor: Actor, namespaces: Iterable[str] = (), *, around: bool = False) -> bool:
        """See Lookout."""
        del actor, namespaces, around
        return False

    async def closer(self, actor: Actor) -> None:
        """See Lookout."""
        raise AssertionError(f"{actor.name} was never looked at")


class Room(Protocol):
    """Where owners are kept."""

    @property
    def executor(self) -> Executor:
        """Where what blocks is called."""

    @property
    def keeps_log(self) -> bool:
        """Whether the log has to keep everything, because the place may lose what it was given."""

    @property
    def must_settle(self) -> bool:
        """Whether everything must be folded, and changes of others be adopted, before an owner is moved."""

    def lookout(self, adopt: Callable[[Actor], Awaitable[None]], became_dirty: Callable[[Actor], None]) -> Lookout:
        """Who notices what others do there."""

    def plans(self, registrar: Registrar) -> Plans:
        """What moves owners there."""

    def users(self) -> list[str]:
        """Users who may have entries of names. Blocks."""

    def begin(self, cut_off: Sequence[Operation]) -> None:
        """Before serving, when every life write that a crash cut off is carried out, but for these. Blocks."""

    def load(self, user: str, place: Place, chat_id: str | None, now_ms: int) -> LoadedStream | ChatMissing:
        """The owner with everything the log knows; `chat_id` is what the log's names tell. Blocks.

        Raises FsError, OSError, StoreError, LogCorrupt.
        """

    def resolve(self, user: str, chat_id: str) -> str | None:
        """The name of a chat by its id. Blocks. Raises OSError, StoreError."""

    def check_new(self, user: str, place: ChatName) -> None:
        """Raises Refused `exists` when a chat of this name could not be made; OSError, StoreError. Blocks."""

    def blank(self, user: str, name: str, chat_id: str, now_ms: int) -> LoadedStream:
        """A chat before its first commit. Loop."""

    def take(self, stream: Stream, held: FileState, now_ms: int) -> Any:
        """A snapshot of what is pending, for `fold`; None when nothing is. Loop, synchronous."""

    async def fold(self, job: Any, record_seq: Callable[[], int]) -> Folded:
        """Bring the place up to a snapshot, everything of which is durable in the log. On any exception its changes are
        pending again. Raises OutsideEdit, CheckpointFailed, FileUnsafe, FileUnreadable, StoreError, LogError.
        """

    def backup_source(self, stream: Stream, held: FileState, now_ms: int) -> Source:
        """A live owner that stands still, for its backup. Loop, synchronous; cost: one pointer a message."""

    def is_changed(self, user: str, held: FileState) -> bool:
        """Whether somebody else changed it; `adopt` finds out what happened. Blocks."""

    def adopt(self, stream: Stream, held: FileState, now_ms: int) -> LoadedStream | ChatMissing:
        """A live owner read anew. Blocks. Raises as `load`."""

    async def step(self) -> None:
        """Something small, now and then."""


def store_away() -> Refused:
    """What is asked of a store that cannot be reached."""
    return Refused("storage-unavailable", "The store cannot be reached now.", details={"after_ms": 1000})


def refusal_of(name: str, error: Exception) -> Refused:
    """Missing, unsafe, unreadable and failed are different answers; the details stay in the server's log."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, FileUnsafe):
        return Refused("unsafe-file", "The chat's path is a link or no regular file; it is not followed.")
    if isinstance(error, LogPoisoned):
        return Refused("storage-failed", "The disk failed.")
    if isinstance(error, StoreUnavailable):
        return store_away()
    if isinstance(error, OSError | StoreError):
        return Refused("unreadable", "The chat exists and cannot be read now.")
    log.error("load-failed", chat=name, exc_info=error)
    return Refused("internal", "The chat could not be loaded; the server's log says why.")


def trouble_code(error: Exception) -> str:
    """The code of a refusal for what a room raised."""
    if isinstance(error, StoreUnavailable):
        return "storage-unavailable"
    return "unreadable" if isinstance(error, OSError | StoreError) else "internal"


# -- life writes -----------------------------------------------------------------------------------------------------


class Plan(Protocol):
    """What was found out, for the decision and for what follows it."""

    @property
    def facts(self) -> Facts: ...

    @property
    def is_moved(self) -> bool:
        """An owner that is there gets another name."""

    def refused(self, reason: tuple[str, str]) -> Plan:
        """The same, but it cannot be done: code and sentence."""

    def chats_out(self) -> list[str]:
        """Names of the chats that come back with their character."""


class Around(msgspec.Struct, kw_only=True):
    """What a plan has to know of live owners: a snapshot."""

    beside: Mapping[str, tuple[bytes, list[bytes]]] = {}
    """Metadata and messages of live chats of the same character, or of all groups, by name."""
    live: set[str] = set()
    """Names of the user's live owners."""
    chat_id: str = ""
    """Of the chat that a branch makes."""
    integrity: str = ""
    """Of the version that it begins with."""

    @classmethod
    def of(cls, actors: Iterable[Actor], user: str, name: str, *, with_chats: bool = True) -> Around:
        """What is live around `name`. Loop. Cost: one pointer for each message of the live chats beside it; without
        these (`with_chats`) only names.
        """
        live = {one.name: one.stream for one in actors if one.user == user and one.stream is not None}
        folder = name.rpartition("/")[0]
        return cls(live=set(live), beside={
            other: (stream.chat.metadata, list(stream.chat.messages.values()))
            for other, stream in live.items() if with_chats and other.rpartition("/")[0] == folder
        })


class RoomFor(msgspec.Struct, frozen=True):
    """Whether a chat can be made."""

    refused: tuple[str, str] | None
    edits: list[GroupEdit]
    """Of group files."""
    has_folder: bool
    """The character is there already."""


class Plans(Protocol):
    """What makes, moves and ends owners in one room."""

    def plan(self, stream: Stream, request: LifeWrite, around: Around, now_ms: int) -> Any:
        """A Plan: the facts that a life write is decided by. Blocks and only reads. Raises OSError, StoreError."""

    def operation(
        self, plan: Any, stream: Stream, held: FileState | None, request: LifeWrite, version: Version, now_ms: int
    ) -> Operation:
        """What carries a decision out. Blocks: it may write what nobody sees yet. Raises OSError."""

    def carry_out(self, operation: Operation) -> None:
        """Do it, or what of it is not done yet. Blocks; durable on return. Raises OSError, OutsideEdit, StoreError."""

    def room_for(self, user: str, name: str, request: ChatCreate, around: Around, now_ms: int) -> RoomFor:
        """Whether a chat can be made. Blocks. Raises OSError, StoreError."""

    def renamed(self, held: FileState, stream: Stream, to: str, version: Version) -> NewRecord:
        """A live owner has another name since `version`; the record that tells it. Loop."""
