"""Store plans: life writes of owners in a store: facts from its index, carried out by staged owners and few calls.

    rename    the commit alone renames; chats that nobody has open go with their character by a call each
    delete    staged, written to the trash of the data folder, then removed from the store
    restore   staged out of the trash, saved, then removed from there
    branch    the new chat is staged and saved
    backup    what it holds is staged and saved whole, at the first version of its epoch

Rules of this module (STORAGE "A store in the place of files"):
- What a life write does is staged in the data folder before it is logged: carried out again after a crash it needs
  nothing else, and every step may be done twice.
- In the trash stands an owner as files for people, and whole as the store had it; the latter is what comes back.
- There are no cards, no groups and no presets of other programs: a character is there as long as it owns something.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import Raw

from tellback_protocol.backups import BackupRestore
from tellback_protocol.chat import Chat
from tellback_protocol.effects import RenamedEffect
from tellback_protocol.floors import branched
from tellback_protocol.ids import (
    CharacterOwner,
    GroupChat,
    Version,
    new_name_problem,
    stem_of,
)
from tellback_protocol.life import Facts, branch_twig, sibling
from tellback_protocol.links import holds, spellings
from tellback_protocol.requests import (
    ChatBranch,
    ChatCreate,
    ChatDelete,
    ChatRename,
    ChatRestore,
    LifeWrite,
    OwnerDelete,
    OwnerRename,
    OwnerRestore,
)
from tellback_protocol.stream import StateDocument, Stream
from tellback_protocol.values import loads
from tellback_server.failpoint import failpoint
from tellback_server.loaded import LoadedStream, NewRecord
from tellback_server.namesakes import held_back
from tellback_server.operations import Operation, StoredChange
from tellback_server.planning import chat_of, name_branch, place_of
from tellback_server.records import ANCHOR, Checkpointed, encode, owner_key
from tellback_server.registrar import FormerName, Gone, GoneChat, Registered, Registrar, write_registered
from tellback_server.restoring import Chosen, choose_backup
from tellback_server.rooms import Around, RoomFor
from tellback_server.store.base import ListedOwner, Store, StoredChat
from tellback_server.store.filed import as_files
from tellback_server.store.files import FileStore
from tellback_server.store.held import FileState
from tellback_server.store.store_state import StoreState, decode_listing, listing_of, value_now
from tellback_server.store_restoring import backup_operation, base_of
from tellback_server.store_trash import StoreTrash
from tellback_server.trash import Entry

if TYPE_CHECKING:
    from tellback_server.vault import Vault

__all__ = ["StorePlans"]

class StorePlan(msgspec.Struct, kw_only=True):
    """See rooms.Plan."""

    facts: Facts
    is_moved: bool = False
    entry: Entry | None = None
    out: list[StoredChat] = []
    """What comes out of the trash, under its old names."""
    chats: dict[str, str] = {}
    """Chats that go with their character: names by id."""
    links: list[str] = []
    linked_as: list[str] = []
    backup: Chosen | None = None
    """What is restored."""

    def chats_out(self) -> list[str]:
        return [value.name for value in self.out[1:]]

    def refused(self, reason: tuple[str, str]) -> StorePlan:
        return msgspec.structs.replace(self, facts=msgspec.structs.replace(self.facts, refused=reason))


class StorePlans:
    """See rooms.Plans."""

    def __init__(self, files: FileStore, store: Store, vault: Vault, registrar: Registrar) -> None:
        self._files = files
        self._store = store
        self._vault = vault
        self._index = vault.index
        self._staged = vault.staged
        self._registrar = registrar
        self._trash = StoreTrash(files, self._staged)

    # -- facts -------------------------------------------------------------------------------------------------------

    def plan(self, stream: Stream, request: LifeWrite, around: Around, now_ms: int) -> StorePlan:
        match request:
            case ChatRename() | OwnerRename():
                return self._plan_rename(stream, request.to, around, now_ms)
            case ChatDelete():
                known = self._registrar.of(stream.user, stream.chat_id)
                names = {stem_of(place_of(stream.name)), *_former_stems(known)}
                return StorePlan(facts=Facts(linked_from=self._links(stream.user, stream.name, names, around)))
            case OwnerDelete():
                chats = self._chats_of(stream.user, stream.name) if request.chats else {}
                return StorePlan(facts=Facts(), chats=chats)
            case ChatRestore() | OwnerRestore():
                return self._plan_restore(stream, request, around, now_ms)
            case ChatBranch():
                return self._plan_branch(stream, request, around, now_ms)
            case BackupRestore():
                return self._plan_backup_restore(stream, request, around, now_ms)
            case ChatCreate():
                return StorePlan(facts=Facts(refused=("exists", "The name is taken.")))

    def _refused(
        self, stream: Stream, target: str, around: Around, now_ms: int, own_id: str
    ) -> tuple[str, str] | None:
        place = place_of(stream.name)
        own = place.character if isinstance(place, CharacterOwner) else ""
        sentence = self._vault.taken(stream.user, target, own_id, own)
        if sentence is None and own and own_id:
            character = place_of(target)
            assert isinstance(character, CharacterOwner), "beside a character stand characters"
            if any(other != own for other in self._index.characters_like(stream.user, character.character)):
                sentence = "Chats of another character stand under that name."
        if sentence is not None:
            return "exists", sentence
        held = held_back(
            self._registrar, self._files, stream.user, target, now_ms, own_id=own_id, live=around.beside
        )
        return None if held is None else ("exists", held[1])

    def _plan_rename(self, stream: Stream, to: str, around: Around, now_ms: int) -> StorePlan:
        user, name = stream.user, stream.name
        if new_name_problem(to) is not None:
            return StorePlan(facts=Facts(), is_moved=True)
        target = sibling(name, to)
        refused = self._refused(stream, target, around, now_ms, stream.chat_id)
        plan = StorePlan(facts=Facts(to=target, refused=refused), is_moved=True)
        if refused is None and isinstance(place_of(name), CharacterOwner):
            plan.chats = self._chats_of(user, name)
        elif refused is None:
            names = {stem_of(place_of(name)), *_former_stems(self._registrar.of(user, stream.chat_id))}
            plan.links = self._links(user, name, names, around)
            plan.linked_as = sorted(names - {to})
        return plan

    def _plan_restore(
        self, stream: Stream, request: ChatRestore | OwnerRestore, around: Around, now_ms: int
    ) -> StorePlan:
        user, chat_id = stream.user, stream.chat_id
        registered = self._registrar.of(user, chat_id)
        if registered is None or registered.gone is None:
            return StorePlan(facts=Facts())
        name = self._registrar.name_today(user, registered.name, now_ms)
        if isinstance(request, ChatRestore) and isinstance(request.to, str):
            if new_name_problem(request.to) is not None:
                return StorePlan(facts=Facts())
            name = sibling(name, request.to)
        entry = self._trash.find(user, chat_id)
        out = [] if entry is None else self._trash.owners_of(user, entry, chat_id)
        if entry is None or not out:
            return StorePlan(facts=Facts(to=name, refused=("not-found", "The trash does not hold it any more.")))
        plan = StorePlan(facts=Facts(to=name), entry=entry, out=out)
        refused, place = self._refused(stream, name, around, now_ms, chat_id), place_of(name)
        for value in out[1:]:
            if refused is None and self._vault.taken(user, value.name, value.chat_id) is not None:
                refused = "exists", f"{value.name} stands where a chat would come back to."
        if registered.name != name:
            plan.links = registered.gone.linked_from
            plan.linked_as = sorted({stem_of(place_of(registered.name)), *_former_stems(registered)} - {stem_of(place)})
        return msgspec.structs.replace(plan, facts=Facts(to=name, refused=refused))

    def _plan_branch(self, stream: Stream, request: ChatBranch, around: Around, now_ms: int) -> StorePlan:
        named = name_branch(
            self._registrar, stream.user, stream.name, request, around.live, now_ms,
            lambda to: self._refused(stream, to, around, now_ms, ""),
        )
        if named is None:
            return StorePlan(facts=Facts())
        return StorePlan(facts=Facts(
            to=named[0], refused=named[1], chat_id=around.chat_id, integrity=around.integrity
        ))

    def _plan_backup_restore(
        self, stream: Stream, request: BackupRestore, around: Around, now_ms: int
    ) -> StorePlan:
        chosen = choose_backup(
            self._files, self._registrar, stream, request, now_ms, chat_id=around.chat_id,
            inherited=lambda one, _chat: bytes(one.inherited) if isinstance(one.inherited, Raw) else None,
        )
        if isinstance(chosen, Facts):
            return StorePlan(facts=chosen)
        refused: tuple[str, str] | None = None
        if chosen.chat.parsed.damage:
            refused = "backup-damaged", "Its file has lines that are no messages; a store has no place for them."
        elif chosen.kind != "in-place":
            own_id = stream.chat_id if stream.deleted else ""
            refused = self._refused(stream, chosen.name, around, now_ms, own_id)
        return StorePlan(facts=chosen.facts(stream, refused, around.chat_id, around.integrity), backup=chosen)

    def room_for(self, user: str, name: str, request: ChatCreate, around: Around, now_ms: int) -> RoomFor:
        place = chat_of(name)
        sentence = self._vault.taken(user, name)
        refused = None if sentence is None else ("exists", sentence)
        if refused is None:
            refused = held_back(self._registrar, self._files, user, name, now_ms, live=around.beside)
        if isinstance(place, GroupChat):
            if isinstance(request.group, str):
                refused = refused or ("not-found", "There is no such group: a store holds none.")
            return RoomFor(refused, [], True)
        return RoomFor(refused, [], place.character in self._index.characters_like(user, place.character))

    def _chats_of(self, user: str, character: str) -> dict[str, str]:
        """Chats of a character by id: as the store tells it, and as the log knows it better."""
        start = f"{character}/"
        _changes, owners = self._index.owners(user)
        found = {one.chat_id: one.name for one in owners.values() if one.name.startswith(start)}
        known = self._vault.names
        found = {chat_id: name for chat_id, name in found.items() if known.name_of(user, chat_id) in (None, name)}
        return {**found, **known.below(user, start)}

    def _links(self, user: str, name: str, names: set[str], around: Around) -> list[str]:
        """Chats that link to this one by one of `names`: those branched from it, and the one it was branched from.

        Cost: the index, and that chat.
        """
        _changes, owners = self._index.owners(user)
        parents = {
            one.name: decode_listing(one.summary).main_chat for one in owners.values()
            if one.name.rpartition("/")[0] == name.rpartition("/")[0]
        }
        for other, (metadata, _lines) in around.beside.items():
            parents[other] = loads(metadata).get("main_chat")
        own = parents.pop(name, None)
        found = [other for other, main_chat in parents.items() if main_chat in names]
        parent = sibling(name, own) if isinstance(own, str) and own else ""
        if parent in parents and parent not in found:
            lines = around.beside[parent][1] if parent in around.beside else None
            if lines is None:
                chat_id = self._index.id_of(user, parent)
                value = None if chat_id is None else self._vault.read(user, chat_id)
                lines = [] if value is None else list(value.messages.values())
            if holds(lines, spellings(names)):
                found.append(parent)
        return found

    # -- operations --------------------------------------------------------------------------------------------------

    def operation(
        self, plan: StorePlan, stream: Stream, held: FileState | None, request: LifeWrite, version: Version, now_ms: int
    ) -> Operation:
        if isinstance(request, ChatRestore | OwnerRestore):
            return self._restore_operation(plan, stream, version, now_ms)
        if isinstance(request, BackupRestore):
            assert plan.backup is not None, "it was found"
            return backup_operation(
                plan.backup, plan.facts, self._registrar, self._staged, stream, version, now_ms
            )
        assert isinstance(held, StoreState), "a live owner in a store"
        if isinstance(request, ChatRename | OwnerRename):
            return self._rename_operation(plan, stream, held, version, now_ms)
        if isinstance(request, ChatDelete | OwnerDelete):
            return self._delete_operation(plan, stream, held, version, now_ms)
        assert isinstance(request, ChatBranch), "the others are refused"
        return self._branch_operation(plan, stream, held, request, version, now_ms)

    def _rename_operation(
        self, plan: StorePlan, stream: Stream, held: StoreState, version: Version, now_ms: int
    ) -> Operation:
        user, to = stream.user, plan.facts.to
        known = self._registrar.of(user, stream.chat_id)
        former = [] if known is None else [one for one in known.former if one.name not in (to, stream.name)]
        renames = [(chat_id, f"{to}/{name.partition('/')[2]}") for chat_id, name in plan.chats.items()]
        return Operation(
            what="rename", user=user, chat_id=stream.chat_id, name=stream.name, integrity=version.integrity,
            seq=version.seq,
            registered=[Registered(
                user=user, chat_id=stream.chat_id, name=to, former=[*former, FormerName(stream.name, now_ms)],
                links=plan.links, linked_as=plan.linked_as if plan.links else [],
            )],
            anchors=[held.anchored(stream, to)],
            stored=StoredChange(renames=renames),
        )

    def _delete_operation(
        self, plan: StorePlan, stream: Stream, held: StoreState, version: Version, now_ms: int
    ) -> Operation:
        user = stream.user
        values = [value_of(stream, held, now_ms)]
        for chat_id, name in plan.chats.items():
            loaded = self._vault.load(user, place_of(name), chat_id, now_ms)
            if isinstance(loaded, LoadedStream):
                assert isinstance(loaded.file, StoreState), "a vault's"
                values.append(value_of(loaded.stream, loaded.file, now_ms))
        known = self._registrar.of(user, stream.chat_id)
        base = Checkpointed(
            user=user, name=stream.name, chat_id=stream.chat_id, file=None, version=stream.chat.version, head=version
        )
        gone = Gone(
            deleted_ms=now_ms, base=base, linked_from=plan.facts.linked_from, with_chats=len(values) > 1,
            chats=[GoneChat(value.name, value.chat_id, value.version, value.head) for value in values[1:]],
        )
        return Operation(
            what="delete", user=user, chat_id=stream.chat_id, name=stream.name, integrity=version.integrity,
            seq=version.seq,
            trash=Entry(
                id=stream.chat_id, name=stream.name, deleted_ms=now_ms, reason="deleted",
                files=[path for value in values for path in as_files(value, now_ms)], head=version,
            ),
            registered=[Registered(
                user=user, chat_id=stream.chat_id, name=stream.name, former=[] if known is None else known.former,
                gone=gone,
            )],
            stored=StoredChange(
                staged=[self._staged.put(user, version.integrity, value) for value in values],
                # A chat that goes with its character says so itself, by a commit behind this.
                removed=[(value.chat_id, _after(value.head)) for value in values],
            ),
        )

    def _restore_operation(self, plan: StorePlan, stream: Stream, version: Version, now_ms: int) -> Operation:
        user, to, entry = stream.user, plan.facts.to, plan.entry
        registered = self._registrar.of(user, stream.chat_id)
        assert entry is not None, "it was found"
        assert registered is not None, "a deletion is registered"
        own, *chats = plan.out
        values = [msgspec.structs.replace(own, name=to, head=version)]
        values += chats
        return Operation(
            what="restore", user=user, chat_id=stream.chat_id, name=registered.name, integrity=version.integrity,
            seq=version.seq, trash=entry, bases=[base_of(user, value) for value in values],
            registered=[Registered(
                user=user, chat_id=stream.chat_id, name=to, former=registered.former_as(to, now_ms),
                links=plan.links, linked_as=plan.linked_as if plan.links else [],
            )],
            stored=StoredChange(staged=[self._staged.put(user, version.integrity, value) for value in values]),
        )

    def _branch_operation(
        self, plan: StorePlan, stream: Stream, held: StoreState, request: ChatBranch, version: Version, now_ms: int
    ) -> Operation:
        user, facts = stream.user, plan.facts
        born = Version(1, 1, facts.integrity)
        twig = branch_twig(stream.chat, request, chat_of(stream.name).chat, facts.chat_id)
        states = branched(stream.floors, Chat(born, twig.metadata, twig.messages, bare=twig.bare))
        for namespace, document in stream.states.items():
            # What the server keeps for itself about the source is not about the new chat.
            if namespace in states or namespace.startswith("tellback_"):
                continue
            if (data := document.data) is not None:
                states[namespace] = data
        value = StoredChat(
            chat_id=facts.chat_id, name=facts.to, head=born, version=born, metadata=twig.metadata,
            messages=twig.messages, states={name: StateDocument(born, data) for name, data in states.items()},
        )
        value.summary = msgspec.json.encode(listing_of(held.image, value, now_ms))
        return Operation(
            what="branch", user=user, chat_id=stream.chat_id, name=stream.name, integrity=version.integrity,
            seq=version.seq, stored=StoredChange(staged=[self._staged.put(user, version.integrity, value)]),
        )

    # -- carrying out ------------------------------------------------------------------------------------------------

    def carry_out(self, operation: Operation) -> None:
        """See Plans. Raises OSError, StoreError: what was done stays, and the same call goes on from there."""
        user, change = operation.user, operation.stored or StoredChange()
        with self._files.operation(f"life-{operation.what}", self._files.user_root(user), name=operation.name):
            failpoint("operation.begin")
            if operation.what == "delete":
                assert operation.trash is not None, "a deletion has an entry"
                self._trash.put(user, operation.trash, change.staged)
                failpoint("operation.after_trash")
            elif operation.what in ("restore", "branch", "backup-restore"):
                for name in change.staged:
                    self._save_staged(user, name)
                    failpoint("operation.after_written")
            for registered in operation.registered:
                write_registered(self._files, registered)
                failpoint("operation.after_names")
            for chat_id, version in change.removed:
                self._store.delete(user, chat_id, version)
                self._staged.forget(user, chat_id)
                self._index.drop(user, chat_id)
                failpoint("operation.after_unlink")
            for chat_id, to in change.renames:
                self._store.rename(user, chat_id, to)
                self._rename_kept(user, chat_id, to)
                self._index.rename(user, chat_id, to)
                failpoint("operation.after_link")
            if operation.what == "rename":
                self._index.rename(user, operation.chat_id, operation.registered[0].name)
            if operation.what == "restore" and operation.trash is not None:
                self._trash.remove(user, operation.trash)
                failpoint("operation.after_unlinked")
            for name in change.staged:
                self._staged.remove(user, name)
            failpoint("operation.end")

    def _save_staged(self, user: str, name: str) -> None:
        value = self._staged.get(user, name)
        if value is None:
            # It is the last thing that goes.
            return
        if self._vault.keeps_log:
            self._staged.keep(user, value)
        self._store.save(user, None, None, value)
        self._index.put(user, ListedOwner(value.chat_id, value.name, value.head, value.summary))

    def _rename_kept(self, user: str, chat_id: str, to: str) -> None:
        kept = self._staged.kept(user, chat_id)
        if kept is not None and kept.name != to:
            self._staged.keep(user, msgspec.structs.replace(kept, name=to))

    def renamed(self, held: FileState, stream: Stream, to: str, version: Version) -> NewRecord:
        assert isinstance(held, StoreState), "of an owner in a store"
        held.place = place_of(to)
        held.pending.add([RenamedEffect(to)])
        record = held.anchored(stream, to)
        return NewRecord(ANCHOR, owner_key(stream.user, stream.chat_id), version.seq, encode(record))


def value_of(stream: Stream, held: StoreState, now_ms: int) -> StoredChat:
    """A live owner that stands still, whole."""
    value = value_now(stream)
    value.summary = msgspec.json.encode(listing_of(held.image, value, now_ms))
    return value


def _former_stems(registered: Registered | None) -> set[str]:
    return set() if registered is None else {stem_of(place_of(one.name)) for one in registered.former}


def _after(head: Version) -> Version:
    """A version that nothing which was saved before is behind."""
    return Version(head.epoch, head.seq + 1, head.integrity)
