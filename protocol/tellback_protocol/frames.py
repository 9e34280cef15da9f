"""The frames of the wire, both directions: what `spec/schema/` is generated from.

Rules of this module:
- A frame is one JSON object a message; unknown fields are ignored (BEHAVIOUR W2).
- Frames to the client that stand on the hot path are built by `codec` as bytes; the structs here say what they hold,
  and a test decodes every built frame with them.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType

from .backups import BackupCreated, BackupFrame, BackupListFrame, Restored
from .catalog_frames import (
    ActiveChatFrame,
    CharacterListFrame,
    ChatListFrame,
    ChatSearchFrame,
    GroupListFrame,
)
from .effects import AnyJson, Author, Effect, MessageJson, SkippedCommit
from .fields import ObjectJson, WireInteger
from .files import FileFrame, FileListFrame
from .generation_requests import GenerationError, GenerationTarget
from .ids import Version
from .outcomes import OUTCOMES_MAX
from .repairs import ChatRepairFrame
from .requests import OwnerName, Request, UserRequest
from .status import StatusFrame
from .trash import TrashEmptied, TrashListFrame
from .values import DEPTH_MAX

SUBPROTOCOL = "tellback.v1"
PROTOCOL = 1

CLOSE_GOING_AWAY = 1001
CLOSE_SLOW = 4008
"""More waits for this connection than its reserve for frames that are never dropped: reconnect."""
CLOSE_TIMEOUT = 4408
"""No hello, or an unfinished message, in time: reconnect."""
CLOSE_FLOOD = 4429
"""Too many bad frames: reconnect, more slowly."""
CLOSE_PROTOCOL = 4500
CLOSE_TAKEN_OVER = 4501
CLOSE_UNAUTHENTICATED = 4502
CLOSE_FORBIDDEN = 4503


class Hello(msgspec.Struct, tag="hello", tag_field="type", gc=False):
    """The first frame, within 10 s and 8 KiB."""

    protocol: int
    session: str
    token: str | None = None
    client: Annotated[str, msgspec.Meta(max_length=200)] | UnsetType = UNSET
    """Name and version of the software, for logs."""


class Auth(msgspec.Struct, tag="auth", tag_field="type", gc=False):
    """A fresh token for the same user, before the old one expires."""

    token: str
    id: WireInteger | None = None


class Ping(msgspec.Struct, tag="ping", tag_field="type", gc=False):
    """Answered with `pong`, ahead of all data."""

    id: WireInteger | None = None


ClientFrame = Hello | Auth | Ping | Request | UserRequest


class Limits(msgspec.Struct, frozen=True):
    """What the server accepts; sent in `welcome`."""

    frame_bytes: int = 4 << 20
    """A larger frame is answered with `too-large`; one of over twice this size closes the connection (1009)."""
    depth: int = DEPTH_MAX
    patch_ops: int = 10_000
    document_bytes: int = 8 << 20
    """One message, one state document, or a chat's metadata."""
    messages: int = 10_000
    """Messages in one append."""
    in_flight: int = 64
    """Writes of one connection that wait for their answer."""
    in_flight_bytes: int = 8 << 20
    open_chats: int = 256
    outcomes: int = OUTCOMES_MAX
    """Outcomes kept per session and owner."""


class ModelServer(msgspec.Struct, frozen=True):
    """One that `generate` can ask, as users see it: never where it is, nor its key."""

    name: str
    """What `upstream` of `generate` takes."""


class Welcome(msgspec.Struct, tag="welcome", tag_field="type"):
    protocol: int
    server: str
    user: str
    limits: Limits
    heartbeat_ms: int
    id: int | UnsetType | None = UNSET
    """Set when it answers `auth`."""
    upstreams: list[ModelServer] | UnsetType = UNSET
    """Left out when there are none."""


class Damage(msgspec.Struct, frozen=True):
    """A line of a chat's file that is no message; its bytes are kept."""

    line: int
    """1-based, as editors count; 0 when it is about the file as a whole (X6)."""
    problem: str


class Opened(msgspec.Struct, tag="opened", tag_field="type"):
    """`snapshot`: messages here or in the parts; `replay`: integrity frames follow; `current`: nothing was missed.

    Of a chat: `chat`, `chat_id`, `version`. Of a character or preset: `owner`, `owner_id`, and in a snapshot `states`.
    """

    mode: Literal["snapshot", "replay", "current"]
    head: Version
    next_op: int
    chat: str | UnsetType = UNSET
    chat_id: str | UnsetType = UNSET
    version: Version | UnsetType = UNSET
    owner: OwnerName | UnsetType = UNSET
    owner_id: str | UnsetType = UNSET
    states: dict[str, Version] | UnsetType = UNSET
    """The version of each state document that there is."""
    id: int | None = None
    count: int | UnsetType = UNSET
    first: int | UnsetType = UNSET
    """Index of the first message sent, when `tail` was asked for."""
    metadata: ObjectJson | UnsetType = UNSET
    messages: list[MessageJson] | UnsetType = UNSET
    header: ObjectJson | UnsetType = UNSET
    """The first line of the chat's file, with the metadata in it, when it was asked for and there is one."""
    parts: int | UnsetType = UNSET
    reset: Literal["epoch", "trimmed", "ahead"] | UnsetType = UNSET
    created: bool | UnsetType = UNSET
    read_only: bool | UnsetType = UNSET
    damage: list[Damage] | UnsetType = UNSET
    generations: list[ListedGeneration] = []
    """Those that run, and results that this session began and never acknowledged."""


class ListedGeneration(msgspec.Struct, omit_defaults=True):
    """A generation as a tab finds it when it opens the chat."""

    id: str
    target: GenerationTarget
    message: str
    """The message that the text is for, or is in."""
    state: Literal["running", "stored", "cancelled", "failed", "orphaned"]
    by: str
    text: str | UnsetType = UNSET
    """The text so far, while it runs; what comes later follows as deltas."""
    offset: int | UnsetType = UNSET
    """Its length."""
    reasoning: str | UnsetType = UNSET
    reasoning_offset: int | UnsetType = UNSET
    durable: int | UnsetType = UNSET
    """How much of the text survives a crash."""
    integrity: str | UnsetType = UNSET
    """Of the commit that ended it: what `generation-ack` names."""
    stored: bool | UnsetType = UNSET
    """Of one that ended: whether the chat holds what there was of the text."""
    error: GenerationError | UnsetType = UNSET
    supersedes: str | UnsetType = UNSET


class SnapshotPart(msgspec.Struct, tag="snapshot-part", tag_field="type"):
    chat: str
    part: int
    of: int
    messages: list[MessageJson]


class Closed(msgspec.Struct, tag="closed", tag_field="type"):
    chat: str | UnsetType = UNSET
    id: int | None = None
    owner: OwnerName | UnsetType = UNSET


class NewChat(msgspec.Struct):
    """A chat that was made."""

    chat: str
    chat_id: str
    version: Version


class Ack(msgspec.Struct, tag="ack", tag_field="type"):
    """The op is in the synced log. `ops` is there when the effects differ from what was asked."""

    op: int
    version: Version
    durable: Literal["fsync", "memory"]
    id: int | None = None
    chat: str | UnsetType = UNSET
    owner: OwnerName | UnsetType = UNSET
    messages: list[str] | UnsetType = UNSET
    namespace: str | UnsetType = UNSET
    chat_id: str | UnsetType = UNSET
    """Of a chat that was created."""
    branch: NewChat | UnsetType = UNSET
    """The chat that a branch made."""
    restored: Restored | UnsetType = UNSET
    linked_from: list[str] | UnsetType = UNSET
    """Chats that link to the one that was deleted."""
    generation: str | UnsetType = UNSET
    message: str | UnsetType = UNSET
    """Of a generation: the id that its reply will have, or where its text is."""
    state: str | UnsetType = UNSET
    """How a generation ended."""
    stored: bool | UnsetType = UNSET
    ops: list[Effect] | UnsetType = UNSET
    rebased: bool | UnsetType = UNSET
    duplicate: bool | UnsetType = UNSET
    resync: bool | UnsetType = UNSET
    """With `duplicate`: the answer was long, and what it told of the effects is no longer kept. Who is not at
    `version` yet opens again."""


class IntegrityFrame(msgspec.Struct, tag="integrity", tag_field="type"):
    """One commit, told to every other connection that has the owner open; also what a replay sends."""

    version: Version
    previous: str
    ops: list[Effect]
    chat: str | UnsetType = UNSET
    owner: OwnerName | UnsetType = UNSET
    by: Author | None = None


class Conflict(msgspec.Struct, tag="conflict", tag_field="type"):
    """The base is not the document's version. `missed` leads from the base to `version`, or `resync` is true.

    `version` is null when the state document never existed.
    """

    op: int
    version: Version | None
    id: int | None = None
    chat: str | UnsetType = UNSET
    owner: OwnerName | UnsetType = UNSET
    namespace: str | UnsetType = UNSET
    missed: list[IntegrityFrame] | UnsetType = UNSET
    resync: bool | UnsetType = UNSET
    duplicate: bool | UnsetType = UNSET


class Error(msgspec.Struct, tag="error", tag_field="type"):
    code: str
    message: str
    retry: Literal["never", "now", "backoff", "after-auth", "after-sync"]
    id: int | None = None
    op: int | UnsetType = UNSET
    chat: str | UnsetType = UNSET
    owner: OwnerName | UnsetType = UNSET
    pointer: str | UnsetType = UNSET
    expected: int | UnsetType = UNSET
    """The op number that `op-gap` waits for; the length of a generation's text here."""
    to: str | UnsetType = UNSET
    """The name of what was `renamed`."""
    chat_id: str | UnsetType = UNSET
    """Of what was `renamed` or `deleted`."""
    generation: str | UnsetType = UNSET
    state: str | UnsetType = UNSET
    """Of a generation that has ended."""
    next_op: int | UnsetType = UNSET
    """With `deleted`: the number of the session's next op on it, for a restore."""
    after_ms: int | UnsetType = UNSET
    duplicate: bool | UnsetType = UNSET


class StateValue(msgspec.Struct):
    """A document, or why it cannot be told: exactly one of `data` and `error`."""

    version: Version | UnsetType = UNSET
    """With `data` always."""
    data: AnyJson | UnsetType = UNSET
    error: Literal["state-corrupt"] | UnsetType = UNSET
    """Only where all documents were asked for; one that was asked for by its name is an `error` frame."""
    skipped: list[SkippedCommit] | UnsetType = UNSET
    """Of a floor state: commits that are shown and do not fit, when there are any."""


class StateFrame(msgspec.Struct, tag="state", tag_field="type"):
    owner: OwnerName
    states: dict[str, StateValue | None]
    id: int | None = None


class HistoryFrame(msgspec.Struct, tag="history", tag_field="type"):
    """A page: `commits` and `more`; or the chat as it was: `version`, `metadata`, `count` and `messages` or `parts`."""

    chat: str
    id: int | None = None
    commits: list[IntegrityFrame] | UnsetType = UNSET
    more: bool | UnsetType = UNSET
    version: Version | UnsetType = UNSET
    metadata: ObjectJson | UnsetType = UNSET
    count: int | UnsetType = UNSET
    messages: list[MessageJson] | UnsetType = UNSET
    parts: int | UnsetType = UNSET


class HistoryPart(msgspec.Struct, tag="history-part", tag_field="type"):
    """Messages of a chat as it was, for the `history` frame with this `id`."""

    chat: str
    part: int
    of: int
    messages: list[MessageJson]
    id: int | None = None


class Reset(msgspec.Struct, tag="reset", tag_field="type"):
    """What is open was replaced: open it again with `since` null."""

    reason: Literal["outside-edit", "restored", "failed"]
    version: Version
    chat: str | UnsetType = UNSET
    owner: OwnerName | UnsetType = UNSET
    recovered: list[str] | UnsetType = UNSET
    """Chats that hold what was acknowledged and did not fit what the other program wrote."""
    kept: bool | UnsetType = UNSET
    """True when what the other program dropped or changed of the acknowledged is in the server's backups."""


class Behind(msgspec.Struct, tag="behind", tag_field="type"):
    """This tab was too slow: it last got `from`, the stream is at `to`. Open again with `since` = `from`."""

    from_: Version = msgspec.field(name="from")
    to: Version
    chat: str | UnsetType = UNSET
    owner: OwnerName | UnsetType = UNSET


class Goaway(msgspec.Struct, tag="goaway", tag_field="type"):
    """The server stops reading this connection; everything acknowledged is stored."""

    reason: str
    after_ms: int = 0


class GenerationStarted(msgspec.Struct, tag="generation-started", tag_field="type", omit_defaults=True):
    """A generation runs; the text so far, after which deltas follow. Also the answer to `generation-attach`."""

    chat: str
    generation: str
    target: GenerationTarget
    message: str
    state: Literal["running"]
    by: str
    text: str
    offset: int
    durable: int
    reasoning: str | UnsetType = UNSET
    reasoning_offset: int | UnsetType = UNSET
    supersedes: str | UnsetType = UNSET
    id: int | None = None


class GenerationDeltaFrame(msgspec.Struct, tag="generation-delta", tag_field="type", omit_defaults=True):
    """More text. To the session that produces it: how much is durable, with an empty text."""

    chat: str
    generation: str
    offset: int
    text: str
    durable: int
    """How much of the text survives a crash."""
    reasoning_offset: int | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_durable: int | UnsetType = UNSET


class GenerationStored(msgspec.Struct, tag="generation-stored", tag_field="type", omit_defaults=True):
    """A generation has ended and the chat holds its text, at `version`."""

    chat: str
    generation: str
    message: str
    state: Literal["stored", "cancelled", "failed", "orphaned"]
    version: Version
    swipe: int | UnsetType = UNSET
    error: GenerationError | UnsetType = UNSET
    id: int | None = None


class GenerationDone(msgspec.Struct, tag="generation-done", tag_field="type", omit_defaults=True):
    """A generation has ended and left no text."""

    chat: str
    generation: str
    state: Literal["stored", "cancelled", "failed", "orphaned"]
    version: Version
    error: GenerationError | UnsetType = UNSET
    id: int | None = None


class Pong(msgspec.Struct, tag="pong", tag_field="type"):
    id: int | None = None


ServerFrame = (
    Welcome | Opened | SnapshotPart | Closed | Ack | IntegrityFrame | Conflict | Error | StateFrame | HistoryFrame
    | HistoryPart | Reset | Behind | Goaway | Pong | ChatListFrame | ChatSearchFrame | ActiveChatFrame
    | CharacterListFrame | GroupListFrame | GenerationStarted | GenerationDeltaFrame | GenerationStored
    | GenerationDone | BackupListFrame | BackupCreated | BackupFrame | TrashListFrame | TrashEmptied
    | ChatRepairFrame | StatusFrame | FileListFrame | FileFrame
)
