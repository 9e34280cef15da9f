"""What a client asks of one owner. A request is also the frame that carries it.

Rules of this module:
- A request says what the client wants; what happens is an effect. Only `decide` knows the way from one to the other.
- `base` left out and `base` null are different things (BEHAVIOUR B1, B2).
- Payloads are kept as the bytes that came in.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType

from .backups import BackupCreate, BackupGet, BackupList, BackupRestore
from .errors import Refused, illegal
from .fields import AnyJson, Base, Based, Numbered, ObjectJson, OperationsJson, Rebasable, WireInteger
from .files import FileGet, FileList
from .generation_requests import GenerationAck, GenerationAttach, GenerationDelta, GenerationWrite
from .ids import ChatAddress, StateOwner, Version, parse_chat, parse_state_owner
from .repairs import ChatRepair
from .status import StatusGet
from .trash import TrashEmpty, TrashList


class OwnerName(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Exactly one of the three. Characters and presets have state documents only."""

    chat: str | UnsetType = UNSET
    character: str | UnsetType = UNSET
    preset: str | UnsetType = UNSET


def owner_text(owner: OwnerName) -> str | None:
    """The one text of an owner: a chat's address, `character:<character>` or `preset:<folder>/<preset>`.

    None when it is not exactly one of the three, or no text could be told apart from another owner's.
    """
    named = [part for part in (owner.chat, owner.character, owner.preset) if isinstance(part, str)]
    if len(named) != 1:
        return None
    if isinstance(owner.chat, str):
        return owner.chat
    if isinstance(owner.character, str):
        return None if "/" in owner.character else f"character:{owner.character}"
    return f"preset:{owner.preset}"


def owner_named(text: str) -> OwnerName:
    """The owner whose text this is."""
    kind, _colon, rest = text.partition(":")
    if kind == "preset":
        return OwnerName(preset=rest)
    if kind == "character" and "/" not in rest:
        return OwnerName(character=rest)
    return OwnerName(chat=text)


class Append(Rebasable, tag="append", tag_field="type", gc=False):
    """Messages to put at the end."""

    chat: str
    messages: list[ObjectJson]


class Patch(Rebasable, tag="patch", tag_field="type", gc=False):
    """RFC 6902 against one message, or against `{"metadata": ..., "messages": [...]}` when `message` is left out."""

    chat: str
    patch: OperationsJson
    message: str | UnsetType = UNSET


class Delete(Rebasable, tag="delete", tag_field="type", gc=False):
    """Messages to take out, by id; an id named twice counts once."""

    chat: str
    messages: list[str]


class MetadataUpdate(Rebasable, tag="metadata-update", tag_field="type", gc=False):
    """Exactly one of `set` (the whole metadata), `merge` (RFC 7386) and `patch` (RFC 6902)."""

    chat: str
    set: ObjectJson | UnsetType = UNSET
    merge: ObjectJson | UnsetType = UNSET
    patch: OperationsJson | UnsetType = UNSET


class StateUpdate(Rebasable, tag="state-update", tag_field="type", gc=False):
    """Exactly one of `set` (the whole document), `merge` (RFC 7386) and `patch` (RFC 6902)."""

    owner: OwnerName
    namespace: str
    set: AnyJson | UnsetType = UNSET
    merge: ObjectJson | UnsetType = UNSET
    patch: OperationsJson | UnsetType = UNSET


class StateDelete(Rebasable, tag="state-delete", tag_field="type", gc=False):
    """A state document to take away."""

    owner: OwnerName
    namespace: str


class BatchedAppend(msgspec.Struct, tag="append", tag_field="type", gc=False):
    messages: list[ObjectJson]
    base: Base = UNSET


class BatchedPatch(msgspec.Struct, tag="patch", tag_field="type", gc=False):
    patch: OperationsJson
    message: str | UnsetType = UNSET
    base: Base = UNSET


class BatchedDelete(msgspec.Struct, tag="delete", tag_field="type", gc=False):
    messages: list[str]
    base: Base = UNSET


class BatchedMetadataUpdate(msgspec.Struct, tag="metadata-update", tag_field="type", gc=False):
    set: ObjectJson | UnsetType = UNSET
    merge: ObjectJson | UnsetType = UNSET
    patch: OperationsJson | UnsetType = UNSET
    base: Base = UNSET


class BatchedStateUpdate(msgspec.Struct, tag="state-update", tag_field="type", gc=False):
    namespace: str
    set: AnyJson | UnsetType = UNSET
    merge: ObjectJson | UnsetType = UNSET
    patch: OperationsJson | UnsetType = UNSET
    base: Base = UNSET


class BatchedStateDelete(msgspec.Struct, tag="state-delete", tag_field="type", gc=False):
    namespace: str
    base: Base = UNSET


class Swipe(Rebasable, tag="swipe", tag_field="type", gc=False):
    """Alternatives of one message, by ordinal from 0: put one more behind them, show one, or take one away."""

    chat: str
    message: str
    action: Literal["add", "select", "delete"]
    swipe: WireInteger | UnsetType = UNSET
    """Which one; for `select` and `delete`."""
    content: ObjectJson | UnsetType = UNSET
    """`mes`, and what goes with it (`send_date`, `gen_started`, `gen_finished`, `extra`); for `add`."""
    select: bool = True
    """Whether an added one is shown."""


class FloorTarget(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What a floor commit belongs to: a message by id or by index, and one of its swipes (the one shown)."""

    message: str | UnsetType = UNSET
    floor: WireInteger | UnsetType = UNSET
    swipe: WireInteger | UnsetType = UNSET


class FloorUpdate(Rebasable, tag="floor-update", tag_field="type", gc=False):
    """RFC 6902 from the floor state as it is read now; kept with the message and swipe that it belongs to.

    Without `at` that is the last message and the swipe it shows.
    """

    chat: str
    namespace: str
    patch: OperationsJson
    at: FloorTarget | UnsetType = UNSET


class BatchedSwipe(msgspec.Struct, tag="swipe", tag_field="type", gc=False):
    message: str
    action: Literal["add", "select", "delete"]
    swipe: WireInteger | UnsetType = UNSET
    content: ObjectJson | UnsetType = UNSET
    select: bool = True
    base: Base = UNSET


class BatchedFloorUpdate(msgspec.Struct, tag="floor-update", tag_field="type", gc=False):
    namespace: str
    patch: OperationsJson
    at: FloorTarget | UnsetType = UNSET
    base: Base = UNSET


Batched = (
    BatchedAppend | BatchedPatch | BatchedDelete | BatchedMetadataUpdate | BatchedStateUpdate | BatchedStateDelete
    | BatchedSwipe | BatchedFloorUpdate
)


class Batch(Rebasable, tag="batch", tag_field="type", gc=False):
    """Requests to one chat, carried out in order, all or nothing, as one commit.

    Each request has a `base` of its own or takes the batch's; bases are compared before
    the first request is carried out.
    """

    chat: str
    requests: Annotated[list[Batched], msgspec.Meta(min_length=1)]


class Malformed(msgspec.Struct, gc=False):
    """A frame that could not be read beyond its owner and op: its refusal is an outcome (BEHAVIOUR O4)."""

    chat: str
    """Empty when `owner` says whose it is."""
    code: str
    message: str
    pointer: str | None
    body: bytes
    id: int | None = None
    op: int | UnsetType = UNSET
    owner: OwnerName | UnsetType = UNSET


class ChatCreate(Numbered, tag="chat-create", tag_field="type", gc=False):
    """A chat that does not exist yet, with what it begins with. Its op is the first of this session on it."""

    chat: str
    metadata: ObjectJson | UnsetType = UNSET
    messages: list[ObjectJson] = msgspec.field(default_factory=list)
    group: str | UnsetType = UNSET
    """Id of the group that a group chat belongs to."""


class ChatRename(Based, tag="chat-rename", tag_field="type", gc=False):
    """Another name in the same folder; sidecars and open tabs follow."""

    chat: str
    to: str
    """The name alone: `New name`."""


class ChatDelete(Based, tag="chat-delete", tag_field="type", gc=False):
    """To the trash, with everything the chat owns."""

    chat: str


class ChatRestore(Numbered, tag="chat-restore", tag_field="type", gc=False):
    """Out of the trash; `chat` is `id:<chat_id>`."""

    chat: str
    to: str | UnsetType = UNSET
    """Another name, when the old one is taken."""


class ChatBranch(Rebasable, tag="chat-branch", tag_field="type", gc=False):
    """A new chat that holds everything up to and with `message`; the message keeps a link to it."""

    chat: str
    message: str
    to: str | UnsetType = UNSET
    """The name of the new chat; else the first free `<name> - Branch #n` or `<name> - Checkpoint #n`."""
    kind: Literal["branch", "checkpoint"] = "branch"
    swipe: WireInteger | UnsetType = UNSET
    """Which swipe of `message` the new chat shows."""


class OwnerRename(Based, tag="owner-rename", tag_field="type", gc=False):
    """Another name for a character or preset; state, chats and groups follow."""

    owner: OwnerName
    to: str
    """The name alone, without a folder."""


class OwnerDelete(Based, tag="owner-delete", tag_field="type", gc=False):
    """A character or preset with its state to the trash; with `chats` the character's chats too."""

    owner: OwnerName
    chats: bool = False


class OwnerRestore(Numbered, tag="owner-restore", tag_field="type", gc=False):
    """Out of the trash: what was deleted last under this name."""

    owner: OwnerName


LifeWrite = (
    ChatCreate | ChatRename | ChatDelete | ChatRestore | ChatBranch | OwnerRename | OwnerDelete | OwnerRestore
    | BackupRestore
)
"""What makes, moves or ends an owner: a commit that touches more files than one owner's."""

UNREADING = ChatRename | ChatDelete | ChatRestore | OwnerRename | OwnerDelete | OwnerRestore | BackupRestore
"""What leaves the files' contents alone, so that damaged ones can be moved too."""
DocumentWrite = Append | Patch | Delete | MetadataUpdate | StateUpdate | StateDelete | Batch | Swipe | FloorUpdate
"""What changes documents of one owner."""
Write = DocumentWrite | LifeWrite | GenerationWrite
"""What can become a commit."""
Unnumbered = GenerationDelta | GenerationAttach | GenerationAck
"""What is said of a generation beside the order of commits: it has no op number."""


class Open(msgspec.Struct, tag="open", tag_field="type", gc=False, kw_only=True):
    """Subscribe to a chat and everything it owns, or to the state of a character or preset, from `since` on.

    Exactly one of `chat` and `owner`.
    """

    chat: str = ""
    since: Version | None
    owner: OwnerName | UnsetType = UNSET
    id: WireInteger | None = None
    create: bool = False
    tail: WireInteger | UnsetType = UNSET
    """Only the last so many messages in the snapshot; `first` in `opened` says where they begin."""
    header: bool = False
    """Whether a snapshot of a chat tells the file's header too."""


class Close(msgspec.Struct, tag="close", tag_field="type", gc=False):
    """End a subscription."""

    chat: str = ""
    owner: OwnerName | UnsetType = UNSET
    id: WireInteger | None = None


class StateGet(msgspec.Struct, tag="state-get", tag_field="type", gc=False):
    """State documents by namespace; all of them when `namespaces` is left out."""

    owner: OwnerName
    namespaces: list[str] | UnsetType = UNSET
    id: WireInteger | None = None


class History(msgspec.Struct, tag="history", tag_field="type", gc=False):
    """A page of commits with `after` < seq, or the chat as it was `at` a seq."""

    chat: str
    after: WireInteger | UnsetType = UNSET
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100
    at: WireInteger | UnsetType = UNSET
    id: WireInteger | None = None


Read = Open | Close | StateGet | History


class ChatList(msgspec.Struct, tag="chat-list", tag_field="type", gc=False):
    """A page of the user's chats, the one changed last first."""

    character: str | UnsetType = UNSET
    """Only this character's chats."""
    group: str | UnsetType = UNSET
    """Only the chats of the group with this id; `*` for those of all groups."""
    deleted: bool = False
    """What is in the trash instead."""
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 200
    cursor: str | None = None
    """`cursor` of the page before."""
    id: WireInteger | None = None


class ChatSearch(msgspec.Struct, tag="chat-search", tag_field="type", gc=False):
    """Messages that hold every word of `query`, whatever its case."""

    query: Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
    character: str | UnsetType = UNSET
    group: str | UnsetType = UNSET
    limit: Annotated[int, msgspec.Meta(ge=1, le=200)] = 50
    cursor: str | None = None
    id: WireInteger | None = None


class ActiveChat(msgspec.Struct, tag="active-chat", tag_field="type", gc=False):
    """The chat that was last worked on with a character or in a group; `chat` sets it."""

    character: str | UnsetType = UNSET
    group: str | UnsetType = UNSET
    chat: str | UnsetType | None = UNSET
    id: WireInteger | None = None


class CharacterList(msgspec.Struct, tag="character-list", tag_field="type", gc=False):
    """A page of the user's characters, in the order of their names."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 200
    cursor: str | None = None
    """`cursor` of the page before."""
    id: WireInteger | None = None


class GroupList(msgspec.Struct, tag="group-list", tag_field="type", gc=False):
    """A page of the user's groups, in the order of their ids."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 200
    cursor: str | None = None
    """`cursor` of the page before."""
    id: WireInteger | None = None


UserRequest = (
    ChatList | ChatSearch | ActiveChat | CharacterList | GroupList | BackupList | BackupCreate | BackupGet
    | TrashList | TrashEmpty | ChatRepair | StatusGet | FileList | FileGet
)
"""What is asked of no single owner."""
Request = Write | Read | Unnumbered


def owner_of(frame: Request | Malformed) -> str:
    """The one text of whom a request is about. Raises Refused when it names nobody, or more than one."""
    owner, chat = getattr(frame, "owner", UNSET), getattr(frame, "chat", "")
    if not isinstance(owner, OwnerName):
        if not chat and isinstance(frame, Open | Close):
            raise Refused("bad-frame", "Name exactly one of chat and owner.", pointer="/chat")
        return str(chat)
    named = [part for part in (owner.chat, owner.character, owner.preset) if isinstance(part, str)]
    if len(named) != 1:
        raise Refused("bad-frame", "An owner is exactly one of chat, character, preset.", pointer="/owner")
    if chat:
        raise Refused("bad-frame", "Name exactly one of chat and owner.", pointer="/owner")
    if isinstance(owner.chat, str):
        if not isinstance(frame, StateGet | StateUpdate | StateDelete):
            raise Refused("bad-frame", "A chat is named by chat; an owner here is a character or preset.",
                          pointer="/owner")
        return owner.chat
    return f"character:{owner.character}" if isinstance(owner.character, str) else f"preset:{owner.preset}"


def address_of(frame: Request | Malformed, name: str) -> ChatAddress | StateOwner:
    """The address behind a name. Raises Refused `name-illegal`."""
    owner = getattr(frame, "owner", UNSET)
    of_chat = not isinstance(owner, OwnerName) or isinstance(owner.chat, str)
    address = parse_chat(name) if of_chat else parse_state_owner(name)
    if isinstance(address, str):
        raise illegal("name-illegal", address, "/chat" if of_chat else "/owner")
    return address
