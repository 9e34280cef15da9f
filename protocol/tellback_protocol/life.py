"""The life of an owner: made, renamed, deleted, restored, branched. What such a request means, against facts.

Rules of this module (BEHAVIOUR J1 to J9):
- What only a shell can know (which names are free, what is in the trash) is handed in as facts; the decision is made
  here and nowhere else.
- A life write leaves the versions of documents alone, but for the link that a branch puts into its source message.
- A new name is legal as it stands or refused; it is never altered.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Raw

from . import swipes
from .backups import BackupRestore
from .bases import Bases
from .chat import Chat, with_integrity
from .effects import DeletedEffect, RenamedEffect
from .errors import Refused, illegal
from .ids import (
    NAME_BYTES_MAX,
    CharacterChat,
    CharacterOwner,
    ChatById,
    ChatName,
    GroupChat,
    PresetOwner,
    Version,
    new_name_problem,
    parse_chat,
    parse_place,
)
from .patch import Operation
from .requests import (
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
from .values import dumps, loads, read_payload
from .work import Work

__all__ = ["NO_FACTS", "Facts", "Twig", "branch_stem", "branch_twig", "branched_name", "carry_out_life", "sibling"]

_encode = msgspec.json.encode
_SUFFIXES = (" - Branch #", " - Checkpoint #")


class Facts(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What was found out just before a life write is decided."""

    to: str = ""
    """The full name that the write leads to."""
    refused: tuple[str, str] | None = None
    """Code and sentence, when the files do not allow it: the name is taken, the trash does not hold it."""
    chat_id: str = ""
    """Of the chat that is made."""
    integrity: str = ""
    """Of the version that the chat made by a branch begins with."""
    linked_from: list[str] = []
    """Chats that link to the one that goes."""
    base_held: bool = False
    """Of a deletion: its base held before replies that were being written were ended for it."""
    backup: str = ""
    """What the backup is called that is restored."""


NO_FACTS = Facts()


class Twig(msgspec.Struct, gc=False):
    """What a branch begins with."""

    metadata: bytes
    messages: dict[str, bytes]
    bare: set[str]


# -- names -----------------------------------------------------------------------------------------------------------


def sibling(name: str, to: str) -> str:
    """The one text of an owner called `to` beside the one whose text is `name`."""
    match parse_place(name):
        case CharacterChat(character=character):
            return str(CharacterChat(character, to))
        case GroupChat():
            return str(GroupChat(to))
        case CharacterOwner():
            return str(CharacterOwner(to))
        case PresetOwner(folder=folder):
            return str(PresetOwner(folder, to))
    raise AssertionError("a stream has a name")


def branch_stem(name: str) -> str:
    """The chat's name without ` - Branch #n` or ` - Checkpoint #n` at its end, short enough for another one."""
    stem = _place(name).chat
    while True:
        for suffix in _SUFFIXES:
            before, found, number = stem.rpartition(suffix)
            if found and before and number.isascii() and number.isdigit():
                stem = before
                break
        else:
            break
    room = NAME_BYTES_MAX - len(" - Checkpoint #1000000")
    return stem.encode()[:room].decode("utf-8", "ignore").rstrip(". ")


def branched_name(name: str, kind: Literal["branch", "checkpoint"], number: int) -> str:
    """The full name of the chat's branch or checkpoint with that number."""
    return sibling(name, f"{branch_stem(name)} - {kind.capitalize()} #{number}")


def _place(name: str) -> ChatName:
    place = parse_chat(name)
    assert not isinstance(place, str | ChatById), "a stream has a name"
    return place


def _check_new(name: str, pointer: str) -> None:
    problem = new_name_problem(name)
    if problem:
        raise illegal("name-illegal", problem, pointer)


# -- what the requests mean ------------------------------------------------------------------------------------------


def carry_out_life(work: Work, request: LifeWrite, bases: Bases, facts: Facts) -> None:
    """Check `request` and put its effects into `work`. Raises Refused, Conflicting."""
    match request:
        case ChatCreate():
            _create(work, request, facts)
        case ChatRename():
            bases.check_owner(request.base)
            _rename(work, request.to, sibling(work.stream.name, request.to), facts)
        case ChatDelete():
            if not facts.base_held:
                bases.check_chat(request.base, ("a",), False)
            _delete(work, facts)
        case ChatRestore():
            if isinstance(request.to, str):
                _check_new(request.to, "/to")
            if not work.stream.deleted:
                raise Refused("exists", "It is not in the trash.", pointer="/chat")
            _restore(work, facts, "/to")
        case ChatBranch():
            _branch(work, request, bases, facts)
        case OwnerRename():
            bases.check_owner(request.base)
            _rename(work, request.to, sibling(work.stream.name, request.to), facts)
        case OwnerDelete():
            if request.chats:
                _check_with_chats(work.stream.name, request)
            bases.check_owner(request.base)
            _delete(work, facts)
        case BackupRestore():
            _restore_backup(work, request, bases, facts)
        case OwnerRestore():
            if not work.stream.deleted:
                raise Refused("not-found", "The trash holds nothing of this name.", pointer="/owner")
            _restore(work, facts, "/owner")


def _refuse(facts: Facts, pointer: str) -> None:
    if facts.refused is not None:
        raise Refused(facts.refused[0], facts.refused[1], pointer=pointer)


def _create(work: Work, request: ChatCreate, facts: Facts) -> None:
    place = _place(work.stream.name)
    for member in place.__struct_fields__:
        # A character that is there keeps the name it has; the folder was found when the facts were gathered.
        if member == "chat" or not facts.to:
            _check_new(getattr(place, member), "/chat")
    if isinstance(request.group, str) and not isinstance(place, GroupChat):
        raise Refused("bad-frame", "Only a group chat belongs to a group.", pointer="/group")
    # Nothing but the group is looked for.
    _refuse(facts, "/group" if facts.refused is not None and facts.refused[0] == "not-found" else "/chat")
    work.plain = False
    told: dict[str, Any] = {"chat_id": work.stream.chat_id}
    if isinstance(request.metadata, Raw):
        value = read_payload(bytes(request.metadata), "/metadata", work.limits.depth)
        if not isinstance(value, dict):
            raise Refused("bad-frame", "The metadata is a JSON object.", pointer="/metadata")
        operations: list[Operation] = [{"op": "replace", "path": "", "value": value}]
        work.patch_metadata(dumps(operations), operations, "/metadata")
    if request.messages:
        work.append(request.messages)
        told["messages"] = list(work.chat.messages)
    work.told = _encode(told)


def _rename(work: Work, to: str, full: str, facts: Facts) -> None:
    _check_new(to, "/to")
    if full == work.stream.name:
        raise Refused("exists", "That is its name already.", pointer="/to")
    _refuse(facts, "/to")
    work.plain = False
    work.effects.append(RenamedEffect(full))


def _delete(work: Work, facts: Facts) -> None:
    _refuse(facts, "/chat")
    work.effects.append(DeletedEffect())
    if facts.linked_from:
        work.told = _encode({"linked_from": facts.linked_from})


def _check_with_chats(name: str, request: OwnerDelete) -> None:
    if not isinstance(parse_place(name), CharacterOwner):
        raise Refused("bad-frame", "Only a character has chats.", pointer="/chats")
    if request.base == "*" and not request.force:
        raise Refused(
            "base-illegal", 'With the chats, name the version that was seen, or say "force" beside "*".',
            pointer="/base",
        )


def _restore(work: Work, facts: Facts, pointer: str) -> None:
    _refuse(facts, pointer)
    work.plain = False
    work.effects.append(RenamedEffect(facts.to))


def _restore_backup(work: Work, request: BackupRestore, bases: Bases, facts: Facts) -> None:
    """In place, out of the trash, or beside the chat as a new one."""
    is_deleted, is_named = work.stream.deleted, isinstance(request.to, str)
    if not is_deleted and not is_named and not facts.base_held:
        bases.check_chat(request.base, ("a",), True)
    if isinstance(request.to, str):
        _check_new(request.to, "/to")
    about_backup = facts.refused is not None and facts.refused[0].startswith("backup-")
    _refuse(facts, "/backup" if about_backup else "/to" if is_named else "/chat")
    work.plain = False
    if is_named and not is_deleted:
        made = {"chat": facts.to, "chat_id": facts.chat_id, "version": Version(1, 1, facts.integrity)}
        work.told = _encode({"branch": made})
        return
    if is_deleted:
        work.effects.append(RenamedEffect(facts.to))
    # As after another program's edit: the stream goes on, in another epoch, from bytes that it did not make itself.
    version = Version(work.version.epoch + 1, work.version.seq, facts.integrity)
    work.told = _encode({"restored": {"backup": facts.backup, "version": version}})


def _branch(work: Work, request: ChatBranch, bases: Bases, facts: Facts) -> None:
    targets = (f"m:{request.message}",)
    bases.check_chat(request.base, targets, request.base == "*")
    chat = work.stream.chat
    if request.message not in chat.messages:
        raise Refused("message-unknown", f"The chat has no message {request.message[:64]!r}.", pointer="/message")
    if isinstance(request.to, str):
        _check_new(request.to, "/to")
    # The same work that the new chat is made by, so that nothing is refused half-way.
    branch_twig(chat, request, "", "")
    _refuse(facts, "/to")
    operations = _link(chat.value(request.message), request.kind, _place(facts.to).chat)
    work.plain = False
    if operations:
        work.patch_message(request.message, dumps(operations), operations, "/message")
    made = {"chat": facts.to, "chat_id": facts.chat_id, "version": Version(1, 1, facts.integrity)}
    work.told = _encode({"branch": made})


def _link(message: dict[str, Any], kind: str, name: str) -> list[Operation]:
    """What makes a message tell of its branch or checkpoint; nothing when its `extra` is no place for it."""
    operations: list[Operation] = []
    extra = message.get("extra")
    if not isinstance(extra, dict):
        if extra:
            return []
        operations.append({"op": "add", "path": "/extra", "value": {}})
        extra = {}
    if kind == "checkpoint":
        operations.append({"op": "add", "path": "/extra/bookmark_link", "value": name})
    elif isinstance(extra.get("branches"), list):
        operations.append({"op": "add", "path": "/extra/branches/-", "value": name})
    else:
        operations.append({"op": "add", "path": "/extra/branches", "value": [name]})
    return operations


def branch_twig(chat: Chat, request: ChatBranch, main_chat: str, chat_id: str) -> Twig:
    """Metadata and messages of the chat that a branch makes: everything up to and with the branch point.

    Lines keep their bytes, but for the branch point's when another swipe of it is to be shown. Raises Refused.
    """
    messages: dict[str, bytes] = {}
    for message_id, line in chat.messages.items():
        messages[message_id] = line
        if message_id == request.message:
            break
    bare = chat.bare & messages.keys()
    if isinstance(request.swipe, int):
        value = chat.value(request.message)
        if swipes.active(value) != request.swipe:
            messages[request.message] = dumps(swipes.select(value, request.swipe).value)
            bare.discard(request.message)
    metadata = loads(with_integrity(chat.metadata, chat_id))
    if isinstance(metadata, dict):
        metadata["main_chat"] = main_chat
    return Twig(dumps(metadata), messages, bare)
