"""Bases: is the version that a write was made against still the version of its document?

Rules of this module (BEHAVIOUR B1-B12):
- A missing base is an error, never "skip the check".
- A base may name any commit of the stream since which nobody touched the document.
- `"*"` is for writes whose result does not depend on what is there.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import UnsetType

from .decision import Conflicting
from .errors import Refused
from .fields import Base, OpBase
from .ids import WIRE_INTEGER_MAX, Version, is_integrity
from .outcomes import Outcome
from .past import Past, author_of, overlap
from .stream import StateDocument, Stream

Places = Callable[[int], bool]
"""Whether a request's indexes lie among so many first messages."""
_OWNER = ""
"""Stands for the owner as a whole where a namespace is expected; no namespace is empty."""


class Bases:
    """Compares bases with documents, before the first effect of a request is worked out."""

    __slots__ = ("_missed_most", "force", "forced", "rebase", "rebased_from", "session", "stream")

    def __init__(self, stream: Stream, session: str, force: bool, rebase: bool) -> None:
        self.stream = stream
        self.session = session
        self.force = force
        self.forced = False
        """A base did not hold, and `force` overwrites what came between."""
        self.rebase = rebase
        self.rebased_from: str | None = None
        """The base of a rebased request, the oldest one of a batch; None when every base held."""
        self._missed_most = 0

    def check_chat(
        self, base: Base, targets: tuple[str, ...], any_allowed: bool, places: Places | None = None
    ) -> None:
        """The chat's own document: metadata and messages. `places` is of a request that names messages by index."""
        if base == "*":
            if not any_allowed:
                raise Refused(
                    "base-illegal",
                    'base "*" is for writes whose result does not depend on what is there: append, merge, and a patch '
                    "that tests every path before it replaces or removes it.",
                    pointer="/base",
                )
            return
        self._check(base, self.stream.chat.version, None, targets, places)

    def check_state(self, base: Base, namespace: str, document: StateDocument | None, any_allowed: bool) -> None:
        """One state document; a base of null means that there must be none."""
        if base == "*":
            if not any_allowed:
                raise Refused("base-illegal", 'base "*" is for merge; name a version or null.', pointer="/base")
            return
        exists = document is not None and document.exists
        version = document.version if document is not None else None
        if base is None:
            if exists and not self.force:
                raise Conflicting(version, None, namespace)
            self.forced = self.forced or exists
            return
        self._check(base, version, namespace, (f"s:{namespace}",))

    def check_owner(self, base: Base) -> None:
        """The owner as a whole, which has its name; `"*"` is whatever name that is now."""
        if base != "*":
            self._check(base, self.stream.head, _OWNER, ("o:",))

    def _check(
        self, base: Base, version: Version | None, namespace: str | None, targets: tuple[str, ...],
        places: Places | None = None,
    ) -> None:
        if isinstance(base, UnsetType):
            raise Refused(
                "base-required",
                "Name the version this was made against: an integrity, or what the page on bases says.",
                pointer="/base",
            )
        if base is None:
            raise Refused("base-illegal", "A base of null is for a state that must not exist yet.", pointer="/base")
        own_ops = 0
        known: str
        if isinstance(base, OpBase):
            outcome = self._ack_of(base)
            assert outcome.integrity is not None, "an ack has one"
            known = outcome.integrity
            own_ops = base.op
        else:
            known = base
        if version is not None and known == version.integrity:
            return
        if not is_integrity(known):
            raise Refused("base-illegal", 'A base is an integrity, null, "*" or {"op": number}.', pointer="/base")
        found = self.stream.since_integrity(known)
        missed = None if found is None else list(found)
        places_hold = places is None or (missed is not None and self._places_hold(_touched(missed), places))
        if missed is not None and own_ops and _overlapping(_touched(missed), targets):
            # What this session did up to the op that the base names is no news to it.
            missed = [past for past in missed if not self._is_own(past, own_ops)]
        touched = None if missed is None else _touched(missed)
        if touched is not None and version is not None and not _touches(touched, namespace):
            # The base is a later commit of this stream that left the document alone.
            return
        if self.force and places_hold:
            self.forced = True
            return
        if self.rebase and places_hold and touched is not None and not _overlapping(touched, targets):
            others = missed is not None and any(not self._is_own(past, WIRE_INTEGER_MAX) for past in missed)
            if others and missed is not None and len(missed) > self._missed_most:
                self._missed_most = len(missed)
                self.rebased_from = known
            return
        raise Conflicting(version, None if touched is None else known, namespace or None)

    def _places_hold(self, touched: list[str], places: Places) -> bool:
        """Whether indexes mean the messages that they meant before those commits (BEHAVIOUR B12)."""
        if "i" in touched or "d" in touched:
            return False
        appended = touched.count("a")
        return not appended or places(len(self.stream.chat.messages) - appended)

    def _ack_of(self, base: OpBase) -> Outcome:
        """The ack of my op `base.op`. What it vouches for is its version, or its own base when others came between
        (BEHAVIOUR B6)."""
        ops = self.stream.sessions.get(self.session)
        outcome = None if ops is None else ops.outcome(base.op)
        if outcome is None:
            raise Refused("base-illegal", f"The outcome of op {base.op} is not known.", pointer="/base/op")
        if outcome.kind != "ack" or outcome.integrity is None:
            raise Refused("parent-refused", f"Op {base.op} made no version: it was refused.", pointer="/base/op")
        return outcome

    def _is_own(self, past: Past, own_ops: int) -> bool:
        if not own_ops:
            return False
        by = author_of(past)
        return by is not None and by.session == self.session and by.op <= own_ops


def _touched(missed: list[Past]) -> list[str]:
    return [target for past in missed for target in past.targets]


def _touches(touched: list[str], namespace: str | None) -> bool:
    if namespace is not None:
        return ("o:" if namespace == _OWNER else f"s:{namespace}") in touched
    return any(not target.startswith(("s:", "o:")) for target in touched)


def _overlapping(touched: list[str], targets: tuple[str, ...]) -> bool:
    return any(overlap(mine, theirs) for mine in targets for theirs in touched)
