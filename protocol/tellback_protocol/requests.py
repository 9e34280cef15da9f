"""What a client asks of one owner. A request is also the frame that carries it.

Rules of this module:
- A request says what the client wants; what happens is an effect. Only `decide` knows the way from one to the other.
- `base` left out and `base` null are different things (BEHAVIOUR B1, B2).
- Payloads are kept as the bytes that came in.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType

from .ids import WIRE_INTEGER_MAX, Version

WireInteger = Annotated[int, msgspec.Meta(ge=0, le=WIRE_INTEGER_MAX)]
OpNumber = Annotated[int, msgspec.Meta(ge=1, le=WIRE_INTEGER_MAX)]
ObjectJson = Annotated[Raw, msgspec.Meta(extra_json_schema={"type": "object"})]
OperationsJson = Annotated[Raw, msgspec.Meta(description="RFC 6902 operations.",
                                             extra_json_schema={"type": "array", "items": {"type": "object"}})]
AnyJson = Annotated[Raw, msgspec.Meta(description="Any JSON value.")]
OnConflict = Literal["refuse", "rebase"]


class OpBase(msgspec.Struct, frozen=True, gc=False):
    """The version that my op number `op` made, so that writes can be pipelined."""

    op: OpNumber


Base = str | OpBase | None | UnsetType


class OwnerName(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Exactly one of the three. Characters and presets have state documents only."""

    chat: str | UnsetType = UNSET
    character: str | UnsetType = UNSET
    preset: str | UnsetType = UNSET


class Append(msgspec.Struct, tag="append", tag_field="type", gc=False):
    """Messages to put at the end."""

    chat: str
    messages: list[ObjectJson]
    id: WireInteger | None = None
    op: OpNumber | UnsetType = UNSET
    base: Base = UNSET
    force: bool = False
    on_conflict: OnConflict = "refuse"


class Patch(msgspec.Struct, tag="patch", tag_field="type", gc=False):
    """RFC 6902 against one message, or against `{"metadata": ..., "messages": [...]}` when `message` is left out."""

    chat: str
    patch: OperationsJson
    message: str | UnsetType = UNSET
    id: WireInteger | None = None
    op: OpNumber | UnsetType = UNSET
    base: Base = UNSET
    force: bool = False
    on_conflict: OnConflict = "refuse"


class Delete(msgspec.Struct, tag="delete", tag_field="type", gc=False):
    """Messages to take out, by id; an id named twice counts once."""

    chat: str
    messages: list[str]
    id: WireInteger | None = None
    op: OpNumber | UnsetType = UNSET
    base: Base = UNSET
    force: bool = False
    on_conflict: OnConflict = "refuse"


class MetadataUpdate(msgspec.Struct, tag="metadata-update", tag_field="type", gc=False):
    """Exactly one of `set` (the whole metadata), `merge` (RFC 7386) and `patch` (RFC 6902)."""

    chat: str
    set: ObjectJson | UnsetType = UNSET
    merge: ObjectJson | UnsetType = UNSET
    patch: OperationsJson | UnsetType = UNSET
    id: WireInteger | None = None
    op: OpNumber | UnsetType = UNSET
    base: Base = UNSET
    force: bool = False
    on_conflict: OnConflict = "refuse"


class StateUpdate(msgspec.Struct, tag="state-update", tag_field="type", gc=False):
    """Exactly one of `set` (the whole document), `merge` (RFC 7386) and `patch` (RFC 6902)."""

    owner: OwnerName
    namespace: str
    set: AnyJson | UnsetType = UNSET
    merge: ObjectJson | UnsetType = UNSET
    patch: OperationsJson | UnsetType = UNSET
    id: WireInteger | None = None
    op: OpNumber | UnsetType = UNSET
    base: Base = UNSET
    force: bool = False
    on_conflict: OnConflict = "refuse"


class StateDelete(msgspec.Struct, tag="state-delete", tag_field="type", gc=False):
    """A state document to take away."""

    owner: OwnerName
    namespace: str
    id: WireInteger | None = None
    op: OpNumber | UnsetType = UNSET
    base: Base = UNSET
    force: bool = False
    on_conflict: OnConflict = "refuse"


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


Batched = (
    BatchedAppend | BatchedPatch | BatchedDelete | BatchedMetadataUpdate | BatchedStateUpdate | BatchedStateDelete
)


class Batch(msgspec.Struct, tag="batch", tag_field="type", gc=False):
    """Requests to one chat, carried out in order, all or nothing, as one commit.

    Each request has a `base` of its own or takes the batch's; bases are compared before
    the first request is carried out.
    """

    chat: str
    requests: Annotated[list[Batched], msgspec.Meta(min_length=1)]
    id: WireInteger | None = None
    op: OpNumber | UnsetType = UNSET
    base: Base = UNSET
    force: bool = False
    on_conflict: OnConflict = "refuse"


class Malformed(msgspec.Struct, gc=False):
    """A frame that could not be read beyond its owner and op: its refusal is an outcome (BEHAVIOUR O4)."""

    chat: str
    code: str
    message: str
    pointer: str | None
    body: bytes
    id: int | None = None
    op: int | UnsetType = UNSET


Write = Append | Patch | Delete | MetadataUpdate | StateUpdate | StateDelete | Batch
"""What can become a commit."""


class Open(msgspec.Struct, tag="open", tag_field="type", gc=False):
    """Subscribe to a chat and everything it owns, from `since` on."""

    chat: str
    since: Version | None
    id: WireInteger | None = None
    create: bool = False
    tail: WireInteger | UnsetType = UNSET
    """Only the last so many messages in the snapshot; `first` in `opened` says where they begin."""


class Close(msgspec.Struct, tag="close", tag_field="type", gc=False):
    """End a subscription."""

    chat: str
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
Request = Write | Read
