"""Moving: all owners of a data folder out of users' folders into a store, or out of a store into users' folders, with
versions, ids, log, outcomes and trash. Nobody serves the folder; everything was folded before.

    moving = Moving(files, log, store, clock)
    moving.check_files(), moving.check_store()      what is in the way, as sentences; nothing was changed
    moving.into_store(), moving.into_files()        each owner; again goes on
    moving.put_aside()                              files of owners that are in the store now

Rules of this module (STORAGE SV12):
- An owner is durable at its new place before the log says so, and the log says so before the old place is left.
- What was never written here comes without a record, as a server on the other kind of place would find it.
- Nothing is put over anything, and nothing is removed: a store is left as it is, files are put aside. Only what a run
  that was cut off brought to the new store, and what is otherwise by now, goes from there.
- In the trash an owner stands in both forms.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Callable, Iterator, Mapping

import msgspec
from msgspec import UNSET, Raw, UnsetType

from tellback_protocol.chat import EMPTY_METADATA
from tellback_protocol.frames import Damage
from tellback_protocol.ids import (
    FILE_NAME_BYTES_MAX,
    ChatName,
    Place,
    StateOwner,
    Version,
    file_integrity,
    parse_place,
    sidecar_name,
    stem_of,
)
from tellback_server.claims import compared, known_past
from tellback_server.clock import Clock
from tellback_server.failpoint import failpoint
from tellback_server.flush_snapshot import Snapshot
from tellback_server.fs import FileMissing
from tellback_server.loaded import LoadedStream
from tellback_server.loading import load_chat
from tellback_server.log import Log
from tellback_server.names import Names
from tellback_server.owner_past import OwnerPast
from tellback_server.records import (
    CHECKPOINT,
    BaseRecord,
    Checkpointed,
    FileIdentity,
    StateMark,
    decode_base,
    encode,
    owner_key,
)
from tellback_server.registrar import Registrar, write_registered
from tellback_server.sessions import read_sessions, write_sessions
from tellback_server.staged import owner_bytes, owner_from
from tellback_server.store.base import ListedOwner, Store, StoredChat
from tellback_server.store.chat_index import ChatIndex
from tellback_server.store.filed import chat_as_found, from_files, own_files, parse_chat_of
from tellback_server.store.files import CHAT_ENDING, FileStore, SyncMark, Watermark
from tellback_server.store.found import ROTTEN, find_content
from tellback_server.store.jsonl import Image, ParsedChat
from tellback_server.store.marks import LoadedFile
from tellback_server.store.place import OWNER_FOLDERS, state_of
from tellback_server.store.store_state import decode_listing, image_of, listing_of
from tellback_server.store_restoring import base_of
from tellback_server.survey import folder_of, owner_files
from tellback_server.trash import OWNERS, Entry, Trash, chats_of

__all__ = ["Moving"]

Report = Callable[[str], None]
_MS_NS = 1_000_000


def _image(place: Place, value: StoredChat) -> Image:
    return image_of(place, decode_listing(value.summary), value.metadata)


def _inherited(place: Place, value: StoredChat) -> Raw | UnsetType:
    """Metadata that the owner's file does not hold, for base records."""
    image = _image(place, value)
    return UNSET if isinstance(place, StateOwner) or image.metadata != value.metadata else image.inherited


class _Gone(msgspec.Struct, frozen=True):
    """An owner in the trash, as far as its files do not tell it."""

    place: Place
    chat_id: str
    version: Version | None
    """None when nobody wrote to it."""
    head: Version | None
    states: Mapping[str, StateMark]
    base: BaseRecord | None
    """What its files were when it was deleted; None when that is not known."""
    inherited: bytes = EMPTY_METADATA
    """Metadata of a group chat without a header line."""
    contradiction: str = ""
    """How its chat_sync and the log differ (X13)."""
    goes_on: bool = False
    """It was deleted by itself: its stream goes on from the deletion, and what was changed since is in no version."""


def _judged(place: ChatName, gone: _Gone, loaded: LoadedFile) -> tuple[list[Damage], Version | None]:
    """Why a chat's file in the trash is not what was deleted, and the version of what another program made of it."""
    if gone.base is None or gone.base.file is None:
        return [], None
    found = find_content(place, loaded, OwnerPast(gone.base, None), lambda: None)
    if found.rotten is not None:
        return [Damage(0, ROTTEN)], None
    if not found.is_edited:
        return [], None
    if gone.goes_on:
        return [Damage(0, "the file was changed in the trash")], None
    epoch, seq = gone.base.head.epoch + 1, gone.base.head.seq
    return [], Version(epoch, seq, found.integrity(epoch, seq, str(place)))


def _is_rotten(found: FileIdentity, known: FileIdentity) -> bool:
    is_ours = known.same_bytes(found.size_bytes, found.crc32)
    return not is_ours and known.is_untouched(found.size_bytes, found.mtime_ns, found.inode)


class Moving:
    """See the module. Every method blocks and raises OSError, StoreError."""

    def __init__(
        self, files: FileStore, log: Log, names: Mapping[tuple[str, str], str], store: Store, clock: Clock,
        report: Report,
    ) -> None:
        """`names` are those that the log tells, by user and id (`Leftovers`)."""
        self._files = files
        self._fs = files.fs
        self._log = log
        self._store = store
        self._now_ms = clock.now_ms()
        self._clock = clock
        self._report = report
        self._registrar = Registrar(files)
        self._trash = Trash(files)
        self._names = Names()
        for (user, owner_id), name in names.items():
            self._names.named(user, owner_id, name)
        self._left: list[tuple[str, Place]] = []
        """Owners whose files the store holds now."""

    def _load_names(self, users: list[str]) -> None:
        self._registrar.load(users, self._now_ms)
        for known in self._registrar.entries:
            if known.gone is None:
                self._names.named(known.user, known.chat_id, known.name)

    def _record(self, base: Checkpointed) -> None:
        """The log and the session file say where the owner is; nothing of one that nobody ever wrote to."""
        key = owner_key(base.user, base.chat_id)
        if base.head.seq or self._log.last_of(key):
            self._log.append(CHECKPOINT, key, base.head.seq, encode(base))
        saved = read_sessions(self._files, base.user, base.chat_id)
        if saved is not None and saved.base.head == base.head:
            write_sessions(self._files, msgspec.structs.replace(saved, base=base))

    # -- out of a store ----------------------------------------------------------------------------------------------

    def _stored(self) -> Iterator[tuple[str, Place, StoredChat]]:
        for user in self._store.users():
            for one in self._store.list(user):
                value, place = self._store.load(user, one.chat_id), parse_place(one.name)
                if value is not None and not isinstance(place, str):
                    yield user, place, value

    def check_store(self) -> Iterator[str]:
        """Cost: every owner."""
        users = list(self._store.users())
        self._load_names(users)
        for user in users:
            yield from self._left_over(user)
        for user, place, value in self._stored():
            for path, data in self._as_files(place, value).items():
                if len(path.rpartition("/")[2].encode("utf-8", "surrogatepass")) > FILE_NAME_BYTES_MAX:
                    yield f"{path} is too long for a file's name"
                    continue
                full = self._files.checked_path(user, path)
                if self._fs.stat(full) is not None and self._fs.read(full) != data:
                    yield f"{full} stands there and is another one"

    def _left_over(self, user: str) -> Iterator[str]:
        """Files of ours, of a run that was cut off, whose chats have no such name any more."""
        names = {one.chat_id: one.name for one in self._store.list(user)}
        for place in self._files.names(user):
            sync = self._files.read_sync(user, place)
            mark = None if sync is None else sync.mark
            if mark is None or mark.name != str(place) or names.get(mark.chat_id) == mark.name:
                continue
            registered, path = self._registrar.of(user, mark.chat_id), self._files.owner_path(user, place)
            if mark.chat_id in names:
                yield f"{path} is of a chat that is {names[mark.chat_id]} now; move the file away"
            elif registered is not None and registered.gone is not None:
                yield f"{path} is of a chat that was deleted; move the file away"

    def into_files(self) -> None:
        """Every owner of the store."""
        users = list(self._store.users())
        self._load_names(users)
        for user, place, value in self._stored():
            self._record(self._filed(user, place, value))
            failpoint("moving.after_owner")
            self._report(value.name)
        for user in users:
            for entry in self._trash.entries(user):
                self._trash_into_files(user, entry)

    def _as_files(self, place: Place, value: StoredChat) -> dict[str, bytes]:
        """Paths below the user's root, the chat's own file last."""
        listing = decode_listing(value.summary)
        # What a header tells of now must be the same in the next run, which compares.
        own = own_files(value, _image(place, value), listing.changed_ms)
        if not value.head.seq and CHAT_ENDING in own:
            own[CHAT_ENDING] = chat_as_found(value, listing.changed_ms)
        start = f"{folder_of(place)}/{stem_of(place)}"
        return {f"{start}{ending}": own[ending] for ending in sorted(own, key=lambda one: one == CHAT_ENDING)}

    def _filed(self, user: str, place: Place, value: StoredChat) -> Checkpointed:
        changed_ns = decode_listing(value.summary).changed_ms * _MS_NS
        identities: dict[str, FileIdentity] = {}
        for path, data in self._as_files(place, value).items():
            full = os.path.join(self._files.user_root(user), path)
            self._fs.make_directories(os.path.dirname(full))
            if self._fs.stat(full) is None:
                self._files.publish_new(full, data)
                self._fs.set_mtime(full, changed_ns)
            stat = self._fs.stat(full)
            assert stat is not None, "just written"
            identities[path] = FileIdentity(len(data), zlib.crc32(data), stat.mtime_ns, stat.inode)
        own = f"{folder_of(place)}/{stem_of(place)}{CHAT_ENDING}"
        base = base_of(user, value)
        base.file = identities.get(own)
        base.inherited = _inherited(place, value)
        for namespace, document in value.states.items():
            found = identities.get(f"{folder_of(place)}/{sidecar_name(place, namespace)}")
            if found is not None and document.version is not None:
                base.states[namespace] = StateMark(
                    document.version, found.size_bytes, found.crc32, found.mtime_ns, found.inode
                )
        if value.head.seq:
            found, lines = base.file, len(value.messages)
            watermark = Watermark(0, 0, 0) if found is None else Watermark(found.size_bytes, lines, found.crc32)
            mark = SyncMark(value.chat_id, value.name, value.version, value.head, watermark, base.states)
            self._files.write_sync(user, place, mark, self._now_ms)
        return base

    def _trash_into_files(self, user: str, entry: Entry) -> None:
        """What a restore out of files asks of the deletion: which bytes it had."""
        registered = self._registrar.of(user, entry.id)
        if registered is None or registered.gone is None or registered.gone.base.file is not None:
            return
        base = msgspec.structs.replace(registered.gone.base)
        for name, path in chats_of(entry):
            if name == entry.name:
                with contextlib.suppress(FileMissing):
                    data = self._fs.read(self._files.checked_path(user, f"trash/{entry.folder}/{path}"))
                    base.file = FileIdentity(len(data), zlib.crc32(data), 0, 0)
        place = parse_place(entry.name)
        for value in self._owners_in(user, entry):
            if value.chat_id == entry.id and not isinstance(place, str):
                base.inherited = _inherited(place, value)
                base.states = {
                    namespace: StateMark(one.version, len(state), zlib.crc32(state))
                    for namespace, one in value.states.items()
                    if (state := one.data) is not None and one.version is not None
                }
        gone = msgspec.structs.replace(registered.gone, base=base)
        write_registered(self._files, msgspec.structs.replace(registered, gone=gone))

    def _owners_in(self, user: str, entry: Entry) -> list[StoredChat]:
        folder = self._files.checked_path(user, f"trash/{entry.folder}/{OWNERS}")
        with contextlib.suppress(FileMissing):
            paths = [os.path.join(folder, name) for name in self._fs.listdir(folder)]
            return [owner_from(self._fs.read(path), path) for path in paths if not path.endswith(".tellback-tmp")]
        return []

    # -- out of users' folders ---------------------------------------------------------------------------------------

    def _found(self) -> Iterator[tuple[str, Place, LoadedStream]]:
        for user in self._files.known_users():
            places: dict[Place, None] = {}
            for name in ChatIndex(self._files, user, self._clock).look().chats:
                place = parse_place(name)
                assert not isinstance(place, str), "a listed chat has a name"
                places[place] = None
            for folder in OWNER_FOLDERS:
                with contextlib.suppress(FileMissing):
                    root = os.path.dirname(self._files.checked_path(user, f"{folder}/x"))
                    for file in self._fs.listdir(root):
                        owned = state_of((folder,), file)
                        if owned is not None and self._files.stat_owner(user, owned[0]) is not None:
                            places[owned[0]] = None
            for place in places:
                chat_id = self._names.id_of(user, str(place))
                if self._is_moved(user, place, chat_id):
                    self._left.append((user, place))
                    continue
                loaded = load_chat(self._files, self._log, user, place, now_ms=self._now_ms, chat_id=chat_id)
                if isinstance(loaded, LoadedStream):
                    yield user, place, loaded

    def _is_moved(self, user: str, place: Place, named: str | None) -> bool:
        """An earlier run brought it to the store and told the log so. `named` is the id that the log's names tell."""
        sync = self._files.read_sync(user, place)
        mark = None if sync is None else sync.mark
        chat_id = named if mark is None else mark.chat_id
        value = None if chat_id is None else self._store.load(user, chat_id)
        if value is None or value.name != str(place) or (mark is not None and mark.head != value.head):
            return False
        return self._is_told(user, value.chat_id, value.head) and self._is_same(user, place, mark, value)

    def _is_same(self, user: str, place: Place, mark: SyncMark | None, value: StoredChat) -> bool:
        """The files are what the owner in the store was made from: nobody wrote to them since."""
        states = self._files.read_states(user, place)
        chat = None if isinstance(place, StateOwner) else self._files.read(self._files.owner_path(user, place))
        if mark is not None:
            known = {namespace: (one.size_bytes, one.crc32) for namespace, one in mark.states.items()}
            return known == {
                namespace: (one.identity.size_bytes, one.identity.crc32) for namespace, one in states.items()
            } and (chat is None or chat.identity.same_bytes(mark.watermark.bytes, mark.watermark.crc32))
        # No chat_sync tells their bytes.
        parsed: ParsedChat | None = None
        if chat is not None and not isinstance(place, StateOwner):
            parsed = parse_chat_of(place, chat.data, value.metadata)
        data = {namespace: one.data for namespace, one in states.items()}
        found = from_files(place, parsed, data, chat_id=value.chat_id, version=value.version, now_ms=self._now_ms)
        held = {namespace: one.data for namespace, one in value.states.items() if one.data is not None}
        return (found.messages, found.metadata, data) == (value.messages, value.metadata, held)

    def _is_told(self, user: str, chat_id: str, head: Version) -> bool:
        """The log says that an owner stands at this head, and names no file of it."""
        newest: Checkpointed | None = None
        for _position, record in self._log.records(owner_key(user, chat_id), head.seq - 1):
            if record.kind == CHECKPOINT:
                found = decode_base(record.body)
                newest = found if isinstance(found, Checkpointed) else newest
        return newest is not None and newest.file is None and not newest.states and newest.head == head

    def check_files(self) -> Iterator[str]:
        """Cost: every owner."""
        self._load_names(self._files.known_users())
        for _user, _place, loaded in self._found():
            if loaded.stream.damage:
                yield f"{loaded.stream.name} is damaged: `tellback repair` first"
            elif loaded.file.pending:
                yield f"the log knows more than the files of {loaded.stream.name}"
            for namespace, document in loaded.stream.states.items():
                if document.corrupt:
                    remedy = "`tellback repair` first, or move its file away"
                    yield f"the state {namespace} of {loaded.stream.name} is damaged: {remedy}"
        for user in self._files.known_users():
            for entry in self._trash.entries(user):
                for value, damage in self._trashed(user, entry):
                    if damage:
                        remedy = "`tellback trash restore` and repair it, or `tellback trash empty` for good"
                        yield f"{value.name} is damaged in the trash ({entry.folder}): {remedy}"

    def into_store(self) -> None:
        """Every owner of the users' folders."""
        self._load_names(self._files.known_users())
        bases: list[Checkpointed] = []
        self._left.clear()
        self._keep_only(lambda user, one: self._is_told(user, one.chat_id, one.head))
        for user, place, loaded in self._found():
            stream, held = loaded.stream, loaded.file
            value = Snapshot.take(stream, held).finish(self._now_ms)
            changed_ms = self._now_ms if held.identity is None else held.identity.mtime_ns // _MS_NS
            value.summary = msgspec.json.encode(listing_of(held.image, value, changed_ms))
            self._store.save(user, None, None, value)
            bases.append(base_of(user, value))
            self._left.append((user, place))
            failpoint("moving.after_owner")
            self._report(value.name)
        left = {(user, str(place)) for user, place in self._left}
        self._keep_only(lambda user, one: (user, one.name) in left)
        for user in self._files.known_users():
            for entry in self._trash.entries(user):
                self._trash_into_store(user, entry)
        # Last, and at once: from here on the files are not what the log tells of.
        for base in bases:
            self._record(base)

    def _keep_only(self, is_kept: Callable[[str, ListedOwner], bool]) -> None:
        """Of what a run that was cut off brought to the store. Files that it was made from may be others by now."""
        for user in list(self._store.users()):
            for one in list(self._store.list(user)):
                if not is_kept(user, one):
                    self._store.delete(user, one.chat_id, one.head)

    def _trash_into_store(self, user: str, entry: Entry) -> None:
        folder = self._trash.path(user, entry, OWNERS)
        for value, _damage in self._trashed(user, entry):
            self._fs.make_directories(folder)
            self._fs.write_atomically(os.path.join(folder, value.chat_id), owner_bytes(value))
            failpoint("moving.after_trashed")

    def _trashed(self, user: str, entry: Entry) -> Iterator[tuple[StoredChat, list[Damage]]]:
        """Owners of an entry that has them as files alone, and what of theirs a store has no place for."""
        for gone in self._gone(user, entry):
            found = self._read_gone(user, entry, gone)
            if found is not None:
                yield found

    def _gone(self, user: str, entry: Entry) -> Iterator[_Gone]:
        registered = self._registrar.of(user, entry.id)
        if registered is None or registered.gone is None:
            return
        standing = {value.chat_id for value in self._owners_in(user, entry)}
        known = {one.name: one for one in registered.gone.chats if one.chat_id not in standing}
        for name, path in chats_of(entry):
            place, one = parse_place(name), known.get(name)
            if not isinstance(place, str) and name != entry.name and one is not None:
                mark = self._trash.mark(user, entry, path)
                if mark is None or mark.chat_id != one.chat_id:
                    yield _Gone(place, one.chat_id, one.version, one.head, {}, None)
                    continue
                past = known_past(self._files, self._log, user, place, one.chat_id, mark, self._now_ms)
                claim = compared(self._log, user, mark, past)
                yield _Gone(
                    place, one.chat_id, one.version, one.head, mark.states, past.base, contradiction=claim.contradiction
                )
        place, base = parse_place(entry.name), registered.gone.base
        if not isinstance(place, str) and entry.id not in standing:
            inherited = bytes(base.inherited) if isinstance(base.inherited, Raw) else EMPTY_METADATA
            yield _Gone(place, entry.id, base.version, base.head, base.states, base, inherited, goes_on=True)

    def _read_gone(self, user: str, entry: Entry, gone: _Gone) -> tuple[StoredChat, list[Damage]] | None:
        """None when the chat's own file is not there."""
        place, name = gone.place, str(gone.place)
        states, data = dict[str, bytes](), b""
        parsed: ParsedChat | None = None
        edited: Version | None = None
        damage = [Damage(0, gone.contradiction)] if gone.contradiction else []
        for path in entry.files:
            folder, _slash, file = path.rpartition("/")
            owned = state_of(tuple(folder.split("/")), file)
            with contextlib.suppress(FileMissing):
                if owned is not None and owned[0] == place:
                    loaded = self._files.read(self._trash.path(user, entry, path))
                    states[owned[1]] = loaded.data
                    known = gone.states.get(owned[1])
                    if known is not None and _is_rotten(loaded.identity, known.identity):
                        damage.append(Damage(0, ROTTEN))
                elif not isinstance(place, StateOwner) and path == f"{folder_of(place)}/{stem_of(place)}{CHAT_ENDING}":
                    loaded = self._files.read(self._trash.path(user, entry, path))
                    data = loaded.data
                    parsed = parse_chat_of(place, data)
                    wrong, edited = _judged(place, gone, loaded)
                    damage += [*wrong, *parsed.damage]
        if parsed is None and not isinstance(place, StateOwner):
            return None
        if parsed is not None and parsed.image.header is None and gone.inherited != EMPTY_METADATA:
            # Its group's file tells them no more: they go into a header.
            parsed = msgspec.structs.replace(parsed, metadata=gone.inherited)
        version = edited or gone.version or Version(1, 0, file_integrity(1, 0, name, data))

        def state_version(namespace: str, content: bytes) -> Version:
            mark = gone.states.get(namespace)
            if mark is not None and (mark.size_bytes, mark.crc32) == (len(content), zlib.crc32(content)):
                return mark.version
            return gone.version or Version(1, 0, file_integrity(1, 0, f"{name}#{namespace}", content))

        value = from_files(
            place, parsed, states, chat_id=gone.chat_id, version=version, now_ms=entry.deleted_ms,
            state_version=state_version,
        )
        value.head = edited or gone.head or version
        return value, damage

    def put_aside(self) -> str:
        """Files of owners that stand in the store now; where they are, below each user's folder."""
        aside = f"backups/tellback/moved/{self._now_ms}"
        for user, place in self._left:
            own = owner_files(self._files, user, place)
            for name in [*own.files, *([] if own.sync_stat is None else [own.sync_name])]:
                if isinstance(place, StateOwner) and state_of((own.folder,), name) is None:
                    # The card or preset itself is no business of the store.
                    continue
                source = self._files.checked_path(user, f"{own.folder}/{name}")
                target = os.path.join(self._files.user_root(user), aside, own.folder, name)
                self._fs.make_directories(os.path.dirname(target))
                with contextlib.suppress(FileMissing):
                    self._fs.rename(source, target)
        return aside
