"""One generation as a client knows it: its text so far, what became of it, and of own text how much was sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from tellback_protocol.generation_requests import GenerationError, GenerationTarget
from tellback_protocol.generations import Running
from tellback_protocol.ids import Version

from .errors import RefusedError

__all__ = ["Followed", "GenerationResult", "Place", "Sending"]

Place = tuple[int, int]
"""Units of the text, units of the reasoning."""


class GenerationResult(msgspec.Struct, frozen=True):
    """What became of a generation. The chat holds it."""

    state: Literal["running", "stored", "cancelled", "failed", "orphaned"]
    """`stored`: complete; `cancelled`: somebody stopped it; `failed`: see `error`; `orphaned`: its producer died."""
    version: Version
    """Of the commit that ended it; a later one when this client heard of it later."""
    integrity: str
    """Of the commit that ended it."""
    is_stored: bool
    """The chat holds what there was of the text, also of one that was stopped or failed."""
    message: str | None = None
    """Id of the message that holds the text; None when there was none."""
    swipe: int | None = None
    """The swipe of that message that holds it; None when it is the message."""
    error: GenerationError | None = None


class Sending:
    """How far own text has gone."""

    __slots__ = ("is_aligned", "is_closing", "is_fresh", "is_over", "paused_until_s", "refusal", "sent", "sent_at_s")

    def __init__(self) -> None:
        self.sent: Place = (0, 0)
        """On this connection, or there before."""
        self.sent_at_s = 0.0
        self.paused_until_s = 0.0
        """The server has no room for more until then."""
        self.is_aligned = False
        """`sent` is what the server has on this connection, or will have."""
        self.is_fresh = False
        """It is resumed, and the server has not said yet what there is: that is taken for ours."""
        self.is_closing = False
        """The end was asked for: nothing is held back, and nothing more comes."""
        self.is_over = False
        """The server does not know it as running."""
        self.refusal: RefusedError | None = None
        """Why the server takes no more of it."""

    def can_send(self, now_s: float) -> bool:
        """True when text may go out now."""
        return self.is_aligned and not self.is_over and self.refusal is None and now_s >= self.paused_until_s


class Followed:
    """See the module. Changed by `Generations` alone, and by `push` of its producer."""

    __slots__ = (
        "by", "durable", "error", "gave_up", "id", "is_attaching", "message", "offered", "result", "running",
        "salvaged", "sending", "supersedes", "target", "watchers",
    )

    def __init__(self, one_id: str, target: GenerationTarget, message: str, by: str, supersedes: str | None) -> None:
        self.id = one_id
        self.target = target
        self.message = message
        """The id that is reserved for the reply, or of the message that gets it."""
        self.by = by
        self.supersedes = supersedes
        self.running = Running()
        self.durable = 0
        """Units of the text that survive a crash of the server."""
        self.result: GenerationResult | None = None
        self.error: Exception | None = None
        """Why nothing more will be heard of it."""
        self.offered = False
        """It had ended when this session came back, which had not acknowledged it."""
        self.sending: Sending | None = None
        """Set when its text comes from this client."""
        self.is_attaching = False
        self.salvaged: Place | None = None
        """Where what the server still has ends, when it has less than is known here and is given the rest back."""
        self.gave_up = False
        """The server did not take what it was given back: what it has is taken for ours."""
        self.watchers: list[Callable[[], None]] = []
        """Called in the step that changed something; they must not wait and must not fail."""

    @property
    def is_over(self) -> bool:
        """Nothing more comes."""
        return self.result is not None or self.error is not None

    @property
    def place(self) -> Place:
        """Where the text ends."""
        return self.running.text.units, self.running.reasoning.units

    def changed(self) -> None:
        """Wake whoever waits."""
        for watcher in list(self.watchers):
            watcher()
