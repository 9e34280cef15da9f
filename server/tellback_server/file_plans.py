"""File plans: life writes in users' folders: facts from `planning`, carried out by `operations`.

Rules of this module:
- It only chooses by the request; what a plan looks at and what an operation says is in `planning`.
"""

from __future__ import annotations

from collections.abc import Callable

from tellback_protocol.backups import BackupRestore
from tellback_protocol.ids import ChatName, GroupChat, Version
from tellback_protocol.life import Facts, branch_twig
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
from tellback_protocol.stream import Stream
from tellback_server import planning
from tellback_server.loaded import NewRecord
from tellback_server.operations import Operation, carry_out
from tellback_server.planning import Plan, chat_of, place_of
from tellback_server.records import CHECKPOINT, encode, owner_key
from tellback_server.registrar import Registrar
from tellback_server.restoring import RestorePlan, plan_backup_restore
from tellback_server.rooms import Around, RoomFor
from tellback_server.store.files import FileStore
from tellback_server.store.groups import GroupEdit, group_path
from tellback_server.store.held import FileState
from tellback_server.survey import taken

__all__ = ["FilePlans"]


class FilePlans:
    """See rooms.Plans."""

    def __init__(
        self, files: FileStore, registrar: Registrar, make_room: Callable[[str, ChatName], None]
    ) -> None:
        self._files = files
        self._registrar = registrar
        self._make_room = make_room

    def plan(self, stream: Stream, request: LifeWrite, around: Around, now_ms: int) -> Plan | RestorePlan:
        files, registrar, user, name = self._files, self._registrar, stream.user, stream.name
        match request:
            case ChatRename() | OwnerRename():
                return planning.plan_rename(
                    files, registrar, user, name, request, now_ms, chat_id=stream.chat_id, live=around.beside
                )
            case ChatDelete():
                known = registrar.of(user, stream.chat_id)
                former = [] if known is None else known.former
                return planning.plan_delete(files, user, name, stream, around.beside, former=former)
            case OwnerDelete():
                return planning.plan_delete(files, user, name, stream, {}, with_chats=request.chats)
            case ChatRestore() | OwnerRestore():
                return planning.plan_restore(
                    files, registrar, user, stream.chat_id, request, now_ms, live=around.beside
                )
            case ChatBranch():
                return planning.plan_branch(
                    files, registrar, user, name, request, around.live, around.chat_id, around.integrity, now_ms,
                    beside=around.beside,
                )
            case BackupRestore():
                return plan_backup_restore(
                    files, registrar, stream, request, now_ms, live=around.beside, chat_id=around.chat_id,
                    integrity=around.integrity,
                )
            case ChatCreate():
                return Plan(facts=Facts(refused=("exists", "The name is taken.")))

    def operation(
        self, plan: Plan | RestorePlan, stream: Stream, held: FileState | None, request: LifeWrite, version: Version,
        now_ms: int,
    ) -> Operation:
        registrar = self._registrar
        if isinstance(plan, RestorePlan):
            return plan.operation(self._files, registrar, stream, held, version, now_ms)
        if isinstance(request, ChatRestore | OwnerRestore):
            return planning.restore_operation(plan, registrar, stream, version, now_ms)
        assert held is not None, "a live chat has files"
        if isinstance(request, ChatRename | OwnerRename):
            return planning.rename_operation(plan, registrar, stream, held, version, now_ms)
        if isinstance(request, ChatDelete | OwnerDelete):
            return planning.delete_operation(plan, registrar, stream, held, version, now_ms)
        assert isinstance(request, ChatBranch), "the others are refused"
        twig = branch_twig(stream.chat, request, chat_of(stream.name).chat, plan.facts.chat_id)
        return planning.stage_branch(self._files, plan, stream, held, twig, version, now_ms)

    def carry_out(self, operation: Operation) -> None:
        carry_out(self._files, operation)

    def room_for(self, user: str, name: str, request: ChatCreate, around: Around, now_ms: int) -> RoomFor:
        files, place = self._files, chat_of(name)
        self._make_room(user, place)
        sentence = taken(files, user, place)
        refused = None if sentence is None else ("exists", sentence)
        if refused is None:
            # A new chat in its place would be what the link leads to, and empty.
            refused = planning.held_back(self._registrar, files, user, name, now_ms, live=around.beside)
        edits: list[GroupEdit] = []
        if isinstance(place, GroupChat):
            if isinstance(request.group, str):
                path = group_path(files, user, request.group)
                if path is None:
                    refused = refused or ("not-found", "There is no such group.")
                else:
                    edits.append(GroupEdit(path=path, action="add", chat=place.chat))
            return RoomFor(refused, edits, True)
        return RoomFor(refused, edits, any(
            files.fs.stat(files.checked_path(user, path)) is not None
            for path in (f"chats/{place.character}", f"characters/{place.character}.png")
        ))

    def renamed(self, held: FileState, stream: Stream, to: str, version: Version) -> NewRecord:
        held.place = place_of(to)
        held.head = version
        base = held.base(stream, version, to)
        return NewRecord(CHECKPOINT, owner_key(stream.user, stream.chat_id), version.seq, encode(base))
