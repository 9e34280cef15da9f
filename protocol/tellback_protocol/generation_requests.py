"""What a client asks about generations: replies that are still being written.

Rules of this module:
- Start, end and cancel are writes with an op number; text, attaching and acknowledging have none and may be sent again.
- Offsets and lengths count UTF-16 units, as browsers do.
- `mes` and `content` of a reply come as deltas; the other fields come with the start, the end, or both.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType

from .fields import Numbered, ObjectJson, Rebasable, WireInteger

GenerationId = Annotated[str, msgspec.Meta(pattern="^[!-~]{1,64}$", description="1 to 64 printable ASCII characters.")]
LeaseSeconds = Annotated[int, msgspec.Meta(ge=1, le=300)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class GenerationTarget(msgspec.Struct, frozen=True, gc=False):
    """Where the reply goes: a message of its own, one more swipe of `message`, or the end of its text."""

    kind: Literal["message", "swipe", "continue"] = "message"
    message: str | UnsetType = UNSET
    """For `swipe` and `continue`."""


class GenerationError(msgspec.Struct, frozen=True, gc=False):
    """Why a generation failed, in words for people."""

    code: Annotated[str, msgspec.Meta(max_length=64)]
    message: Annotated[str, msgspec.Meta(max_length=2000)]


class GenerationStart(Rebasable, tag="generation-start", tag_field="type", gc=False):
    """Store the user's turn and reserve the place of the reply. The session that starts it produces its text."""

    chat: str
    generation: GenerationId
    messages: list[ObjectJson] = msgspec.field(default_factory=list)
    """The user's turn; only for a reply that is a message of its own."""
    target: GenerationTarget = GenerationTarget()
    reply: ObjectJson | UnsetType = UNSET
    """Fields of the reply: `name`, `extra`, ..."""
    supersedes: GenerationId | UnsetType = UNSET
    """The generation that this one is another try of."""
    lease_s: LeaseSeconds | UnsetType = UNSET
    """How long the generation waits for a producer that is gone; else the server's own."""


class GenerationEnd(Numbered, tag="generation-end", tag_field="type", gc=False):
    """The text is complete: store it. With `error` it failed, and what there is of it is stored."""

    chat: str
    generation: GenerationId
    reply: ObjectJson | UnsetType = UNSET
    """Fields that are added to those of the start, or replace them; a text in it replaces the text of the deltas."""
    length: WireInteger | UnsetType = UNSET
    """Of the text of all deltas; when the server has less it answers `generation-gap`."""
    reasoning_length: WireInteger | UnsetType = UNSET
    error: GenerationError | UnsetType = UNSET


class GenerationCancel(Numbered, tag="generation-cancel", tag_field="type", gc=False):
    """Stop, from any tab: what there is of the text is stored."""

    chat: str
    generation: GenerationId


class Generate(Rebasable, tag="generate", tag_field="type", gc=False):
    """As `generation-start`; the server produces the text from a model."""

    chat: str
    generation: GenerationId
    upstream: str
    """Name of a model server that this server knows."""
    body: ObjectJson
    """What the model is asked, as its own API takes it."""
    messages: list[ObjectJson] = msgspec.field(default_factory=list)
    target: GenerationTarget = GenerationTarget()
    reply: ObjectJson | UnsetType = UNSET
    supersedes: GenerationId | UnsetType = UNSET


GenerationWrite = GenerationStart | GenerationEnd | GenerationCancel | Generate


class GenerationDelta(msgspec.Struct, tag="generation-delta", tag_field="type", gc=False):
    """Text of a generation from `offset` on; what overlaps the text there is must be equal to it."""

    chat: str
    generation: GenerationId
    offset: WireInteger = 0
    text: str = ""
    reasoning_offset: WireInteger = 0
    reasoning: str = ""
    id: WireInteger | None = None
    """Of the `error`, if there is one; a delta that fits has no answer."""


class Salvage(msgspec.Struct, omit_defaults=True, gc=False):
    """Text and reasoning that a tab holds and a crash took from the server."""

    offset: WireInteger
    text: str
    prefix_sha256: Sha256
    """Of the UTF-8 bytes of the text before `offset`."""
    reasoning_offset: WireInteger = 0
    reasoning: str = ""
    reasoning_prefix_sha256: Sha256 | UnsetType = UNSET
    """As `prefix_sha256`, of the reasoning; with `reasoning` always."""


class GenerationAttach(msgspec.Struct, tag="generation-attach", tag_field="type", gc=False):
    """Hear the text so far, and then what comes; the chat must be open."""

    chat: str
    generation: GenerationId
    salvage: Salvage | UnsetType = UNSET
    id: WireInteger | None = None


class GenerationAck(msgspec.Struct, tag="generation-ack", tag_field="type", gc=False):
    """This session holds the result, at the version with this integrity."""

    chat: str
    generation: GenerationId
    integrity: str
    id: WireInteger | None = None
