"""A second opinion that does not believe the server's seqs: is there any order of the ops that explains what was seen?

Wing and Gong's search with Lowe's memory (`detangle.lin`), on the beginning of a run, document by document. A document
is a register that holds an integrity: a write with a base compares and sets, one without sets, a conflict reads, and so
does an `opened`. Which of two commits came first is for the search to find out.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from typing import Any, NamedTuple

from detangle.lin import INFO, OK, Model, Operation, check

from tests.checker.evidence import Evidence
from tests.checker.invariants import BEGINNING, CHAT, Case, documents_of
from tests.checker.notebook import Invocation, Notes
from tests.checker.turns import timeline
from tests.checker.workload import NAMESPACES

OPS_MAX = 400
"""Of one document: what is looked at."""
STEPS_MAX = 200_000
GONE = "gone "
"""Before the integrity of a commit that deleted the document."""


class Seen(NamedTuple):
    """One op on one document."""

    who: str
    kind: str
    base: str | None
    token: str | None
    """The integrity that it made, or saw."""
    invoked_s: float
    returned_s: float | None


class Document(Model):
    """The register."""

    name = "document"

    def __init__(self, first: str | None) -> None:
        self._first = first

    def init(self) -> str | None:
        return self._first

    def step(self, state: Any, op: Operation) -> tuple[bool, Any]:
        match op.f:
            case "set":
                return True, op.output
            case "compare-and-set":
                return op.arg == state, op.output
            case "make":
                return state is None or state.startswith(GONE), op.output
            case "conflict":
                return op.output == state and op.arg != state, state
        return op.output == state, state


def second_opinion(notes: Notes, evidence: Evidence) -> list[str]:
    """What no order explains; nothing where the search was given up."""
    case = Case(notes, evidence)
    problems = []
    # A turn may have touched any state; what of them, no frame tells.
    for document in (CHAT, *NAMESPACES) if not case.turned else (CHAT,):
        first = evidence.first["version"]["integrity"] if document == CHAT else None
        operations = _numbered(_window(sorted(_seen(case, document), key=lambda one: one.invoked_s)))
        try:
            result = check(operations, Document(first), budget=STEPS_MAX)
        except RuntimeError:
            continue
        if not result.ok:
            problems.append(f"no order of the ops explains what was seen of {document}: {result.explain()[:1500]}")
    return problems


def _seen(case: Case, document: str) -> Iterator[Seen]:
    tokens = _Tokens(case, document)
    for invocation in case.notes.invocations.values():
        yield from _seen_of(case, document, tokens, invocation)
    for version, commit in timeline(case.evidence):
        if document in documents_of(commit) if commit is not None and "by" not in commit else commit is None:
            yield Seen("server", "set", None, tokens.of(version["integrity"]), 0.0, None)
    if document == CHAT:
        asked: dict[str, float] = {}
        for event in case.notes.events:
            frame = event.get("frame", {})
            if event["what"] == "sent" and frame.get("type") == "open":
                asked[event["tab"]] = event["at"]
            elif event["what"] == "received" and frame["type"] == "opened":
                token = frame["version"]["integrity"]
                yield Seen(event["tab"], "read", None, token, asked[event["tab"]], event["at"])


def _seen_of(case: Case, document: str, tokens: _Tokens, invocation: Invocation) -> Iterator[Seen]:
    frame, outcome = invocation.frame, invocation.outcome
    at = invocation.tab, invocation.invoked_s, invocation.returned_s
    own = frame.get("namespace", CHAT) if frame["type"] != "batch" else None
    base = frame.get("base")
    if outcome is None or outcome["type"] == "error":
        return
    if outcome["type"] == "conflict":
        version = outcome.get("version")
        if own == document and version is not None and isinstance(base, str):
            token = tokens.of(version["integrity"])
            yield Seen(at[0], "conflict", tokens.of(base), token, at[1], at[2])
        return
    commit = case.by_op.get(invocation.key)
    if commit is None or document not in documents_of(commit):
        return
    token = tokens.of(commit["version"]["integrity"])
    free = frame.get("force") or frame.get("on_conflict") == "rebase" or own != document
    if free or isinstance(base, dict) or base == "*" or "base" not in frame or frame["type"].startswith("generation"):
        yield Seen(at[0], "set", None, token, at[1], at[2])
    elif base is None:
        yield Seen(at[0], "make", None, token, at[1], at[2])
    else:
        yield Seen(at[0], "compare-and-set", tokens.of(base), token, at[1], at[2])


class _Tokens:
    """What the register holds after each commit; a base may name a later commit that left the document alone."""

    def __init__(self, case: Case, document: str) -> None:
        self._case = case
        self._places = case.touched.get(document, [])
        self._tokens: dict[int, str] = {BEGINNING: case.evidence.first["version"]["integrity"]}
        for place, (version, commit) in enumerate(timeline(case.evidence)):
            gone = commit is not None and any(
                effect.get("namespace") == document and effect.get("deleted") for effect in commit["ops"]
            )
            self._tokens[place] = (GONE if gone else "") + version["integrity"]

    def of(self, integrity: str) -> str | None:
        place = self._case.place_of.get(integrity)
        if place is None:
            return integrity
        at = bisect.bisect_right(self._places, place)
        return self._tokens.get(self._places[at - 1]) if at else None


def _window(seen: list[Seen]) -> list[Seen]:
    """The first ops. What had not returned when the window ends may have happened or not."""
    if len(seen) <= OPS_MAX:
        return seen
    end_s = seen[OPS_MAX].invoked_s
    chosen = []
    for one in seen[:OPS_MAX]:
        if one.returned_s is not None and one.returned_s > end_s:
            if one.kind in ("conflict", "read"):
                continue
            one = one._replace(returned_s=None)
        chosen.append(one)
    return chosen


def _numbered(seen: list[Seen]) -> list[Operation]:
    """Times become the numbers of events."""
    calls = [(one.invoked_s, 0, number) for number, one in enumerate(seen)]
    returns = [(one.returned_s, 1, number) for number, one in enumerate(seen) if one.returned_s is not None]
    operations = [Operation(number, one.who, one.kind, one.base, 0, one.invoked_s) for number, one in enumerate(seen)]
    for tick, (_at, is_return, number) in enumerate(sorted(calls + returns), 1):
        operation = operations[number]
        operation.output, operation.status = seen[number].token, OK
        if is_return:
            operation.ret = tick
        else:
            operation.call = tick
    for operation in operations:
        if operation.ret is None:
            operation.status = INFO
    return operations
