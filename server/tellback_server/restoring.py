"""Restoring: a chat as a backup holds it: in place, out of the trash, or beside the chat as a new one.

    chosen = choose_backup(files, registrar, stream, request, ...)         in a thread; only reads
    plan = plan_backup_restore(...)                                       the same, for users' folders
    decide(..., plan.facts)
    operation = plan.operation(...)                                       writes what nobody sees yet

Rules of this module (BEHAVIOUR Z7, Z9, Z10):
- The bytes are those of the backup. Nothing is rendered anew: only chat_sync says what the files are now, and the
  header of a new chat has an `integrity` of its own.
- A backup is read whole and compared with its manifest before anything is decided.
- In place, state files that the backup does not hold go; of a piece, which does not know them, they stay.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Literal

import msgspec

from tellback_protocol.backups import BackupRestore
from tellback_protocol.chat import with_integrity
from tellback_protocol.ids import (
    SIDECAR_MARK,
    ChatName,
    GroupChat,
    Version,
    namespace_problem,
    new_name_problem,
    stem_of,
)
from tellback_protocol.life import Facts, sibling
from tellback_protocol.stream import Stream
from tellback_server.backup_folder import BackupDamaged, BackupFolder, Manifest
from tellback_server.fs import FileMark, FileStat
from tellback_server.namesakes import held_back
from tellback_server.operations import Move, Operation, Replaced, Written
from tellback_server.planning import chat_of, place_of, sync_file
from tellback_server.records import Checkpointed, FileIdentity, StateMark
from tellback_server.registrar import Registered, Registrar
from tellback_server.store.files import (
    CHAT_ENDING,
    STATE_ENDING,
    SYNC_NAMESPACE,
    FileStore,
    LoadedFile,
    SyncMark,
    Watermark,
)
from tellback_server.store.found import Content, foreign_content, parse_file
from tellback_server.store.groups import GroupEdit, inherited_metadata
from tellback_server.store.held import FileState
from tellback_server.store.jsonl import header_filled
from tellback_server.survey import Live, OwnerFiles, folder_of, owner_files, taken

__all__ = ["Chosen", "RestorePlan", "choose_backup", "plan_backup_restore"]

Kind = Literal["in-place", "out-of-trash", "beside"]


class Chosen(msgspec.Struct, kw_only=True):
    """A backup that is whole, and what it would be restored as."""

    kind: Kind
    name: str
    manifest: Manifest
    contents: dict[str, LoadedFile]
    """By how the files' names go on, as they stand beside a chat."""
    chat: Content

    @property
    def states(self) -> dict[str, bytes]:
        """By namespace."""
        return {
            namespace: loaded.data for ending, loaded in self.contents.items()
            if (namespace := _namespace(ending)) is not None
        }

    def facts(self, stream: Stream, refused: tuple[str, str] | None, chat_id: str, integrity: str) -> Facts:
        """For the decision; `chat_id` and `integrity` are those of a new chat."""
        is_new = self.kind == "beside"
        if not is_new:
            integrity = self.chat.integrity(stream.head.epoch + 1, stream.head.seq + 1, self.name)
        return Facts(
            to=self.name, refused=refused, chat_id=chat_id if is_new else "", integrity=integrity,
            backup=self.manifest.backup,
        )


class RestorePlan(msgspec.Struct, kw_only=True):
    """See rooms.Plan."""

    facts: Facts
    kind: Kind = "in-place"
    manifest: Manifest | None = None
    contents: dict[str, LoadedFile] = {}
    chat: Content | None = None
    own: OwnerFiles | None = None
    """What is there now."""

    @property
    def is_moved(self) -> bool:
        return False

    def chats_out(self) -> list[str]:
        return []

    def refused(self, reason: tuple[str, str]) -> RestorePlan:
        """The same, but it cannot be done."""
        return msgspec.structs.replace(self, facts=msgspec.structs.replace(self.facts, refused=reason))

    # -- afterwards --------------------------------------------------------------------------------------------------

    def operation(
        self, files: FileStore, registrar: Registrar, stream: Stream, held: FileState | None, version: Version,
        now_ms: int,
    ) -> Operation:
        """What carries the commit at `version` out. Blocks: the files are written under temporary names."""
        match self.kind:
            case "in-place":
                assert held is not None, "a live chat has files"
                return self._in_place(files, stream, held, version, now_ms)
            case "out-of-trash":
                return self._out_of_trash(files, registrar, stream, version, now_ms)
            case "beside":
                return self._beside(files, stream, version, now_ms)

    def _in_place(
        self, files: FileStore, stream: Stream, held: FileState, version: Version, now_ms: int
    ) -> Operation:
        own, manifest, user = self.own, self.manifest, stream.user
        assert own is not None, "a live chat has files"
        assert manifest is not None, "it was found"
        restored = Version(version.epoch + 1, version.seq, self.facts.integrity)
        staged = self._staged(files, user, stream.name)
        stem = stem_of(own.place)
        replaced = [
            Replaced(temporary, f"{own.folder}/{stem}{ending}", stat.inode, _mark(own.files.get(stem + ending)))
            for ending, (temporary, stat) in staged.items()
        ]
        if not manifest.is_piece:
            replaced += [
                Replaced("", f"{own.folder}/{name}", 0, _mark(stat)) for name, stat in own.files.items()
                if name[len(stem) :] not in staged
            ]
        base = self._base(stream, stream.name, restored, staged)
        if manifest.is_piece:
            # What it does not know stays as it is, with the versions that it has.
            base.states = {**held.states, **base.states}
        return Operation(
            what="backup-restore", user=user, chat_id=stream.chat_id, name=stream.name, integrity=version.integrity,
            seq=version.seq, replaced=replaced,
            written=[self._sync(own, base, now_ms)],
            bases=[base],
        )

    def _out_of_trash(
        self, files: FileStore, registrar: Registrar, stream: Stream, version: Version, now_ms: int
    ) -> Operation:
        user, to = stream.user, self.facts.to
        registered = registrar.of(user, stream.chat_id)
        assert registered is not None, "a deletion is registered"
        assert registered.gone is not None, "a deletion is registered"
        place, old = chat_of(to), chat_of(registered.name)
        folder = folder_of(place)
        files.make_folder(user, place)
        restored = Version(version.epoch + 1, version.seq, self.facts.integrity)
        staged = self._staged(files, user, to)
        base = self._base(stream, to, restored, staged)
        return Operation(
            what="restore", user=user, chat_id=stream.chat_id, name=registered.name, integrity=version.integrity,
            seq=version.seq, folders=[folder], moves=self._moves(folder, place.chat, staged),
            written=[self._sync(owner_files(files, user, place), base, now_ms)],
            groups=[
                GroupEdit(
                    path=path, action="add", chat=place.chat, was="" if to == registered.name else old.chat
                ) for path in registered.gone.groups if isinstance(place, GroupChat)
            ] + [
                GroupEdit(path=path, action="select", chat=place.chat, was=shown)
                for path, shown in registered.gone.shown.items()
            ],
            registered=[Registered(
                user=user, chat_id=stream.chat_id, name=to, former=registered.former_as(to, now_ms)
            )],
            bases=[base],
        )

    def _beside(self, files: FileStore, stream: Stream, version: Version, now_ms: int) -> Operation:
        own, user, to = self.own, stream.user, self.facts.to
        assert own is not None, "a live chat has files"
        place = chat_of(to)
        born = Version(1, 1, self.facts.integrity)
        staged = self._staged(files, user, to)
        base = self._base(stream, to, born, staged)
        base.chat_id = self.facts.chat_id
        sync = self._sync(owner_files(files, user, place), base, now_ms)
        temporary = files.fs.temporary_path(files.checked_path(user, sync.path))
        stat = files.fs.write_atomically(temporary, sync.data.encode("utf-8", "surrogatepass"))
        moves = self._moves(own.folder, place.chat, staged)
        # The chat last, so that nobody finds it before its state and its name.
        moves.insert(0, Move(f"{own.folder}/{temporary.rpartition('/')[2]}", sync.path, stat.inode))
        return Operation(
            what="branch", user=user, chat_id=stream.chat_id, name=stream.name, integrity=version.integrity,
            seq=version.seq, moves=moves,
            groups=[GroupEdit(path=path, action="add", chat=place.chat) for path in own.groups],
        )

    def _staged(self, files: FileStore, user: str, name: str) -> dict[str, tuple[str, FileStat]]:
        """Every file under a temporary name beside its own, synced and verified; the chat's own last."""
        place = chat_of(name)
        staged: dict[str, tuple[str, FileStat]] = {}
        for ending, loaded in sorted(self.contents.items(), key=lambda item: item[0] == CHAT_ENDING):
            target = files.checked_path(user, f"{folder_of(place)}/{place.chat}{ending}")
            temporary = files.fs.temporary_path(target)
            stat = files.fs.write_atomically(temporary, loaded.data, keep_mode_of=files.fs.stat(target))
            staged[ending] = f"{folder_of(place)}/{temporary.rpartition('/')[2]}", stat
        return staged

    def _moves(self, folder: str, chat: str, staged: dict[str, tuple[str, FileStat]]) -> list[Move]:
        return [
            Move(temporary, f"{folder}/{chat}{ending}", stat.inode) for ending, (temporary, stat) in staged.items()
        ]

    def _base(
        self, stream: Stream, name: str, version: Version, staged: dict[str, tuple[str, FileStat]]
    ) -> Checkpointed:
        """What the files hold when all is done."""
        assert self.chat is not None, "it was read"
        identity = self.contents[CHAT_ENDING].identity
        stat = staged[CHAT_ENDING][1]
        return Checkpointed(
            user=stream.user, name=name, chat_id=stream.chat_id,
            file=FileIdentity(identity.size_bytes, identity.crc32, stat.mtime_ns, stat.inode),
            version=version, head=version,
            states={
                namespace: StateMark(version, loaded.identity.size_bytes, loaded.identity.crc32)
                for ending, loaded in self.contents.items() if (namespace := _namespace(ending)) is not None
            },
            inherited=self.chat.parsed.image.inherited,
        )

    def _sync(self, own: OwnerFiles, base: Checkpointed, now_ms: int) -> Written:
        assert base.file is not None, "a chat has a file"
        assert self.chat is not None, "it was read"
        watermark = Watermark(base.file.size_bytes, len(self.chat.parsed.messages), base.file.crc32)
        mark = SyncMark(base.chat_id, base.name, base.version, base.head, watermark, base.states)
        fields = None if own.sync is None else own.sync.fields
        return sync_file(f"{own.folder}/{own.sync_name}", fields, mark, now_ms)


def choose_backup(
    files: FileStore, registrar: Registrar, stream: Stream, request: BackupRestore, now_ms: int, *,
    chat_id: str, inherited: Callable[[Manifest, str], bytes | None],
) -> Chosen | Facts:
    """The backup that is asked for, or why it cannot be restored. `chat_id` is that of a new chat, `inherited` are
    metadata of a group chat without a header. Blocks. Raises OSError.
    """
    user, backups = stream.user, BackupFolder(files)
    kind: Kind = "out-of-trash" if stream.deleted else "beside" if isinstance(request.to, str) else "in-place"
    registered = registrar.of(user, stream.chat_id)
    name = stream.name

    def refused(code: str, sentence: str) -> Facts:
        return Facts(to=stream.name, refused=(code, sentence))

    if stream.deleted:
        if registered is None or registered.gone is None:
            return refused("not-found", "Nothing is known of the deletion.")
        name = registrar.name_today(user, registered.name, now_ms)
    if isinstance(request.to, str):
        if new_name_problem(request.to) is not None:
            return Facts(to=stream.name)
        name = sibling(name, request.to)
    manifest = backups.find(user, stream.chat_id, request.backup)
    if manifest is None:
        return refused("backup-unknown", f"The chat has no backup {request.backup[:64]!r}.")
    try:
        contents = _beside_a_chat(manifest, backups.load(user, manifest))
    except BackupDamaged as error:
        return refused("backup-damaged", f"{error}.")
    if CHAT_ENDING not in contents:
        return refused("backup-damaged", "It holds no chat, only states.")
    place = chat_of(name)
    if kind == "beside":
        contents = {**contents, CHAT_ENDING: _as_new(place, contents[CHAT_ENDING], chat_id)}
    chat = foreign_content(place, contents[CHAT_ENDING], lambda: inherited(manifest, place.chat))
    return Chosen(kind=kind, name=name, manifest=manifest, contents=contents, chat=chat)


def plan_backup_restore(
    files: FileStore, registrar: Registrar, stream: Stream, request: BackupRestore, now_ms: int, *, live: Live,
    chat_id: str, integrity: str,
) -> RestorePlan:
    """What can be done; `chat_id` and `integrity` are those of a new chat. Blocks. Raises OSError."""
    user = stream.user
    chosen = choose_backup(
        files, registrar, stream, request, now_ms, chat_id=chat_id,
        inherited=lambda _manifest, chat: inherited_metadata(files, user, chat),
    )
    if isinstance(chosen, Facts):
        return RestorePlan(facts=chosen)
    refused: tuple[str, str] | None = None
    if chosen.kind != "in-place":
        sentence = taken(files, user, chat_of(chosen.name))
        held = held_back(
            registrar, files, user, chosen.name, now_ms, own_id=stream.chat_id if stream.deleted else "", live=live
        )
        refused = ("exists", sentence) if sentence is not None else None if held is None else ("exists", held[1])
    own = None if stream.deleted else owner_files(files, user, place_of(stream.name))
    return RestorePlan(
        facts=chosen.facts(stream, refused, chat_id, integrity), kind=chosen.kind, manifest=chosen.manifest,
        contents=chosen.contents, chat=chosen.chat, own=own,
    )


def _as_new(place: ChatName, loaded: LoadedFile, chat_id: str) -> LoadedFile:
    """The file with an `integrity` of its own where its header has one; every other line keeps its bytes."""
    image = parse_file(place, loaded.data).image
    metadata = with_integrity(image.metadata, chat_id)
    if image.header is None or image.metadata_key is None or metadata == image.metadata:
        return loaded
    start = len(image.lead)
    end = start + len(image.header)
    assert loaded.data[start:end] == image.header, "an image tells where its header stands"
    data = image.lead + header_filled(image.header, metadata) + loaded.data[end:]
    identity = FileIdentity(len(data), zlib.crc32(data), 0, 0)
    return LoadedFile(data, identity, loaded.stat)


def _beside_a_chat(manifest: Manifest, contents: dict[str, LoadedFile]) -> dict[str, LoadedFile]:
    """The files as they stand beside a chat: the states of a piece are named by their namespace alone."""
    if not manifest.is_piece:
        return contents
    found: dict[str, LoadedFile] = {}
    for ending, loaded in contents.items():
        namespace = ending.removeprefix(".").removesuffix(STATE_ENDING)
        if ending == CHAT_ENDING:
            found[ending] = loaded
        elif ending.endswith(STATE_ENDING) and namespace_problem(namespace) is None:
            found[f"{SIDECAR_MARK}{namespace}{STATE_ENDING}"] = loaded
    return found


def _namespace(ending: str) -> str | None:
    """The namespace of a state file of a chat that the server reads."""
    if not (ending.startswith(SIDECAR_MARK) and ending.endswith(STATE_ENDING)):
        return None
    namespace = ending[len(SIDECAR_MARK) : -len(STATE_ENDING)]
    return None if namespace == SYNC_NAMESPACE or namespace_problem(namespace) is not None else namespace


def _mark(stat: FileStat | None) -> FileMark | None:
    return None if stat is None else FileMark(stat.size_bytes, stat.mtime_ns, stat.inode)
