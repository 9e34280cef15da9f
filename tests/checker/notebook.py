"""The notebook: what every tab sent and received, and when, in a file of the process that is not the server.

One JSON object a line: `at` (monotonic seconds), `tab`, `what`, and the frame or what else belongs to it.

    connected   a connection got its welcome; `session`
    sent        noted before the frame is sent; `probe` is true when a number is used again for another body on purpose
    received    noted when the frame was read, before anything is done with it
    chaos       what was done to the server; `tab` is empty
    edited      another program has edited the chat's file; `text` is what it added
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Frame = dict[str, Any]
Key = tuple[str, int]
"""Session and number of an op."""
OUTCOMES = ("ack", "conflict")


class Notebook:
    """Takes notes. A line is handed to the system at once: the end of a server does not take it along."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a", buffering=1)
        self.answers = 0
        """How many outcomes were received; the chaos waits for them."""
        self.made: set[str] = set()
        """The ids of chats that were made of the chat."""

    def note(self, tab: str, what: str, **fields: Any) -> None:
        if what == "received" and "branch" in fields["frame"]:
            self.made.add(fields["frame"]["branch"]["chat_id"])
        self._file.write(json.dumps({"at": time.monotonic(), "tab": tab, "what": what, **fields}) + "\n")

    def close(self) -> None:
        self._file.close()


@dataclass
class Invocation:
    """One op, from its first sending on."""

    key: Key
    frame: Frame
    tab: str
    invoked_s: float
    sendings: int = 0
    answers: list[tuple[float, Frame]] = field(default_factory=list)
    """Outcomes as they were received: one, or several of a resent op."""

    @property
    def returned_s(self) -> float | None:
        return self.answers[0][0] if self.answers else None

    @property
    def outcome(self) -> Frame | None:
        """The first answer that used up the number; None while it is not known."""
        return self.answers[0][1] if self.answers else None

    @property
    def is_acked(self) -> bool:
        return self.outcome is not None and self.outcome["type"] == "ack"


@dataclass
class Notes:
    """A notebook that was read."""

    events: list[dict[str, Any]]
    invocations: dict[Key, Invocation]
    probes: list[tuple[Key, Frame, Frame | None]]
    """Reused numbers: the op, the other body, the answer."""
    sessions: dict[str, str]
    """Of each tab; it keeps its session for the whole run."""

    @property
    def is_edited(self) -> bool:
        """Whether anybody did what begins an epoch."""
        return any(event["what"] == "edited" for event in self.events) or any(
            invocation.frame["type"] == "backup-restore" for invocation in self.invocations.values()
        )


def is_outcome(frame: Frame) -> bool:
    """Whether an answer uses up the number of its op."""
    if frame["type"] == "error":
        return bool(frame.get("retry") == "never" and frame["code"] not in NOT_OUTCOMES)
    return frame["type"] in OUTCOMES


NOT_OUTCOMES = ("op-mismatch", "op-forgotten", "op-gap", "not-found", "deleted", "renamed")
"""Errors of the retry class `never` that are not stored: they are about the number or the place."""


def read(lines: Iterable[str]) -> Notes:
    """The notes of a run, by op."""
    events = [json.loads(line) for line in lines]
    invocations: dict[Key, Invocation] = {}
    probes: list[tuple[Key, Frame, Frame | None]] = []
    asked: dict[tuple[str, int], int] = {}
    session_of: dict[str, str] = {}
    for event in events:
        if event["what"] == "connected":
            session_of[event["tab"]] = event["session"]
        frame = event.get("frame")
        if frame is None or "op" not in frame or not isinstance(frame["op"], int):
            continue
        key = (session_of[event["tab"]], frame["op"])
        if event["what"] == "sent":
            if event.get("probe"):
                asked[event["tab"], frame["id"]] = len(probes)
                probes.append((key, frame, None))
                continue
            invocation = invocations.setdefault(key, Invocation(key, frame, event["tab"], event["at"]))
            invocation.sendings += 1
        elif (number := asked.get((event["tab"], frame["id"]))) is not None:
            probes[number] = (probes[number][0], probes[number][1], frame)
        elif is_outcome(frame) and key in invocations:
            invocations[key].answers.append((event["at"], frame))
    return Notes(events, invocations, probes, session_of)


def received(notes: Notes) -> Iterator[tuple[str, float, Frame]]:
    """Every frame that a tab received: tab, time, frame."""
    for event in notes.events:
        if event["what"] == "received":
            yield event["tab"], event["at"], event["frame"]
