"""Save strategy: when what is in the log is folded into the files. Pure: values in, a moment and its reason out.

    debounce    so long after the last write; a burst is folded once, when it is over
    interval    so long after the first write that is not in the files, whatever comes: the autosave
    event       at once, when something happened that people look for in the file
    batch       at once, when so many commits wait
    sweep       now and then everything that still waits, whatever the other settings say

Rules of this module (BEHAVIOUR K2, K8):
- The earliest reason counts, but a chat never takes more than a twentieth of the time of its disk: after a checkpoint
  the next one waits 20 times what it took.
- Nothing here is about acknowledging: the log did that before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final, Literal

import msgspec

from tellback_protocol.effects import DeleteEffect, Effect, InsertEffect, MetadataEffect, PatchEffect, StateEffect
from tellback_protocol.generations import NAMESPACE as GENERATIONS

__all__ = ["EVENTS", "WORK_SHARE", "Dirt", "Reason", "Strategy", "events_of", "next_fold"]

WORK_SHARE: Final = 20
"""A checkpoint may take at most a twentieth of the time of its disk."""
Reason = Literal["debounce", "interval", "event", "batch", "sweep", "retry", "idle", "stop", "operation", "backup"]
"""Why a checkpoint is made: by this strategy, or because somebody needs the files now."""
EVENTS: Final = ("generation", "swipe", "edit", "delete", "metadata", "state", "close")
"""What can happen to a chat; the setting names those that are folded at once."""


class Strategy(msgspec.Struct, frozen=True, kw_only=True):
    """The settings."""

    debounce_s: float = 2.0
    interval_s: float = 5.0
    batch_commits: int = 4096
    """0: no number of commits is a reason."""
    sweep_s: float = 300.0
    events: frozenset[str] = frozenset(("generation", "swipe", "metadata", "close"))


class Dirt(msgspec.Struct, frozen=True, kw_only=True):
    """What waits for a chat's files. All moments are of one clock that never goes back."""

    since_s: float
    """When the oldest of it was written."""
    last_s: float
    """When the newest was, as far as anybody looked."""
    commits: int
    events: Collection[str] = ()
    folded_s: float = float("-inf")
    """When the last checkpoint ended, and how long it took."""
    work_s: float = 0.0


def next_fold(strategy: Strategy, dirt: Dirt, now_s: float) -> tuple[float, Reason]:
    """When to fold, now or later, if nothing else happens until then, and why."""
    due_s, reason = min(
        (dirt.since_s + strategy.interval_s, _INTERVAL), (dirt.last_s + strategy.debounce_s, _DEBOUNCE)
    )
    if strategy.batch_commits and dirt.commits >= strategy.batch_commits:
        due_s, reason = now_s, _BATCH
    if not strategy.events.isdisjoint(dirt.events):
        due_s, reason = now_s, _EVENT
    return max(due_s, now_s, dirt.folded_s + WORK_SHARE * dirt.work_s), reason


_INTERVAL: Final[Reason] = "interval"
_DEBOUNCE: Final[Reason] = "debounce"
_BATCH: Final[Reason] = "batch"
_EVENT: Final[Reason] = "event"


def events_of(effects: Iterable[Effect]) -> set[str]:
    """What a commit did, in the words of EVENTS. Appending is what a chat is for, and no event."""
    found: set[str] = set()
    for effect in effects:
        match effect:
            case PatchEffect():
                # An edit of a message with swipes changes the one that is shown, too.
                found.add("swipe" if b'"/swipe_id"' in bytes(effect.patch) else "edit")
            case DeleteEffect():
                found.add("delete")
            case InsertEffect():
                found.add("edit")
            case MetadataEffect():
                found.add("metadata")
            case StateEffect():
                found.add("generation" if effect.namespace == GENERATIONS else "state")
    return found
