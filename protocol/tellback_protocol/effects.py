"""What a commit did, fully written out: a closed set, installed by everybody alike.

Rules of this module:
- An effect names messages by id, never by index.
- An effect never fails: `test` operations and every check were done by `decide` (BEHAVIOUR E1).
- Payloads stay the bytes that came in; nobody serialises them again.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Raw, UnsetType

from .ids import Version

MessageJson = Annotated[Raw, msgspec.Meta(description="A message: a JSON object with a permanent `id`.",
                                          extra_json_schema={"type": "object"})]
PatchJson = Annotated[Raw, msgspec.Meta(description="RFC 6902 operations.",
                                        extra_json_schema={"type": "array", "items": {"type": "object"}})]
AnyJson = Annotated[Raw, msgspec.Meta(description="Any JSON value.")]


class AppendEffect(msgspec.Struct, tag="append", tag_field="op", gc=False):
    """Messages, each with its id, at the end."""

    messages: list[MessageJson]


class InsertEffect(msgspec.Struct, tag="insert", tag_field="op", gc=False):
    """Messages, each with its id, behind the message `after`; null means at the beginning."""

    after: str | None
    messages: list[MessageJson]


class PatchEffect(msgspec.Struct, tag="patch", tag_field="op", gc=False):
    """RFC 6902 without `test`, relative to one message."""

    message: str
    patch: PatchJson


class DeleteEffect(msgspec.Struct, tag="delete", tag_field="op", gc=False):
    """Messages that are gone, by id."""

    messages: list[str]


class MetadataEffect(msgspec.Struct, tag="metadata", tag_field="op", gc=False):
    """RFC 6902 without `test`, relative to the chat's metadata."""

    patch: PatchJson


class StateEffect(msgspec.Struct, tag="state", tag_field="op", gc=False):
    """A state document: exactly one of `data`, `patch`, `deleted`; none of them when the data is too large to travel.

    `previous` is the integrity of the document before, null when there was none.
    """

    namespace: str
    version: Version
    previous: str | None
    data: AnyJson | UnsetType = UNSET
    patch: PatchJson | UnsetType = UNSET
    deleted: bool | UnsetType = UNSET


class RenamedEffect(msgspec.Struct, tag="renamed", tag_field="op", gc=False):
    """The owner has this name from here on, and is there: `to` as `chat` names it, or the name alone of a character
    or preset. What came out of the trash has one too.
    """

    to: str


class DeletedEffect(msgspec.Struct, tag="deleted", tag_field="op", gc=False):
    """The owner is in the trash; nothing more comes of it."""


Effect = (
    AppendEffect | InsertEffect | PatchEffect | DeleteEffect | MetadataEffect | StateEffect | RenamedEffect
    | DeletedEffect
)
"""The closed set. `floor` joins it with floor state."""
ChatEffect = AppendEffect | InsertEffect | PatchEffect | DeleteEffect | MetadataEffect
"""What changes the chat document itself; the others leave its version alone (BEHAVIOUR V3)."""

encode_effects = msgspec.json.Encoder().encode
decode_effects = msgspec.json.Decoder(list[Effect]).decode


class Author(msgspec.Struct, gc=False):
    """Who made a commit: `session` and number of the op."""

    session: str
    op: int


class Commit(msgspec.Struct, gc=False):
    """One or more ops of one owner accepted together: one log record, one `integrity` frame.

    In the log a commit carries more than on the wire: `fingerprint` of the request, `undo` (effects that lead back),
    `was` (CRC-32 of the lines a patch or deletion was made from, by message id) and `rebased_from`.
    """

    version: Version
    previous: str
    ops: list[Effect]
    by: Author | None = None
    fingerprint: int | None = None
    rebased_from: str | None = None
    """The base that the request named, when others had come between."""
    plain: bool = False
    """True when the ack carries no `ops`: the effects are what was asked."""
    undo: list[Effect] = []
    was: dict[str, int] = {}
    told: Raw = Raw(b"")
    """What else the ack says, as one JSON object; empty when nothing."""


decode_commit = msgspec.json.Decoder(Commit).decode
