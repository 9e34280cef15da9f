"""Planning: the facts that a life write is decided by, and the operation that carries its commit out.

    plan = plan_rename(files, registrar, ...)      in a thread, before the decision: only reads
    decide(..., plan.facts)
    operation = plan.operation(...)                afterwards, when the version is known

Rules of this module (BEHAVIOUR J):
- What cannot be done is a fact, not an exception: `decide` alone refuses.
- A plan names every file with its inode; carrying it out moves those and no others.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Literal

import msgspec

from tellback_protocol.chat import Chat
from tellback_protocol.floors import branched
from tellback_protocol.ids import (
    SIDECAR_MARK,
    CharacterChat,
    CharacterOwner,
    ChatName,
    GroupChat,
    Place,
    StateOwner,
    Version,
    new_name_problem,
    parse_place,
    sidecar_name,
    stem_of,
)
from tellback_protocol.life import Facts, Twig, branch_stem, branched_name, sibling
from tellback_protocol.links import holds, spellings
from tellback_protocol.requests import ChatBranch, ChatRename, ChatRestore, OwnerRename, OwnerRestore
from tellback_protocol.stream import Stream
from tellback_protocol.values import dumps, loads
from tellback_server.namesakes import NOBODY, held_back, names_of
from tellback_server.operations import Move, Operation, Written
from tellback_server.records import StateMark
from tellback_server.registrar import FormerName, Gone, GoneChat, Registered, Registrar
from tellback_server.store.files import CHAT_ENDING, STATE_ENDING, SYNC_NAMESPACE, FileStore, SyncMark, Watermark
from tellback_server.store.groups import GroupEdit, shown_instead
from tellback_server.store.held import FileState
from tellback_server.store.jsonl import render
from tellback_server.store.marks import mark_fields
from tellback_server.store.place import CARD_ENDING
from tellback_server.survey import Live, OwnerFiles, all_files, folder_of, linked_from, owner_files, taken
from tellback_server.trash import Entry, Trash

__all__ = [
    "Plan", "chat_of", "chats_out", "delete_operation", "held_back", "name_branch", "place_of", "plan_branch",
    "plan_delete", "plan_rename", "plan_restore", "rename_operation", "restore_operation", "stage_branch", "sync_file",
]

NUMBERS_MAX = 100_000
"""Branches of one chat that are counted before giving up."""


class Plan(msgspec.Struct, kw_only=True):
    """What was found out, for the decision and for what follows it."""

    facts: Facts
    own: OwnerFiles | None = None
    entry: Entry | None = None
    """What comes out of the trash."""
    with_chats: bool = False
    chats: list[str] = []
    """Files of a character's chats that go with it, below the user's root."""
    gone_chats: list[GoneChat] = []
    """Those chats."""
    shown: dict[str, str] = {}
    """Groups that show the chat, and what they show without it."""
    chats_inode: int | None = None
    """The folder of a character's chats, when there is one."""
    sync_fields: dict[str, object] = {}
    lines: int = 0
    links: list[str] = []
    """Chats that link to the one that gets another name."""
    linked_as: list[str] = []
    """By which names."""

    @property
    def is_moved(self) -> bool:
        """An owner that is there gets another name."""
        return self.own is not None

    def chats_out(self) -> list[str]:
        """See the function."""
        return chats_out(self)

    def refused(self, reason: tuple[str, str]) -> Plan:
        """The same, but it cannot be done."""
        return msgspec.structs.replace(self, facts=Facts(to=self.facts.to, refused=reason))


def place_of(name: str) -> Place:
    """The place that a stored name means."""
    place = parse_place(name)
    assert not isinstance(place, str), "a stored name is an address"
    return place


def chat_of(name: str) -> ChatName:
    """As `place_of`, for a chat."""
    place = place_of(name)
    assert not isinstance(place, StateOwner), "a chat's name"
    return place


def _refused(
    files: FileStore, registrar: Registrar, user: str, target: str, now_ms: int, own: OwnerFiles | None,
    own_id: str, live: Live,
) -> tuple[str, str] | None:
    sentence = taken(files, user, place_of(target), own)
    if sentence is not None:
        return "exists", sentence
    held = held_back(registrar, files, user, target, now_ms, own_id=own_id, live=live)
    return None if held is None else ("exists", held[1])


# -- rename ----------------------------------------------------------------------------------------------------------


def plan_rename(
    files: FileStore, registrar: Registrar, user: str, name: str, request: ChatRename | OwnerRename, now_ms: int,
    *, chat_id: str = "", live: Live = NOBODY,
) -> Plan:
    place = place_of(name)
    own = owner_files(files, user, place)
    if new_name_problem(request.to) is not None:
        return Plan(facts=Facts(), own=own)
    target = sibling(name, request.to)
    facts = Facts(to=target, refused=_refused(files, registrar, user, target, now_ms, own, chat_id, live))
    links: list[str] = []
    linked_as: set[str] = set()
    if facts.refused is None and not isinstance(place, StateOwner):
        known = registrar.of(user, chat_id)
        linked_as = names_of(files, user, name, [] if known is None else known.former, live) - {request.to}
        links = linked_from(files, user, place, linked_as, live)
        if name in live and holds(live[name][1], spellings(linked_as)):
            # SillyTavern's checkpoints hold the message that links to them.
            links.append(target)
    inode: int | None = None
    if isinstance(own.place, CharacterOwner):
        stat = files.fs.stat(files.checked_path(user, f"chats/{own.place.character}"))
        inode = None if stat is None or not stat.is_directory else stat.inode
    return Plan(facts=facts, own=own, chats_inode=inode, links=links, linked_as=sorted(linked_as))


def rename_operation(
    plan: Plan, registrar: Registrar, stream: Stream, held: FileState, version: Version, now_ms: int
) -> Operation:
    own, user, to = plan.own, stream.user, plan.facts.to
    assert own is not None, "a rename has a chat"
    name = stem_of(place_of(to))
    known = registrar.of(user, stream.chat_id)
    former = [] if known is None else [former for former in known.former if former.name not in (to, stream.name)]
    written, unlinked = _synced(own, name, stream, held, version, to, now_ms)
    moves = [
        Move(f"{own.folder}/{file}", f"{own.folder}/{own.renamed(file, name)}", stat.inode)
        for file, stat in own.files.items()
    ]
    return Operation(
        what="rename", user=user, chat_id=stream.chat_id, name=stream.name, integrity=version.integrity,
        seq=version.seq,
        moves=moves,
        folder_moves=_chats_of(plan, to),
        written=written,
        unlinked=unlinked,
        groups=_group_edits(own, "replace", name),
        registered=[Registered(
            user=user, chat_id=stream.chat_id, name=to, former=[*former, FormerName(stream.name, now_ms)],
            links=plan.links, linked_as=plan.linked_as if plan.links else [],
        )],
        bases=[held.base(stream, version, to)],
    )


def _chats_of(plan: Plan, to: str) -> list[Move]:
    """The folder of a character's chats under its new name."""
    own, place = plan.own, place_of(to)
    if own is None or not isinstance(own.place, CharacterOwner) or plan.chats_inode is None:
        return []
    return [Move(f"chats/{own.place.character}", f"chats/{stem_of(place)}", plan.chats_inode)]


def _group_edits(own: OwnerFiles, action: Literal["replace", "remove"], to: str = "") -> list[GroupEdit]:
    if isinstance(own.place, CharacterOwner):
        # A group keeps a member that was deleted, as SillyTavern does; a renamed one goes along.
        if action == "remove":
            return []
        return [
            GroupEdit(path=path, action=action, chat=own.place.character + CARD_ENDING, to=to + CARD_ENDING,
                      among="members")
            for path in own.groups
        ]
    return [GroupEdit(path=path, action=action, chat=stem_of(own.place), to=to) for path in own.groups]


def _synced(
    own: OwnerFiles, chat: str, stream: Stream, held: FileState, version: Version, to: str, now_ms: int
) -> tuple[list[Written], list[Move]]:
    """chat_sync under the new name, and what goes of the old one."""
    watermark = Watermark(0, 0, 0)
    if held.identity is not None:
        watermark = Watermark(held.identity.size_bytes, held.lines, held.identity.crc32)
    mark = SyncMark(stream.chat_id, to, held.version, version, watermark, dict(held.states))
    fields = None if own.sync is None else own.sync.fields
    written = sync_file(f"{own.folder}/{own.renamed(own.sync_name, chat)}", fields, mark, now_ms)
    unlinked = [] if own.sync_stat is None else [Move(f"{own.folder}/{own.sync_name}", "", own.sync_stat.inode)]
    return [written], unlinked


def sync_file(path: str, fields: dict[str, object] | None, mark: SyncMark, now_ms: int) -> Written:
    of_chat = not isinstance(place_of(mark.name), StateOwner)
    content = {
        **(fields or {}), "integrity": (mark.version if of_chat else mark.head).integrity, "updated_at": now_ms,
        "tellback": mark_fields(mark),
    }
    return Written(path, dumps(content).decode("utf-8", "surrogatepass"))


# -- delete and restore ----------------------------------------------------------------------------------------------


def plan_delete(
    files: FileStore, user: str, name: str, stream: Stream, live: Mapping[str, tuple[bytes, list[bytes]]],
    *, with_chats: bool = False, former: list[FormerName] | None = None,
) -> Plan:
    """`former` are the names that a chat had."""
    place = place_of(name)
    own = owner_files(files, user, place)
    if isinstance(place, CharacterOwner) and with_chats:
        chats = all_files(files, user, f"chats/{place.character}")
        gone = [
            _gone_chat(files, user, CharacterChat(place.character, path.rpartition("/")[2].removesuffix(CHAT_ENDING)))
            for path in chats if path.endswith(CHAT_ENDING)
        ]
        return Plan(facts=Facts(), own=own, with_chats=True, chats=chats, gone_chats=gone)
    if isinstance(place, StateOwner):
        return Plan(facts=Facts(), own=own)
    shown = shown_instead(files, user, own.groups, stem_of(place)) if isinstance(place, GroupChat) else {}
    links = linked_from(files, user, place, names_of(files, user, name, former or [], live), live)
    return Plan(facts=Facts(linked_from=links), own=own, shown=shown)


def _gone_chat(files: FileStore, user: str, place: CharacterChat) -> GoneChat:
    sync, chat_id = files.read_sync(user, place), files.chat_id_of(user, place)
    mark = None if sync is None or sync.mark is None or sync.mark.chat_id != chat_id else sync.mark
    version, head = (None, None) if mark is None else (mark.version, mark.head)
    return GoneChat(str(place), chat_id, version, head)


def delete_operation(
    plan: Plan, registrar: Registrar, stream: Stream, held: FileState, version: Version, now_ms: int
) -> Operation:
    own, user = plan.own, stream.user
    assert own is not None, "a deletion has a chat"
    known = registrar.of(user, stream.chat_id)
    names = [*own.files, *([own.sync_name] if own.sync_stat is not None else [])]
    paths = [f"{own.folder}/{name}" for name in names] + plan.chats
    gone = Gone(
        deleted_ms=now_ms, base=held.base(stream, version, stream.name), linked_from=plan.facts.linked_from,
        groups=own.groups, shown=plan.shown, with_chats=plan.with_chats, chats=plan.gone_chats,
    )
    return Operation(
        what="delete", user=user, chat_id=stream.chat_id, name=stream.name, integrity=version.integrity,
        seq=version.seq,
        trash=Entry(
            id=stream.chat_id, name=stream.name, deleted_ms=now_ms, reason="deleted",
            files=paths, head=version,
        ),
        groups=_group_edits(own, "remove"),
        emptied=[f"chats/{stem_of(own.place)}"] if plan.with_chats else [],
        registered=[Registered(
            user=user, chat_id=stream.chat_id, name=stream.name, former=[] if known is None else known.former,
            gone=gone,
        )],
    )


def plan_restore(
    files: FileStore, registrar: Registrar, user: str, chat_id: str, request: ChatRestore | OwnerRestore, now_ms: int,
    *, live: Live = NOBODY,
) -> Plan:
    registered = registrar.of(user, chat_id)
    if registered is None or registered.gone is None:
        return Plan(facts=Facts())
    name = registrar.name_today(user, registered.name, now_ms)
    if isinstance(request, ChatRestore) and isinstance(request.to, str):
        if new_name_problem(request.to) is not None:
            return Plan(facts=Facts())
        name = sibling(name, request.to)
    trash = Trash(files)
    entry = trash.find(user, chat_id)
    if entry is None:
        return Plan(facts=Facts(to=name, refused=("not-found", "The trash does not hold it any more.")))
    fields: dict[str, object] = {}
    lines = 0
    for path in entry.files:
        if path.endswith(f".{SYNC_NAMESPACE}.json"):
            try:
                found = loads(files.fs.read(trash.path(user, entry, path)))
                lines = int(found["tellback"]["watermark"]["lines"])
                fields = found
            except (OSError, ValueError, KeyError, TypeError):
                continue
    refused = None
    place = place_of(name)
    sentence = taken(files, user, place)
    if isinstance(place, CharacterOwner) and sentence is not None and files.stat_owner(user, place) is None:
        # Its chats were not deleted with it; they are its own.
        own = owner_files(files, user, place)
        sentence = None if not own.files and own.sync_stat is None else sentence
    plan = Plan(
        facts=Facts(to=name), entry=entry, sync_fields=fields, lines=lines, with_chats=registered.gone.with_chats
    )
    if not isinstance(place, StateOwner):
        had = names_of(files, user, registered.name, registered.former, live)
        plan.linked_as = sorted(had - {place.chat})
    for chat in chats_out(plan):
        if sentence is None and taken(files, user, place_of(chat)) is not None:
            sentence = f"{chat} stands where a chat would come back to."
    if sentence is not None:
        refused = "exists", sentence
    else:
        held = held_back(registrar, files, user, name, now_ms, own_id=chat_id, live=live)
        refused = None if held is None else ("exists", held[1])
    return msgspec.structs.replace(plan, facts=Facts(to=name, refused=refused))


def chats_out(plan: Plan) -> list[str]:
    """Names of the chats that come back with their character."""
    if plan.entry is None or not plan.with_chats:
        return []
    found: list[str] = []
    for path in plan.entry.files:
        folder, _slash, file = path.removeprefix("chats/").rpartition("/")
        if path.startswith("chats/") and file.endswith(CHAT_ENDING):
            found.append(str(CharacterChat(folder, file.removesuffix(CHAT_ENDING))))
    return found


def restore_operation(plan: Plan, registrar: Registrar, stream: Stream, version: Version, now_ms: int) -> Operation:
    user, to, entry = stream.user, plan.facts.to, plan.entry
    registered = registrar.of(user, stream.chat_id)
    assert entry is not None, "it was found"
    assert registered is not None, "a deletion is registered"
    assert registered.gone is not None, "a deletion is registered"
    old, place = place_of(registered.name), place_of(to)
    folder = folder_of(place)
    out: dict[str, str] = {}
    for path in entry.files:
        within, _slash, name = path.rpartition("/")
        if within == folder_of(old) and name.startswith(stem_of(old)):
            out[path] = f"{folder}/{stem_of(place)}{name[len(stem_of(old)):]}"
    base = registered.gone.base
    base = msgspec.structs.replace(base, name=to, head=version)
    watermark = Watermark(0, 0, 0)
    if base.file is not None:
        watermark = Watermark(base.file.size_bytes, plan.lines, base.file.crc32)
    mark = SyncMark(stream.chat_id, to, base.version, version, watermark, base.states)
    path = f"{folder}/{sidecar_name(place, SYNC_NAMESPACE)}"
    written = [sync_file(path, plan.sync_fields, mark, now_ms)]
    has_other_name = to != registered.name and not isinstance(place, StateOwner)
    # Whether it links to itself is not known before it is read.
    links = [*registered.gone.linked_from, to] if has_other_name else []
    linked_as = plan.linked_as if links else []
    return Operation(
        what="restore", user=user, chat_id=stream.chat_id, name=registered.name, integrity=version.integrity,
        seq=version.seq, folders=[folder], trash=entry, out=out, written=written,
        groups=[
            GroupEdit(
                path=path, action="add", chat=stem_of(place), was="" if to == registered.name else stem_of(old)
            ) for path in registered.gone.groups
            if isinstance(place, GroupChat)
        ] + [
            # Unless another one was chosen meanwhile.
            GroupEdit(path=path, action="select", chat=stem_of(place), was=shown)
            for path, shown in registered.gone.shown.items()
        ],
        registered=[Registered(
            user=user, chat_id=stream.chat_id, name=to, former=registered.former_as(to, now_ms), links=links,
            linked_as=linked_as,
        )],
        bases=[base],
    )


# -- branch ----------------------------------------------------------------------------------------------------------


def plan_branch(
    files: FileStore, registrar: Registrar, user: str, name: str, request: ChatBranch, live: set[str], chat_id: str,
    integrity: str, now_ms: int, *, beside: Live = NOBODY,
) -> Plan:
    """`live` are names of chats that may have no file yet."""
    own = owner_files(files, user, place_of(name))
    named = name_branch(
        registrar, user, name, request, live, now_ms,
        lambda to: _refused(files, registrar, user, to, now_ms, None, "", beside),
    )
    if named is None:
        return Plan(facts=Facts(), own=own)
    return Plan(facts=Facts(to=named[0], refused=named[1], chat_id=chat_id, integrity=integrity), own=own)


def name_branch(
    registrar: Registrar, user: str, name: str, request: ChatBranch, live: set[str], now_ms: int,
    refused: Callable[[str], tuple[str, str] | None],
) -> tuple[str, tuple[str, str] | None] | None:
    """What a branch will be called, and why it cannot be; None for a name that no chat can be given. `refused` says so
    of one name, `live` are names of chats that may not be stored yet.
    """
    if isinstance(request.to, str):
        if new_name_problem(request.to) is not None:
            return None
        to = sibling(name, request.to)
        return to, refused(to)
    if not branch_stem(name):
        return name, ("name-illegal", "No name can be made from the chat's name; give one.")
    for number in range(1, NUMBERS_MAX):
        to = branched_name(name, request.kind, number)
        if new_name_problem(chat_of(to).chat) is not None:
            # An old name that nobody could give today: its branches need a name of their own.
            return to, ("name-illegal", "A name made from the chat's name would not be legal; give one.")
        former = registrar.former(user, to, now_ms)
        if to not in live and (former is None or former.gone is None) and refused(to) is None:
            return to, None
    return to, ("exists", "There are too many branches of this chat.")


def stage_branch(
    files: FileStore, plan: Plan, stream: Stream, held: FileState, twig: Twig, version: Version, now_ms: int
) -> Operation:
    """Write the new chat's files under temporary names, each synced and verified. Blocks."""
    own, user, facts = plan.own, stream.user, plan.facts
    assert own is not None, "a branch has a source"
    place, source = chat_of(facts.to), stem_of(own.place)
    born = Version(1, 1, facts.integrity)
    rendered = render(held.image, twig.messages, twig.bare, twig.metadata, facts.chat_id, now_ms)
    moves: list[Move] = []
    marks: dict[str, StateMark] = {}

    def stage(name: str, data: bytes) -> None:
        target = f"{own.folder}/{name}"
        temporary = files.fs.temporary_path(files.checked_path(user, target))
        stat = files.fs.write_atomically(temporary, data)
        moves.append(Move(f"{own.folder}/{temporary.rpartition('/')[2]}", target, stat.inode))

    states = branched(stream.floors, Chat(born, twig.metadata, twig.messages, bare=twig.bare))
    for name in own.files:
        namespace = name[len(source) + len(SIDECAR_MARK) : -len(STATE_ENDING)]
        # What the server keeps for itself about the source is not about the new chat.
        if not name.endswith(CHAT_ENDING) and namespace not in states and not namespace.startswith("tellback_"):
            states[namespace] = files.read(files.checked_path(user, f"{own.folder}/{name}")).data
    for namespace, data in states.items():
        if namespace in held.states or namespace in stream.states:
            marks[namespace] = StateMark(born, len(data), zlib.crc32(data))
        stage(f"{place.chat}{SIDECAR_MARK}{namespace}{STATE_ENDING}", data)
    crc32 = zlib.crc32(rendered.data)
    mark = SyncMark(
        facts.chat_id, facts.to, born, born, Watermark(len(rendered.data), len(twig.messages), crc32), marks
    )
    sync = sync_file("", None, mark, now_ms)
    stage(own.renamed(own.sync_name, place.chat), sync.data.encode("utf-8", "surrogatepass"))
    # Last, so that nobody finds the chat before its state.
    stage(place.chat + CHAT_ENDING, rendered.data)
    return Operation(
        what="branch", user=user, chat_id=stream.chat_id, name=stream.name, integrity=version.integrity,
        seq=version.seq, moves=moves,
        groups=[GroupEdit(path=path, action="add", chat=place.chat) for path in own.groups],
    )
