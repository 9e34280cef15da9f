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
from .values import servable

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


class FloorCommitAdded(msgspec.Struct, omit_defaults=True, gc=False):
    """A commit that stands in a floor state's log from here on: at the end, or behind `after` (null: first)."""

    commit: AnyJson
    after: str | UnsetType | None = UNSET


class FloorLogChange(msgspec.Struct, omit_defaults=True, gc=False):
    """What happened to a floor state's log; in the server's own log only. Commits are named by id."""

    add: list[FloorCommitAdded] = []
    remove: list[str] = []
    swipes: dict[str, int] = {}
    """Commits whose swipe has another ordinal now."""
    reset: bool | UnsetType = UNSET
    """The log begins anew with this."""


class SkippedCommit(msgspec.Struct, gc=False):
    """A commit of a floor state that is shown and does not fit; it is kept. `message` is null for the base."""

    commit: str
    message: str | None
    swipe: int


class FloorEffect(StateEffect, tag="floor", tag_field="op", gc=False):
    """A floor state: its document as in `state`, and what happened to its log `<namespace>__floor_log`, which has the
    same version.
    """

    skipped: list[SkippedCommit] | UnsetType = UNSET
    """All commits that are skipped now, when that changed."""
    log: FloorLogChange | UnsetType = UNSET


class RenamedEffect(msgspec.Struct, tag="renamed", tag_field="op", gc=False):
    """The owner has this name from here on, and is there. What came out of the trash has one too.

    `to` is its one text: as `chat` names it, `character:<character>` or `preset:<folder>/<preset>`.
    """

    to: str


class DeletedEffect(msgspec.Struct, tag="deleted", tag_field="op", gc=False):
    """The owner is in the trash; nothing more comes of it."""


Effect = (
    AppendEffect | InsertEffect | PatchEffect | DeleteEffect | MetadataEffect | StateEffect | FloorEffect
    | RenamedEffect | DeletedEffect
)
"""The closed set."""
ChatEffect = AppendEffect | InsertEffect | PatchEffect | DeleteEffect | MetadataEffect
"""What changes the chat document itself; the others leave its version alone (BEHAVIOUR V3)."""

_encode = msgspec.json.Encoder().encode


def encode_effects(effects: list[Effect]) -> bytes:
    """As log and wire hold them: half a surrogate of a user's old line goes as it is served (BEHAVIOUR F5, W4)."""
    data = _encode(effects)
    return servable(data) if b"\\u" in data else data


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


def versions_chat(commit: Commit) -> bool:
    """Whether the chat document has its version from this commit: it changed the chat, or the chat began with it."""
    begins = commit.version.seq == 1 and not commit.ops and commit.by is None
    return begins or any(isinstance(effect, ChatEffect) for effect in commit.ops)


_decode_commit = msgspec.json.Decoder(Commit).decode


def decode_commit(record: bytes) -> Commit:
    """A commit in the log; those of earlier versions may hold half a surrogate. Raises msgspec.MsgspecError."""
    try:
        return _decode_commit(record)
    except msgspec.DecodeError:
        return _decode_commit(servable(record))
