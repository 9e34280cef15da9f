"""Thinning: which backups stay as they grow old, and which go when there is no room. Pure: values in, values out.

Rules of this module (BEHAVIOUR Z5, Z6):
- All of the last hour stay, then the last one of each hour for a day, of each day for a month, of each month after.
- The newest is never thinned. What is thinned now would be thinned later too, so that it does not matter how often,
  or when, this is done: the last of a month is the last of its day, and that one the last of its hour.
- Hours, days and months are those of UTC: a change of the time zone thins nothing.
- For want of room the oldest of all owners goes first, and never an owner's last one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

__all__ = ["Crowd", "Policy", "Stored", "kept", "make_room"]

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How long backups stand how close together."""

    all_s: float = 3_600.0
    hourly_s: float = 86_400.0
    daily_s: float = 30 * 86_400.0


def kept(taken_ms: Iterable[int], now_ms: int, policy: Policy) -> set[int]:
    """Which of the moments stay. Cost: their number."""
    last: dict[tuple[str, int], int] = {}
    staying: set[int] = set()
    newest: int | None = None
    for moment in taken_ms:
        newest = moment if newest is None else max(newest, moment)
        age_s = (now_ms - moment) / 1000
        if age_s < policy.all_s:
            # One from the future too: a clock that was set back thins nothing.
            staying.add(moment)
            continue
        if age_s < policy.hourly_s:
            bucket = "hour", moment // HOUR_MS
        elif age_s < policy.daily_s:
            bucket = "day", moment // DAY_MS
        else:
            bucket = "month", _month(moment)
        last[bucket] = max(last.get(bucket, moment), moment)
    staying.update(last.values())
    if newest is not None:
        staying.add(newest)
    return staying


def _month(moment_ms: int) -> int:
    try:
        then = datetime.fromtimestamp(moment_ms / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        # No date that a calendar knows: such a name was not given by a clock.
        return moment_ms // (30 * DAY_MS)
    return then.year * 12 + then.month


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A backup as far as room is concerned. Files may be shared with other backups of the same owner."""

    owner: str
    taken_ms: int
    name: str
    files: Mapping[str, int]
    """Sizes by name."""


class Crowd(msgspec.Struct, frozen=True):
    """What has to go, oldest first, and what is left."""

    going: list[Stored]
    size_bytes: int
    """Of what stays; above the bound when only last ones are left."""


def make_room(backups: Sequence[Stored], size_bytes_max: int) -> Crowd:
    """What goes so that the rest fits. Cost: n log n."""
    shares: Counter[tuple[str, str]] = Counter()
    sizes: dict[tuple[str, str], int] = {}
    left: Counter[str] = Counter()
    for backup in backups:
        left[backup.owner] += 1
        for file, size_bytes in backup.files.items():
            shares[backup.owner, file] += 1
            sizes[backup.owner, file] = size_bytes
    total = sum(sizes.values())
    going: list[Stored] = []
    for backup in sorted(backups, key=lambda one: (one.taken_ms, one.owner, one.name)):
        if total <= size_bytes_max:
            break
        if left[backup.owner] == 1:
            continue
        left[backup.owner] -= 1
        going.append(backup)
        for file in backup.files:
            shares[backup.owner, file] -= 1
            if not shares[backup.owner, file]:
                total -= sizes[backup.owner, file]
    return Crowd(going, total)
