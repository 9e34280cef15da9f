"""Outcomes: what the ops of sessions on one owner were answered with, kept small.

Rules of this module (BEHAVIOUR O2, O7, O11):
- An outcome is kept with its op number; what is kept of a long one is its short form.
- Bounds are in numbers and in bytes: 1 KiB an outcome, 256 a session, 16,384 outcomes and 4,096 sessions an owner.
"""

from __future__ import annotations

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

    __slots__ = ("last", "outcomes", "used_ms")

    def __init__(self, last: int = 0, used_ms: int = 0) -> None:
        self.last = last
        self.outcomes: dict[int, Outcome] = {}
        self.used_ms = used_ms

    def add(self, op: int, outcome: Outcome, now_ms: int) -> None:
        """Store the outcome of the next op."""
        self.last = op
        self.used_ms = now_ms
        self.outcomes[op] = outcome if len(outcome.body) <= OUTCOME_BYTES_MAX else shortened(outcome)
        # Numbers are contiguous, so the oldest kept is known; looking for the first key of a dict is not free.
        self.outcomes.pop(op - OUTCOMES_MAX, None)

    def add_short(self, outcomes: list[Outcome], now_ms: int) -> None:
        """`add` for those of the next ops, none of which is long."""
        op = self.last
        kept = self.outcomes
        for outcome in outcomes:
            op += 1
            kept[op] = outcome
            kept.pop(op - OUTCOMES_MAX, None)
        self.last = op
        self.used_ms = now_ms


def bound_outcomes(sessions: dict[str, SessionOps], now_ms: int) -> None:
    """Forget sessions that were not used for 30 days, and the least used beyond what is kept of an owner. A session
    whose outcomes are forgotten is still known by its last number. Cost: the sessions, sorted.
    """
    kept = outcomes = 0
    for session, ops in sorted(sessions.items(), key=lambda item: item[1].used_ms, reverse=True):
        outcomes += len(ops.outcomes)
        if kept >= OWNER_SESSIONS_MAX or 0 < ops.used_ms <= now_ms - SESSION_KEPT_MS:
            del sessions[session]
            continue
        kept += 1
        if outcomes > OWNER_OUTCOMES_MAX:
            ops.outcomes.clear()
