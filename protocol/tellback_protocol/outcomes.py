"""Outcomes: what the ops of sessions on one owner were answered with, kept small.

Rules of this module (BEHAVIOUR O2, O7, O11):
- An outcome is kept with its op number; what is kept of a long one is its short form.
- A commit that tells its own outcome is kept as that: an op is seldom sent again.
- Bounds are in numbers and in bytes: 1 KiB an outcome, 256 a session, 16,384 outcomes and 4,096 sessions an owner.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec

from .ids import Version

OUTCOMES_MAX = 256
"""Outcomes kept per session and owner."""
OUTCOME_BYTES_MAX = 1024
"""A longer answer is kept without what it carries of the effects (BEHAVIOUR O11)."""
OWNER_OUTCOMES_MAX = 16_384
OWNER_SESSIONS_MAX = 4096
"""Outcomes and sessions kept per owner; of the sessions that were not used for longest the fewest."""
SESSION_KEPT_MS = 30 * 24 * 3600 * 1000


class Outcome(msgspec.Struct, gc=False):
    """The stored answer to one op: `body` is the answer without its envelope (type, id, owner, op)."""

    kind: str
    """`ack`, `conflict` or `error`."""
    fingerprint: int
    body: bytes
    integrity: str | None = None
    """What `{"op": n}` stands for when it is an ack: the commit, or the base of a commit that was rebased."""

    def outcome(self) -> Outcome:
        """Itself. See Telling."""
        return self


class Telling(Protocol):
    """What an outcome can be made of: itself, or the commit of a plain append."""

    def outcome(self) -> Outcome: ...


_SHORT = b',"resync":true'
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def shortened(outcome: Outcome) -> Outcome:
    """As it is kept when it is long: an ack without its effects, then without its ids; an error with a shorter text."""
    if outcome.kind == "conflict":
        return outcome
    members = _members(b"{" + outcome.body + b"}")
    if outcome.kind == "error":
        text = msgspec.json.decode(members["message"], type=str)
        members = {name: members[name] for name in ("code", "message", "retry")}
        members["message"] = msgspec.Raw(msgspec.json.encode(text[: OUTCOME_BYTES_MAX // 8]))
        return Outcome(outcome.kind, outcome.fingerprint, msgspec.json.encode(members)[1:-1], outcome.integrity)
    for name in ("ops", "messages", "linked_from"):
        members.pop(name, None)
        body = msgspec.json.encode(members)[1:-1] + _SHORT
        if len(body) <= OUTCOME_BYTES_MAX:
            break
    return Outcome(outcome.kind, outcome.fingerprint, body, outcome.integrity)


def is_short(outcome: Outcome) -> bool:
    """Whether the answer was longer than what is kept of it."""
    return outcome.kind == "ack" and outcome.body.endswith(_SHORT)


def version_of(outcome: Outcome) -> Version:
    """Of an ack."""
    return msgspec.json.decode(_members(b"{" + outcome.body + b"}")["version"], type=Version)


class SessionOps:
    """What one session did to one owner: contiguous numbers from 1, the last outcomes."""

    __slots__ = ("_kept", "last", "used_ms")

    def __init__(self, last: int = 0, used_ms: int = 0) -> None:
        self.last = last
        self._kept: deque[Telling | None] = deque(maxlen=OUTCOMES_MAX)
        """Of the last ops, up to `last`; None where the outcome is not known."""
        self.used_ms = used_ms

    def outcome(self, op: int) -> Outcome | None:
        """Of an op; None when it is not kept, or not known."""
        kept = self._kept
        place = len(kept) - 1 - self.last + op
        found = kept[place] if 0 <= place < len(kept) else None
        return None if found is None else found.outcome()

    def outcomes(self) -> Iterator[tuple[int, Outcome]]:
        """All that are kept, with their ops, oldest first."""
        for op, found in enumerate(self._kept, self.last - len(self._kept) + 1):
            if found is not None:
                yield op, found.outcome()

    @property
    def count(self) -> int:
        """How many are kept."""
        return len(self._kept)

    def add(self, op: int, outcome: Outcome, now_ms: int) -> None:
        """Store the outcome of the next op, or of a later one: of those between nothing is known."""
        if op > self.last + 1:
            self._kept.extend([None] * min(op - self.last - 1, OUTCOMES_MAX))
        self.last = op
        self.used_ms = now_ms
        self._kept.append(outcome if len(outcome.body) <= OUTCOME_BYTES_MAX else shortened(outcome))

    def add_short(self, told: Sequence[Telling], now_ms: int) -> None:
        """`add` for those of the next ops, none of which is long."""
        self._kept.extend(told)
        self.last += len(told)
        self.used_ms = now_ms

    def forget(self) -> None:
        """All outcomes; the last number stays."""
        self._kept.clear()


def bound_outcomes(sessions: dict[str, SessionOps], now_ms: int) -> None:
    """Forget sessions that were not used for 30 days, and the least used beyond what is kept of an owner. A session
    whose outcomes are forgotten is still known by its last number. Cost: the sessions, sorted.
    """
    kept = outcomes = 0
    for session, ops in sorted(sessions.items(), key=lambda item: item[1].used_ms, reverse=True):
        outcomes += ops.count
        if kept >= OWNER_SESSIONS_MAX or 0 < ops.used_ms <= now_ms - SESSION_KEPT_MS:
            del sessions[session]
            continue
        kept += 1
        if outcomes > OWNER_OUTCOMES_MAX:
            ops.forget()
