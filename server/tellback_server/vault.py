"""Vault: a store as a room: owners are read from it and saved to it, and only tellback writes there.

Rules of this module (STORAGE "A store in the place of files"):
- The log is the truth and the store trails it: what is read is what the store holds with the log's commits behind that
  on top. They continue each other by integrity, or the owner is not read at all.
- A store that holds less than it once did gets it again from the log, as far as that reaches; else that is an error,
  never an empty chat.
- What is saved is durable in the log; one save at a time for an owner.
- A character or preset is there when somebody asks for it: nothing else makes one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import msgspec
import structlog
from msgspec import Raw

from tellback_protocol.chat import Chat
from tellback_protocol.effects import Effect, StateEffect, versions_chat
from tellback_protocol.errors import Refused
from tellback_protocol.floors import LOG_SUFFIX
from tellback_protocol.ids import (
    CharacterChat,
    CharacterOwner,
    ChatName,
    Place,
    StateOwner,
    Version,
    file_integrity,
    parse_place,
)
from tellback_protocol.stream import StateDocument, Stream
from tellback_protocol.values import servable
from tellback_server.actor import Actor
from tellback_server.backup_folder import Source
from tellback_server.checkpoint import in_thread
from tellback_server.failpoint import failpoint
from tellback_server.fs import FileMissing
from tellback_server.hub import Hub
from tellback_server.loaded import ChatMissing, LoadedStream, NewRecord
from tellback_server.names import Names
from tellback_server.operations import Operation
from tellback_server.owner_past import OwnerPast
from tellback_server.records import ANCHOR, CHECKPOINT, COMMIT, Anchor, Checkpointed, FileIdentity, encode, owner_key
from tellback_server.registrar import Registrar
from tellback_server.rooms import NoLookout
from tellback_server.sessions import read_sessions
from tellback_server.staged import Staged, owner_of
from tellback_server.store.base import ListedOwner, StoreBehind, StoreDamaged, StoredChat, StoreUnavailable
from tellback_server.store.filed import own_files
from tellback_server.store.files import FileStore
from tellback_server.store.held import FileState
from tellback_server.store.jsonl import Image, new_header, with_metadata
from tellback_server.store.multi import Guarded, is_newer
from tellback_server.store.store_state import StorePending, StoreState, listing_of, state_of, value_now
from tellback_server.store_index import StoreIndex, character_of
from tellback_server.store_plans import StorePlans
from tellback_server.store_restoring import base_of
from tellback_server.store_watch import StoreWatch

__all__ = ["Vault"]

log = structlog.get_logger()

THREADS: Final = 4
"""For calls of the store: one that hangs keeps nobody from the log and the data folder."""
_MS_NS: Final = 1_000_000


class SaveJob(msgspec.Struct):
    """What one save brings: a snapshot taken in the loop."""

    user: str
    base: Version | None
    effects: list[Effect] | None
    value: StoredChat
    now_ms: int
    taken: StorePending
    held: StoreState

    @classmethod
    def take(cls, stream: Stream, held: StoreState, now_ms: int) -> SaveJob | None:
        """None when nothing is pending. Cost: the change, and one pointer a message."""
        pending = held.pending
        assert isinstance(pending, StorePending), "of an owner in a store"
        if not pending:
            return None
        chat = stream.chat
        effects = pending.effects(chat) if held.stored is not None else None
        documents = dict(held.documents)
        for namespace in stream.states if effects is None else pending.states:
            document = stream.states[namespace]
            if document.version is not None:
                documents[namespace] = StateDocument(document.version, document.data, corrupt=document.corrupt)
        if effects is not None and pending.reordered:
            effects += _moved_logs(stream, documents)
        value = StoredChat(
            chat_id=stream.chat_id, name=stream.name, head=stream.head, version=chat.version, metadata=chat.metadata,
            messages=dict(chat.messages), states=documents,
        )
        held.pending = StorePending()
        return cls(stream.user, held.stored, effects, value, now_ms, pending, held)

    def give_back(self) -> None:
        """Not done: its changes are pending again."""
        self.held.pending.give_back(self.taken)


def _moved_logs(stream: Stream, documents: dict[str, StateDocument]) -> list[Effect]:
    """Logs of floor states that count messages which have moved. Cost: those logs."""
    moved: list[Effect] = []
    for namespace in stream.floors:
        name = namespace + LOG_SUFFIX
        document, known = stream.states[name], documents.get(name)
        data = document.data
        if data is None or document.version is None or (known is not None and known.data == data):
            continue
        documents[name] = StateDocument(document.version, data)
        moved.append(StateEffect(name, document.version, None, data=Raw(data)))
    return moved


class Saved(msgspec.Struct, frozen=True):
    """What the store holds now."""

    value: StoredChat
    size_bytes: int
    identity: FileIdentity
    image: Image

    def install(self, stream: Stream, held: FileState) -> None:
        assert isinstance(held, StoreState), "of an owner in a store"
        del stream
        value = self.value
        held.stored = held.head = value.head
        held.version = value.version
        held.documents = value.states
        held.identity = self.identity
        held.image = self.image
        held.lines = len(value.messages)


class ValueSource(Source, frozen=True, kw_only=True):
    """A live owner as it would be exported."""

    value: StoredChat
    image: Image
    now_ms: int

    def contents(self, files: FileStore) -> dict[str, bytes]:
        del files
        return own_files(self.value, self.image, self.now_ms)


class Vault:
    """See rooms.Room."""

    must_settle = False

    def __init__(self, hub: Hub, files: FileStore, store: Guarded, names: Names, watch: StoreWatch) -> None:
        """`files` are the data folder: names, outcomes, trash and what is staged."""
        self._hub = hub
        self._files = files
        self._store = store
        self.names = names
        self.executor = ThreadPoolExecutor(THREADS, thread_name_prefix="tellback-store")
        self.index = StoreIndex(store, names.name_of)
        self.watch = watch
        self.staged = Staged(files)
        self._is_kept_told = False
        self._coming: dict[tuple[str, str], str] = {}
        """By user and id, owners that a life write brings which a crash cut off and the store could not take yet: what
        is staged of them is what they are.
        """
        self._registrar: Registrar
        """Set once, with the plans."""

    @property
    def keeps_log(self) -> bool:
        """Only log and data folder keep what the store is given."""
        return not self._store.keeps_all

    # -- what the keeper asks ----------------------------------------------------------------------------------------

    def lookout(
        self, adopt: Callable[[Actor], Awaitable[None]], became_dirty: Callable[[Actor], None]
    ) -> NoLookout:
        del adopt, became_dirty
        return NoLookout()

    def plans(self, registrar: Registrar) -> StorePlans:
        self._registrar = registrar
        return StorePlans(self._files, self._store, self, registrar)

    def users(self) -> list[str]:
        """Everybody who has names, here: the store may not be reached."""
        return self._listed("names")

    def _listed(self, folder: str) -> list[str]:
        with contextlib.suppress(FileMissing):
            return self._files.fs.listdir(os.path.join(self._files.server_root, folder))
        return []

    def begin(self, cut_off: Sequence[Operation]) -> None:
        self.staged.clean(cut_off)
        self._coming = {
            (operation.user, owner_of(name)): name for operation in cut_off
            if operation.stored is not None and operation.what != "delete" for name in operation.stored.staged
        }
        self._tell_kept()

    def _tell_kept(self) -> None:
        """Give a store that forgets what the data folder keeps for it."""
        if not self.keeps_log:
            self._is_kept_told = self._store.health is not None
            return
        kept = [(user, value) for user in self._listed("kept") for value in self.staged.kept_owners(user)]
        for user, value in kept:
            if self.names.name_of(user, value.chat_id) is None:
                self.names.named(user, value.chat_id, value.name)
        with contextlib.suppress(StoreUnavailable):
            for user, value in kept:
                self._store.save(user, None, None, value)
                self.index.put(user, ListedOwner(value.chat_id, value.name, value.head, value.summary))
            self._is_kept_told = self._store.health is not None

    def load(self, user: str, place: Place, chat_id: str | None, now_ms: int) -> LoadedStream | ChatMissing:
        name = str(place)
        if chat_id is None:
            chat_id = self._id_of(user, place, now_ms)
        if chat_id is None or self._is_gone(user, chat_id):
            # The log may still tell all of it.
            return ChatMissing(user=user, name=name, chat_id=chat_id or "", head=None, pending=0)
        try:
            value = self.read(user, chat_id)
        except StoreUnavailable:
            if not self._is_all_in_log(user, chat_id):
                raise
            value = None
        try:
            return self._joined(user, place, chat_id, value, now_ms)
        except StoreDamaged:
            other = self._store.other_copy(user, chat_id, value)
            if other is None:
                raise
            return self._joined(user, place, chat_id, other, now_ms)

    def _is_all_in_log(self, user: str, chat_id: str) -> bool:
        """Whether the log holds an owner from its first commit on, so that no store has to be asked."""
        for _position, record in self._hub.log.records(owner_key(user, chat_id)):
            if record.kind == COMMIT:
                return record.seq == 1
        return False

    def read(self, user: str, chat_id: str) -> StoredChat | None:
        """What the store holds, or what the data folder keeps for it: for one that loses everything, and what it could
        not take yet. Raises StoreError.
        """
        name = self._coming.get((user, chat_id))
        coming = None if name is None else self.staged.get(user, name)
        try:
            found = self._store.load(user, chat_id)
        except StoreUnavailable:
            if coming is None:
                raise
            return coming
        kept = self.staged.kept(user, chat_id) if self.keeps_log else None
        for one in (coming, kept):
            if one is not None and (found is None or is_newer(one.head, found.head)):
                found = one
        return found

    def _is_gone(self, user: str, chat_id: str) -> bool:
        """It is in the trash, by itself or with its character."""
        registered = self._registrar.of(user, chat_id)
        is_gone = registered is not None and registered.gone is not None
        return is_gone or self._registrar.went_with(user, chat_id) is not None

    def _id_of(self, user: str, place: Place, now_ms: int) -> str | None:
        name = str(place)
        chat_id = self.index.id_of(user, name)
        if chat_id is not None and self.names.name_of(user, chat_id) in (None, name):
            return chat_id
        if not isinstance(place, StateOwner):
            return None
        if self._registrar.former(user, name, now_ms) is not None:
            # The name answers for who had it, until it is used again: by a chat of a new character.
            character = place.character if isinstance(place, CharacterOwner) else ""
            if character not in self.index.characters_like(user, character):
                return None
        return self._files.new_id(user, name)

    def _joined(
        self, user: str, place: Place, chat_id: str, value: StoredChat | None, now_ms: int
    ) -> LoadedStream | ChatMissing:
        """What the store holds, with the log's commits behind it on top. Raises StoreDamaged."""
        name, key = str(place), owner_key(user, chat_id)
        saved = read_sessions(self._files, user, chat_id)
        base = None if value is None else Checkpointed(
            user=user, name=name, chat_id=chat_id, file=None, version=value.version, head=value.head
        )
        past = OwnerPast.read(self._hub.log, key, base, saved, now_ms, is_fixed=True)
        pending = past.pending()
        is_begun = past.newest is not None and past.newest.head.seq > 0
        if value is None and not pending and not is_begun and not isinstance(place, StateOwner):
            return ChatMissing(user=user, name=name, chat_id=chat_id, head=None, pending=0)
        before = Version(1, 0, file_integrity(1, 0, name, b""))
        head = value.head if value is not None else before
        _check_chain(name, head, past, value)
        messages = {} if value is None else value.messages
        version = before if value is None else value.version
        chat = Chat(version, b"{}" if value is None else value.metadata, messages, odd=_odd(messages))
        stream = Stream(user, name, chat_id, chat, past.head(head))
        for namespace, document in ({} if value is None else value.states).items():
            stream.states[namespace] = StateDocument(document.version, document.data, corrupt=document.corrupt)
        held = state_of(place, value, chat.version, head)
        if value is None:
            held.image = _blank_image(place, past, chat_id, now_ms)
        stream.read_floors()
        for commit in pending:
            stream.fold_effects(commit)
            if versions_chat(commit):
                chat.version = commit.version
            held.pending.add(commit.ops)
        stream.name, stream.deleted = name, False
        if value is not None and value.name != name:
            # Its character has another name, which no commit of it tells.
            held.pending.commits += 1
        stream.settle_floors()
        past.give(stream)
        stream.take_texts(past.running, {})
        return LoadedStream(
            stream=stream, file=held, anchored=past.in_log, records=[], adoption=None, saved=past.saved
        )

    def resolve(self, user: str, chat_id: str) -> str | None:
        return self.index.name_of(user, chat_id)

    def check_new(self, user: str, place: ChatName) -> None:
        sentence = self.taken(user, str(place))
        if sentence is not None:
            raise Refused("exists", sentence)

    def taken(self, user: str, name: str, own_id: str = "", own_character: str = "") -> str | None:
        """Why a name is not free, or None. What is the owner's own is in nobody's way. Raises StoreError."""
        twin = self.index.twin_of(user, name)
        twin_id = None if twin is None else self.index.id_of(user, twin)
        known = self.names.id_of(user, name)
        character = character_of(name)
        if character is not None:
            for other in self.index.characters_like(user, character):
                if other not in (character, own_character):
                    return "A character whose name differs only in case or Unicode form is there."
        if known is not None and self._is_gone(user, known):
            known = None
        if known not in (None, own_id) or (twin == name and twin_id != own_id and self._is_named(user, twin_id, name)):
            return "The name is taken."
        if twin is not None and twin_id != own_id and self._is_named(user, twin_id, twin):
            return "A name that differs only in case or Unicode form is taken."
        return None

    def _is_named(self, user: str, chat_id: str | None, name: str) -> bool:
        """Whether what the store tells of a name is still so."""
        return chat_id is not None and self.names.name_of(user, chat_id) in (None, name)

    def blank(self, user: str, name: str, chat_id: str, now_ms: int) -> LoadedStream:
        place = parse_place(name)
        assert not isinstance(place, str | StateOwner), "only chats are created"
        version = Version(1, 0, file_integrity(1, 0, name, b""))
        stream = Stream(user, name, chat_id, Chat(version), version)
        held = state_of(place, None, version, version)
        header = new_header(b"{}", chat_id, now_ms)
        held.image = msgspec.structs.replace(held.image, header=header, metadata_key="chat_metadata")
        record = NewRecord(ANCHOR, owner_key(user, chat_id), 0, held.anchor(stream, header))
        return LoadedStream(stream=stream, file=held, anchored=True, records=[record], adoption=None)

    # -- folding -----------------------------------------------------------------------------------------------------

    def take(self, stream: Stream, held: FileState, now_ms: int) -> SaveJob | None:
        assert isinstance(held, StoreState), "of an owner in a store"
        return SaveJob.take(stream, held, now_ms)

    async def fold(self, job: SaveJob, record_seq: Callable[[], int]) -> Saved:
        try:
            failpoint("vault.before_save")
            done = await in_thread(self.executor, lambda: self._save(job))
            failpoint("vault.after_save")
        except BaseException:
            job.give_back()
            raise
        value = job.value
        record = encode(base_of(job.user, value))
        self._hub.log.append(CHECKPOINT, owner_key(job.user, value.chat_id), record_seq(), record)
        self.index.put(job.user, ListedOwner(value.chat_id, value.name, value.head, value.summary))
        return done

    def _save(self, job: SaveJob) -> Saved:
        value = job.value
        image = with_metadata(job.held.image, value.metadata, value.chat_id, job.now_ms)
        listing = listing_of(image, value, job.now_ms)
        value.summary = msgspec.json.encode(listing)
        try:
            self._store.save(job.user, job.base, job.effects, value)
        except (StoreBehind, StoreDamaged) as error:
            # What it became is here, whole.
            log.warning("store-behind", chat=value.name, error=str(error))
            job.effects = None
            self._store.save(job.user, job.base, None, value)
        size_bytes = listing.size_bytes if job.effects is None else sum(map(_size, job.effects))
        return Saved(value, size_bytes, FileIdentity(listing.size_bytes, 0, job.now_ms * _MS_NS, 0), image)

    def backup_source(self, stream: Stream, held: FileState, now_ms: int) -> ValueSource:
        value = value_now(stream)
        return ValueSource(
            user=stream.user, place=held.place, chat_id=stream.chat_id, version=value.version, head=value.head,
            count=len(value.messages), inherited=held.image.inherited, value=value, image=held.image, now_ms=now_ms,
        )

    def is_changed(self, user: str, held: FileState) -> bool:
        del user, held
        return False

    def adopt(self, stream: Stream, held: FileState, now_ms: int) -> LoadedStream | ChatMissing:
        raise AssertionError("nobody else writes to a store")

    async def step(self) -> None:
        waits_s = [actor.dirty_since_s for actor in self._hub.actors if actor.dirty_since_s is not None]
        self.watch.step(min(waits_s, default=None))
        if not self._is_kept_told and self._store.health is not None:
            await in_thread(self.executor, self._tell_kept)

    def close(self) -> None:
        """Blocks until what runs is done."""
        self.executor.shutdown()
        self._store.close()


# -- the past against the store --------------------------------------------------------------------------------------


def _check_chain(name: str, head: Version, past: OwnerPast, value: StoredChat | None) -> None:
    """Raises StoreDamaged unless the log's commits continue what the store holds, up to what it once held."""
    at = head
    for commit in past.pending():
        if value is None and at.seq == 0 and commit.version.seq == 1:
            at = Version(commit.version.epoch, 0, commit.previous)
        if commit.version.seq != at.seq + 1 or commit.previous != at.integrity:
            raise StoreDamaged(
                f"the store holds {name} at {head.seq} ({head.integrity}), and the log goes on with "
                f"{commit.version.seq} behind {commit.previous}: what is between is in neither"
            )
        at = commit.version
    newest = past.newest
    if newest is not None and (newest.head.epoch, newest.head.seq) > (at.epoch, at.seq):
        raise StoreDamaged(
            f"{name} was saved at {newest.head.seq}, and store and log lead to {at.seq}: the store was set back"
        )


def _blank_image(place: Place, past: OwnerPast, chat_id: str, now_ms: int) -> Image:
    header = None
    if isinstance(past.newest, Anchor) and past.newest.header is not None:
        header = past.newest.header.encode()
    elif isinstance(place, CharacterChat):
        header = new_header(b"{}", chat_id, now_ms)
    image = state_of(place, None, Version(1, 0, ""), Version(1, 0, "")).image
    return image if header is None else msgspec.structs.replace(image, header=header, metadata_key="chat_metadata")


def _odd(messages: dict[str, bytes]) -> set[str]:
    """Messages with half a surrogate pair. They came from another program's file."""
    return {
        message_id for message_id, line in messages.items()
        if (b"\\ud" in line or b"\\uD" in line) and servable(line) != line
    }


def _size(effect: Effect) -> int:
    """Bytes that an effect brings."""
    size_bytes = 0
    for field in effect.__struct_fields__:
        value = getattr(effect, field)
        for one in value if isinstance(value, list) else (value,):
            size_bytes += len(bytes(one)) if isinstance(one, Raw) else 0
    return size_bytes
